"""Grad-CAM: where the evidence for a class lies.

Paper: "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", Selvaraju et al., ICCV 2017,
arXiv 1610.02391. The method itself is captum's `LayerGradCam`; here are the choice of the layer and the class, the
layout of the map, and the care that the model is left as it was.
"""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.extras import require

__all__ = ["grad_cam"]


def grad_cam(
    model: nn.Module, images: Tensor, target: int | Tensor | None = None, layer: nn.Module | str | None = None
) -> Tensor:
    """Heat maps of the places that speak for a class.

    heat = resize(relu(Σ_c w_c a_c)) / its maximum,
    a the output of `layer`, w_c the mean over positions of d logit / d a_c.

    The model runs in eval mode and comes back with the modes, hooks and gradients that it had.

    Args:
        model: a classifier, images -> logits (B, classes).
        images: (B, C, H, W), normalised as the model expects them.
        target: the class to explain, one for all images or one each (B,); the predicted class of each by default.
        layer: a module of the model whose output is a map, or its dotted name; by default the last level of the
            pyramid.

    Returns:
        (B, H, W) float32 in 0..1, the maximum of each image being 1. A map with no evidence for the class is all 0.

    Raises:
        ValueError: for a layer or class that does not exist, a model without classes, or a layer that gives no map.
        MissingExtra: without captum.
    """
    layer_grad_cam = require("captum.attr", "explain").LayerGradCam
    name, module = _find_layer(model, layer)
    channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"  # how timm marks Swin and its kin
    probe = nn.Identity()  # what captum listens to: the output of the layer, always (B, C, H, W)

    def pass_through_probe(module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(f"the output of layer {name!r} is {shape}, not a map (B, C, H, W); choose another layer")
        if channels_last:
            return probe(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return probe(output)

    def class_logits(x: Tensor) -> Tensor:
        return _select(model, model(x), target)

    with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
        images = images.clone() if images.is_inference() else images.detach()
        hook = module.register_forward_hook(pass_through_probe)
        try:
            heat = layer_grad_cam(class_logits, probe).attribute(images, relu_attributions=True)
        finally:
            hook.remove()
    heat = F.interpolate(heat.detach().float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax((1, 2), keepdim=True)
    return heat / highest.clamp_min(torch.finfo(heat.dtype).tiny)  # 0 stays 0, and NaN is not hidden


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the mode of every single module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _find_layer(model: nn.Module, layer: nn.Module | str | None) -> tuple[str, nn.Module]:
    names = {module: name for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        if layer not in names:
            raise ValueError(f"this {type(layer).__name__} is not a module of the model; give one that is, or its name")
        return names[layer], layer
    if layer is None:
        levels: Any = getattr(model, "feature_info", None)
        if not levels:
            raise ValueError(f"{type(model).__name__} does not say what its last level is (feature_info); name a layer")
        layer = str(levels[-1]["module"])
    modules = {name: module for module, name in names.items() if name}
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4) or list(modules)[:3]
        raise ValueError(f"the model has no layer {layer!r}; nearest: {', '.join(close)}")
    return layer, modules[layer]


def _select(model: nn.Module, logits: Any, target: int | Tensor | None) -> Tensor:
    """The logit of each image's class: (B, classes) -> (B,)."""
    if getattr(model, "num_classes", None) == 0:
        raise ValueError(f"{type(model).__name__} has no classes (num_classes is 0); Grad-CAM explains a class")
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ValueError(f"{type(model).__name__} does not return logits (B, classes); Grad-CAM explains a class")
    if target is None:
        classes = logits.argmax(1)
    else:
        classes = torch.as_tensor(target, device=logits.device).long()
        if classes.shape not in ((), (1,), logits.shape[:1]):
            raise ValueError(f"target has shape {tuple(classes.shape)}; expected one class, or one for each image")
        if classes.min() < 0 or classes.max() >= logits.shape[1]:
            raise ValueError(f"target {classes.tolist()} is out of range; classes are 0 to {logits.shape[1] - 1}")
        classes = classes.expand(len(logits))
    return logits.gather(1, classes[:, None])[:, 0]
