"""Integrated gradients: how much each pixel adds to the score of a class, from a plain image to this one.

Paper: "Axiomatic Attribution for Deep Networks", Sundararajan, Taly, Yan, ICML 2017, arXiv 1703.01365. The method is
captum's `IntegratedGradients`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convattn.explain.captures import evaluated
from convattn.explain.grad_cam import with_gradients
from convattn.explain.targets import Target, score_of
from convattn.extras import require

__all__ = ["integrated_gradients"]


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = 50,
    on_image: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """What each pixel adds to the score: Σ over channels of (x - b) · ∫ d score(b + t (x - b)) / dx dt, t from 0 to 1.

    The sum over pixels is score(x) - score(b), as exactly as the steps make it. The predicted class is that of the
    image itself, all the way.

    Args:
        model: a classifier or a segmenter.
        images: (B, C, H, W), normalised as the model expects them.
        target: as in `grad_cam`.
        baseline: b, broadcast to the images; 0 is the mean colour of the training images.
        steps: of the integral, by Gauss and Legendre; so many passes an image.
        on_image: told 1 after each image.

    Returns:
        (B, H, W) float32, signed, in units of the score.

    Raises:
        ValueError: as `grad_cam`; for steps below 1. MissingExtra: without captum.
    """
    method = require("captum.attr", "explain").IntegratedGradients
    if steps < 1:
        raise ValueError(f"steps {steps} must be 1 or more")
    found = []
    with evaluated(model), torch.inference_mode(False), torch.enable_grad():
        images = with_gradients(images)
        for index in range(len(images)):
            image, chosen = images[index : index + 1], one_target(model, images, target, index)
            start = torch.as_tensor(baseline, dtype=image.dtype, device=image.device).expand_as(image).contiguous()
            attribution = method(score_of(model, chosen)).attribute(
                image, start, n_steps=steps, internal_batch_size=min(steps, 8)
            )
            found.append(attribution.detach().float().sum(1))
            on_image(1)
    return torch.cat(found)


def one_target(model: nn.Module, images: Tensor, target: Target, index: int) -> Target:
    """The class of one image: as given, or as predicted now, so that it stays the same while the image is changed."""
    if target is not None:
        classes = torch.as_tensor(target)
        return classes if classes.ndim == 0 or len(classes) == 1 else classes[index]
    with torch.no_grad():
        outputs = model(images[index : index + 1])
    if not isinstance(outputs, Tensor) or outputs.ndim not in (2, 4):
        return None  # told by `score_of`
    if outputs.ndim == 2:
        return outputs.argmax(1)
    return outputs.argmax(1).flatten().mode().values
