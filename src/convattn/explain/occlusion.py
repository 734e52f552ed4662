"""Occlusion: how much the score of a class falls when a window of the image is hidden.

Paper: "Visualizing and Understanding Convolutional Networks", Zeiler and Fergus, ECCV 2014, arXiv 1311.2901, section
4.2. The method is captum's `Occlusion`.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convattn.explain.captures import evaluated
from convattn.explain.integrated_gradients import one_target
from convattn.explain.targets import Target, score_of
from convattn.extras import require

__all__ = ["occlusion"]


def occlusion(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
    on_image: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """score(x) - score(x with a window hidden), at each pixel the mean over the windows that hide it.

    Args:
        model: a classifier or a segmenter.
        images: (B, C, H, W), normalised as the model expects them.
        target: as in `grad_cam`; the predicted class is that of the whole image.
        window: side of the square in pixels; by default an eighth of the shorter side.
        stride: between windows; by default half a window, so that every pixel is hidden about four times.
        fill: what stands in the window; 0 is the mean colour of the training images.
        on_image: told 1 after each image.

    Returns:
        (B, H, W) float32, positive where hiding takes evidence away.

    Raises:
        ValueError: as `grad_cam`; for a window that does not fit, or a stride that leaves gaps. MissingExtra: without
            captum.
    """
    method = require("captum.attr", "explain").Occlusion
    shortest = min(images.shape[-2:])
    window = max(1, shortest // 8) if window is None else window
    if not 1 <= window <= shortest:
        raise ValueError(f"window {window} must be 1 to {shortest}, the shorter side of the images")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride} must be 1 to {window}, the window, so that no pixel is left out")
    found = []
    with evaluated(model), torch.no_grad():
        for index in range(len(images)):
            image, chosen = images[index : index + 1], one_target(model, images, target, index)
            attribution = method(score_of(model, chosen)).attribute(
                image,
                sliding_window_shapes=(images.shape[1], window, window),
                strides=(images.shape[1], stride, stride),
                baselines=fill,
                perturbations_per_eval=8,
            )
            found.append(attribution.float().mean(1))
            on_image(1)
    return torch.cat(found)
