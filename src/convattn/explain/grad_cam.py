"""Grad-CAM: where the evidence for a class lies.

Paper: "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", Selvaraju et al., ICCV 2017,
arXiv 1610.02391. The method itself is captum's `LayerGradCam`; here are the choice of the layer and the class, the
layout of the map, and the care that the model is left as it was.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.explain.captures import evaluated
from convattn.explain.layers import LayerChoice, find_layer
from convattn.explain.targets import Target, score_of
from convattn.extras import require

__all__ = ["grad_cam", "with_gradients"]


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    layer: LayerChoice = None,
    *,
    mask: Tensor | None = None,
    box_xyxy: Tensor | None = None,
) -> Tensor:
    """Heat maps of the places that speak for a class.

    heat = resize(relu(Σ_c w_c a_c)) / its maximum,
    a the output of `layer`, w_c the mean over positions of d score / d a_c; the score of a classifier is a logit.

    The model runs in eval mode and comes back with the modes, hooks and gradients that it had.

    Args:
        model: a classifier, images -> logits (B, classes); a segmenter, or a detector.
        images: (B, C, H, W), normalised as the model expects them.
        target: the class to explain, one for all images or one each (B,); the predicted class of each by default.
        layer: a module of the model whose output is a map, its dotted name, or a stride; by default the last level of
            the pyramid.
        mask: of a segmenter, (H, W) or (B, H, W): the pixels whose logits are summed; by default those that it gives
            to the class.
        box_xyxy: of a detector, (4,) or (B, 4): the object is the one whose box is nearest; by default the surest.

    Returns:
        (B, H, W) float32 in 0..1, the maximum of each image being 1. A map with no evidence for the class is all 0.

    Raises:
        ValueError: for a layer or class that does not exist, a model without classes, or a layer that gives no map.
        MissingExtra: without captum.
    """
    layer_grad_cam = require("captum.attr", "explain").LayerGradCam
    chosen = find_layer(model, layer)
    score = score_of(model, target, mask=mask, box_xyxy=box_xyxy)
    probe = nn.Identity()  # what captum listens to: the output of the layer, always (B, C, H, W)

    def pass_through_probe(module: nn.Module, args: Any, output: Any) -> Tensor:
        seen = probe(chosen.as_map(output))
        return seen.permute(0, 2, 3, 1) if chosen.is_nhwc else seen

    with evaluated(model), torch.inference_mode(False), torch.enable_grad():
        images = with_gradients(images)
        hook = chosen.module.register_forward_hook(pass_through_probe)
        try:
            heat = layer_grad_cam(score, probe).attribute(images, relu_attributions=True)
        finally:
            hook.remove()
    heat = F.interpolate(heat.detach().float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax((1, 2), keepdim=True)
    return heat / highest.clamp_min(torch.finfo(heat.dtype).tiny)  # 0 stays 0, and NaN is not hidden


def with_gradients(images: Tensor) -> Tensor:
    """Images of their own history, of which gradients can be taken, whatever mode they came from."""
    return images.clone() if images.is_inference() else images.detach()
