"""Deformable convolution as a layer: it predicts its own displacements from the map it reads.

Source: "Deformable ConvNets v2", Zhu, Hu, Lin, Dai, CVPR 2019, arXiv 1811.11168; version 1 (arXiv 1703.06211) without
the weights of the taps.
"""

import math
from copy import deepcopy
from typing import get_args

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from convattn.mixers.heads import nearest_divisor
from convattn.ops.deformable import Sampling, deformable_conv2d

__all__ = ["DeformableConv2d"]


@register_notrace_module
class DeformableConv2d(nn.Module):
    """Deformable convolution of stride 1 that keeps the size, (B, C, H, W) -> (B, C', H, W).

    An ordinary convolution of the same kernel size writes two offsets and, if `modulated`, one weight (through a
    sigmoid) per tap and position. It starts at zero: a plain convolution, halved by sigmoid(0) if modulated.

    Args:
        in_channels, out_channels: widths C and C'.
        kernel_size: odd side of the kernel.
        modulated: weigh the taps (version 2).
        groups: of the convolution; divides both widths.
        offset_groups: parts of the channels with offsets of their own; divides `in_channels`.
        sampling: implementation, as in `deformable_conv2d`.

    Raises:
        ValueError: for an even kernel, an unknown `sampling`, or groups that do not divide the widths.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        modulated: bool = True,
        groups: int = 1,
        offset_groups: int = 1,
        sampling: Sampling = "auto",
    ):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} must be odd, so that the map keeps its size")
        if sampling not in get_args(Sampling):
            raise ValueError(f"sampling {sampling!r} is unknown; choose one of {', '.join(get_args(Sampling))}")
        for name, value, widths in (
            ("groups", groups, (in_channels, out_channels)),
            ("offset_groups", offset_groups, (in_channels,)),
        ):
            if value < 1 or any(width % value for width in widths):
                nearest, said = nearest_divisor(math.gcd(*widths), value), " and ".join(map(str, widths))
                raise ValueError(f"{name} {value} does not divide {said} channels; the nearest is {nearest}")
        self.modulated = modulated
        self.sampling = sampling
        self.taps = offset_groups * kernel_size**2
        self.offset = nn.Conv2d(in_channels, (3 if modulated else 2) * self.taps, kernel_size, padding=kernel_size // 2)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.bias: nn.Parameter | None = None  # of the inference form
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.offset(x)
        offset = predicted[:, : 2 * self.taps]
        mask = predicted[:, 2 * self.taps :].sigmoid() if self.modulated else None
        padding = self.weight.shape[-1] // 2
        return deformable_conv2d(x, offset, self.weight, mask, self.bias, padding=padding, sampling=self.sampling)

    def kernel_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        """The products with the kernel; what it takes to read between pixels is not counted."""
        return output.numel() * self.weight[0].numel()

    def fused(self, norm: nn.BatchNorm2d | None = None) -> "DeformableConv2d":
        """The inference form: a batch norm behind it folded into the kernel."""
        form = deepcopy(self)
        if norm is not None:
            assert norm.running_mean is not None and norm.running_var is not None
            form.weight, form.bias = fuse_conv_bn_weights(
                form.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
        return form

    def graph_form(self) -> "DeformableConv2d":
        """For graph runtimes: sampling by an operator that they know."""
        form = deepcopy(self)
        form.sampling = "grid_sample"
        return form
