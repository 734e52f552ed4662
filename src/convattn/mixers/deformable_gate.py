"""The deformable attention gate of DAS: a weight between 0 and 1 for every element of a map.

Paper: "DAS: A Deformable Attention to Capture Salient Information in CNNs", Salajegheh, Asadi, Saryazdi, Mudur, arXiv
2311.12091. No code of the authors is public; the order of layers and every width were settled by their published
parameter counts (docs/das.md has the account).

    x ──────────────────────────────────────────────────────────────────────────┐
    x ─ depthwise 3×3 ─ 1×1 C→h ─ norm1 ─ GELU ─ deformable h→C ─ norm2 ─ sigmoid ─ × ─ out

Channels and places are not separated: the gate is dense. Its cost is linear in the number of positions.
"""

import math
from copy import deepcopy
from typing import Literal

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from convattn.mixers.deformable_conv import DeformableConv2d
from convattn.ops.deformable import Sampling
from convattn.ops.instance_norm import InstanceNorm2d
from convattn.ops.linear import Linear2d

__all__ = ["ABLATIONS", "DeformableGate", "compressed_width", "compression"]

NORMS = ("in", "ln", "bn", "gn1", "none")
MIXERS = ("deform", "deform_dw", "dwsep", "none")

# Rows c to h of the paper's ablation as options; (a) and (b) are in `sampled_grid`. The text does not fix every layer
# of d, e, g and h: these are our reading. By name they are the mixers `das_a` to `das_h`.
ABLATIONS: dict[str, dict[str, bool | str]] = {
    "c": {},  # the gate as published
    "d": dict(compress=False),  # the deformable convolution sees the map itself
    "e": dict(mixer="none"),  # no deformable convolution, the separable one keeps all channels
    "f": dict(mixer="dwsep"),  # a second separable convolution in its place
    "g": dict(compress=False, gate=False, norm2="none"),  # a deformable convolution added as a layer
    "h": dict(gate=False),  # all layers of the gate, used as layers
}


class DeformableGate(nn.Module):
    """out = x · sigmoid(norm2(deformable(GELU(norm1(W x))))); (B, C, H, W) -> (B, C, H, W), any size.

    The inner tensors that explanations read: the output of `compress` (the context) and of `norm2` (the logits of the
    gate). Grad-CAM belongs on the gate itself: its output is the gated map.

    Args:
        dim: channels C.
        alpha: width h = max(1, floor(alpha · C)) of the compressed context; above 0, at most 1.
        kernel_size: odd side of the deformable kernel.
        modulated: weigh the taps of the deformable convolution (version 2).
        norm1: behind the compression: "in" (instance, which passes a map of one position as it is), "ln" (channels of
            each position), "bn" (batch), "gn1" (the whole image), "none".
        norm1_affine: learned scale and shift in `norm1`.
        norm2: in front of the sigmoid, one of the same, always with scale and shift.
        compress: False removes everything in front of the deformable convolution, which then maps C to C.
        mixer: "deform"; "deform_dw", a depthwise deformable convolution and a 1×1 (cheap, not in the paper); "dwsep",
            an ordinary separable one; "none", with all C channels kept by the compression.
        gate: False gives the logits themselves in place of x times their sigmoid.
        init: "paper", or "identity" for a trained network: `norm2` starts with scale 0 and shift 4 and the gate is
            divided by sigmoid(4), so that out = x to rounding and the first steps bring every weight to life.
        groups, offset_groups: of the deformable convolution.
        sampling: implementation of the deformable convolution, as in `deformable_conv2d`.

    Raises:
        ValueError: for a value outside its range, or options that contradict each other.
    """

    def __init__(
        self,
        dim: int,
        *,
        alpha: float = 0.2,
        kernel_size: int = 3,
        modulated: bool = True,
        norm1: str = "in",
        norm1_affine: bool = False,
        norm2: str = "ln",
        compress: bool = True,
        mixer: str = "deform",
        gate: bool = True,
        init: Literal["paper", "identity"] = "paper",
        groups: int = 1,
        offset_groups: int = 1,
        sampling: Sampling = "auto",
    ):
        super().__init__()
        _check_options(alpha, norm1, norm2, mixer, init, compress=compress)
        if mixer in ("dwsep", "none") and (kernel_size, modulated) != (3, True):
            raise ValueError(f"kernel_size {kernel_size}, modulated {modulated}: mixer {mixer!r} is not deformable")
        width = dim if mixer == "none" or not compress else compressed_width(dim, alpha)
        deform = dict(kernel_size=kernel_size, modulated=modulated, offset_groups=offset_groups, sampling=sampling)
        self.compress = compression(dim, width, norm1, norm1_affine) if compress else nn.Identity()
        self.mixer: nn.Module
        if mixer == "deform":
            self.mixer = DeformableConv2d(width, dim, groups=groups, **deform)  # type: ignore[arg-type]
        elif mixer == "deform_dw":
            depthwise = DeformableConv2d(width, width, groups=width, **deform)  # type: ignore[arg-type]
            self.mixer = nn.Sequential(depthwise, Linear2d(width, dim, bias=False))
        elif mixer == "dwsep":
            self.mixer = nn.Sequential(_depthwise(width), Linear2d(width, dim, bias=False))
        else:
            self.mixer = nn.Identity()
        self.norm2 = _norm(norm2, dim, affine=True)
        self.gate = gate
        self.gain = 1.0
        if init == "identity":
            self.start_as_identity()

    def start_as_identity(self) -> None:
        """Make the gate pass the map as it is, in place; what `init="identity"` does.

        Raises:
            ValueError: if there is no gate, or no scale and shift in front of it.
        """
        if not self.gate:
            raise ValueError("init 'identity' needs the gate: with gate=False the block's layers replace the map")
        if isinstance(self.norm2, nn.Identity):
            raise ValueError("init 'identity' works through the scale and shift of norm2, which cannot be 'none'")
        nn.init.zeros_(self.norm2.weight)  # type: ignore[arg-type]
        nn.init.constant_(self.norm2.bias, 4.0)  # type: ignore[arg-type]
        self.gain = 1 + math.exp(-4.0)  # 1 / sigmoid(4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        logits = self.norm2(self.mixer(self.compress(x)))
        if not self.gate:
            return logits.to(x.dtype)
        weights = logits.sigmoid().to(x.dtype)
        return x * weights if self.gain == 1 else x * (weights * self.gain)

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded."""
        return FusedDeformableGate(self)


class FusedDeformableGate(nn.Module):
    """Inference form of `DeformableGate`.

    A batch norm of the compression folds into its 1×1, one in front of the sigmoid into the deformable kernel or the
    1×1 behind it. Other norms depend on the image and stay.
    """

    forward = DeformableGate.forward  # with other parts

    @torch.no_grad()
    def __init__(self, block: DeformableGate):
        super().__init__()
        form = deepcopy(block)
        if isinstance(form.compress, nn.Sequential):
            _, pointwise, norm1, _ = form.compress
            if isinstance(norm1, nn.BatchNorm2d):
                form.compress[1], form.compress[2] = _fold(pointwise, norm1), nn.Identity()
        norm = form.norm2 if isinstance(form.norm2, nn.BatchNorm2d) else None
        layers = list(form.mixer) if isinstance(form.mixer, nn.Sequential) else [form.mixer]
        if norm is not None and not isinstance(layers[-1], nn.Identity):
            form.norm2 = nn.Identity()
            if isinstance(layers[-1], Linear2d):
                layers[-1] = _fold(layers[-1], norm)
                norm = None
        layers = [layer.fused(norm) if isinstance(layer, DeformableConv2d) else layer for layer in layers]
        self.compress = form.compress
        self.mixer = nn.Sequential(*layers)
        self.norm2 = form.norm2
        self.gate, self.gain = form.gate, form.gain


def compressed_width(dim: int, alpha: float) -> int:
    """Channels of the context: max(1, floor(alpha · dim))."""
    return max(1, int(alpha * dim))


def compression(dim: int, width: int, norm: str = "in", affine: bool = False) -> nn.Sequential:
    """The separable convolution in front, (B, dim, H, W) -> (B, width, H, W): depthwise 3×3, 1×1, norm, GELU.

    No bias: the norm would take it out again.
    """
    layers = nn.Sequential()
    layers.add_module("depthwise", _depthwise(dim))
    layers.add_module("pointwise", Linear2d(dim, width, bias=False))
    layers.add_module("norm", _norm(norm, width, affine=affine))
    layers.add_module("act", nn.GELU())
    return layers


def _depthwise(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)


def _norm(kind: str, dim: int, *, affine: bool) -> nn.Module:
    if kind == "in":
        return InstanceNorm2d(dim, affine=affine)
    if kind == "ln":
        return LayerNorm2d(dim, eps=1e-5, affine=affine)
    if kind == "bn":
        return nn.BatchNorm2d(dim, affine=affine)
    return nn.GroupNorm(1, dim, affine=affine) if kind == "gn1" else nn.Identity()


def _fold(linear: nn.Module, norm: nn.BatchNorm2d) -> Linear2d:
    """`linear` with the batch norm behind it."""
    assert isinstance(linear, Linear2d) and norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    folded = Linear2d(linear.in_channels, linear.out_channels).to(linear.weight)
    folded.weight.copy_(linear.weight * scale[:, None, None, None])
    folded.bias.copy_(shift if norm.bias is None else shift + norm.bias)
    return folded


def _check_options(alpha: float, norm1: str, norm2: str, mixer: str, init: str, *, compress: bool) -> None:
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha {alpha} must be above 0 and at most 1")
    for name, value, known in (
        ("norm1", norm1, NORMS),
        ("norm2", norm2, NORMS),
        ("mixer", mixer, MIXERS),
        ("init", init, ("paper", "identity")),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
    if not compress and mixer != "deform":
        raise ValueError(f"mixer {mixer!r} needs the compression; without it (compress=False) the mixer is 'deform'")
