"""Triplet attention: three gates, each over one pair of the dimensions channel, height and width.

Paper: "Rotate to Attend: Convolutional Triplet Attention Module", Misra, Nalamada, Arasanipalai, Hou, WACV 2021, arXiv
2010.03045. Reference code: github.com/landskape-ai/triplet-attention (MIT); written from a description of it.

    x ─ rotate ─ [max, mean over the first dimension] ─ k×k ─ batch norm ─ sigmoid ─ × ─ rotate back ─ mean of three
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["TripletAttention"]


class PooledGate(nn.Module):
    """x · sigmoid(norm(conv([max, mean over channels]))); (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return x * self.norm(self.conv(pooled)).sigmoid()

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the convolution."""
        form = deepcopy(self)
        if not isinstance(self.norm, nn.Identity):
            form.conv = fuse_conv_bn_eval(self.conv, self.norm)
            form.norm = nn.Identity()
        return form


class TripletAttention(nn.Module):
    """out = mean of three gates that pool over channels, rows and columns; (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels C; no weight depends on it.
        kernel_size: odd side of the gates' kernels (7 in the paper's ResNets, 3 in its MobileNetV2).
        spatial: False leaves out the gate that pools over channels.

    Raises:
        ValueError: for an even kernel.
    """

    def __init__(self, dim: int, *, kernel_size: int = 7, spatial: bool = True):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} must be odd, so that the map keeps its size")
        self.channel_width = PooledGate(kernel_size)  # pools over the rows
        self.channel_height = PooledGate(kernel_size)  # over the columns
        self.height_width = PooledGate(kernel_size) if spatial else None  # over the channels

    def forward(self, x: Tensor) -> Tensor:
        gated = self.channel_width(x.transpose(1, 2)).transpose(1, 2)
        gated = gated + self.channel_height(x.transpose(1, 3)).transpose(1, 3)
        return gated / 2 if self.height_width is None else (gated + self.height_width(x)) / 3
