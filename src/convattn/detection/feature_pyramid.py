"""The neck: levels of a backbone as levels of one width, each of which knows the coarser ones.

Source: "Feature Pyramid Networks", Lin et al., CVPR 2017, arXiv 1612.03144, in the forms of mmdetection and detectron2.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvUnit", "Extra", "FeaturePyramid", "Norm"]

Norm = Literal["none", "batch", "group"]
Extra = Literal["none", "subsampled", "on_input", "on_output", "on_lateral"]
"""Where levels beyond the backbone's come from: there are none; the last one, every second pixel; or convolutions of
stride 2, the first on the backbone's last level, on the neck's, or on what that is made of."""

_GROUPS = 32


class ConvUnit(nn.Module):
    """A convolution that keeps the size, with a norm or a bias, and a ReLU if wanted."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        *,
        norm: Norm = "none",
        stride: int = 1,
        relu: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=norm == "none")
        if norm == "batch":
            self.bn = nn.BatchNorm2d(channels)
        elif norm == "group":
            self.gn = nn.GroupNorm(_GROUPS, channels)
        self.norm = norm
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm == "batch":
            x = self.bn(x)
        elif self.norm == "group":
            x = self.gn(x)
        return F.relu(x) if self.relu else x

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"norm={self.norm!r}, relu={self.relu}"


class FeaturePyramid(nn.Module):
    """Levels of one width, (B, C_l, h_l, w_l) each -> (B, width, h_l, w_l) each, and further ones.

    Args:
        channels: of the backbone's levels, the finest first.
        width: of all levels behind.
        outputs: how many levels there are then.
        first: the first of the backbone's levels that is used; the others only tell their widths.
        extra: what the levels beyond the backbone's are made of.
        relu: rectify in front of every such convolution but the first.
        norm: "batch" behind every convolution; convolutions have a bias without it.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int = 256,
        outputs: int = 5,
        *,
        first: int = 0,
        extra: Extra = "subsampled",
        relu: bool = False,
        norm: Norm = "none",
    ):
        super().__init__()
        used = channels[first:]
        self.first, self.outputs, self.extra, self.relu = first, outputs, extra, relu
        self.lateral_convs = nn.ModuleList(ConvUnit(one, width, 1, norm=norm, relu=False) for one in used)
        self.fpn_convs = nn.ModuleList(ConvUnit(width, width, 3, norm=norm, relu=False) for _ in used)
        if extra not in ("none", "subsampled"):
            for number in range(outputs - len(used)):
                before = channels[-1] if extra == "on_input" and number == 0 else width
                self.fpn_convs.append(ConvUnit(before, width, 3, norm=norm, stride=2, relu=False))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """All levels, the finest first."""
        laterals = [conv(level) for conv, level in zip(self.lateral_convs, levels[self.first :], strict=True)]
        for at in range(len(laterals) - 1, 0, -1):
            above = F.interpolate(laterals[at], laterals[at - 1].shape[2:], mode="nearest")
            laterals[at - 1] = laterals[at - 1] + above
        made = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=False)]
        if self.extra == "subsampled":
            while len(made) < self.outputs:
                made.append(made[-1][:, :, ::2, ::2])
            return made
        beneath = {"on_input": levels[-1], "on_lateral": laterals[-1]}.get(self.extra, made[-1])
        for number, conv in enumerate(self.fpn_convs[len(laterals) :]):
            beneath = conv(F.relu(beneath) if self.relu and number else beneath)
            made.append(beneath)
        return made
