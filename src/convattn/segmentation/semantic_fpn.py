"""Semantic FPN: a feature pyramid, and a head that brings its levels to stride 4 in steps of 2 and adds them.

Paper: "Panoptic Feature Pyramid Networks", Kirillov, Girshick, He, Dollár, CVPR 2019, arXiv 1901.02446.
Reference code: github.com/open-mmlab/mmsegmentation (Apache-2.0), `FPN` and `FPNHead`; written from a description.

    stride 32:  p3 -> [ 3×3 -> ×2 ] x 3 ──┐
    stride 16:  p2 -> [ 3×3 -> ×2 ] x 2 ──┤
    stride 8:   p1 -> [ 3×3 -> ×2 ] x 1 ──┤
    stride 4:   p0 ->   3×3 ──────────────┴─ + -> classes
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from convattn.segmentation.head import Head, Unit
from convattn.segmentation.resize import resized

__all__ = ["FPNHead", "Neck"]


class Neck(FeaturePyramidNetwork):
    """torchvision's feature pyramid on a list of levels, started as the reference starts it.

    A 1×1 on each level, coarser ones added by nearest neighbours, a 3×3 on each sum; biases, no norms, no activations.

    Args:
        in_channels: of the levels, the finest first.
        width: of each of the maps that come out.
    """

    def __init__(self, in_channels: Sequence[int], width: int):
        super().__init__([*in_channels], width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, C, H, W), the finest first -> as many maps (B, width, H, W)."""
        named = OrderedDict((str(index), level) for index, level in enumerate(levels))
        return [*super().forward(named).values()]


class FPNHead(Head):
    """Logits at stride 4 from the maps of a feature pyramid.

    A level of stride s passes through log2(s / 4) units (one at least), each followed by a bilinear doubling but on the
    finest level, then is resized to the finest level's size, which changes something where sizes are odd.

    Args:
        in_channels: of each map.
        strides: of the maps, the finest first.
        width: channels inside.
        num_classes, dropout: as in `Head`.
    """

    def __init__(self, in_channels: int, strides: Sequence[int], width: int, num_classes: int, dropout: float):
        super().__init__(width, num_classes, dropout)
        self.scale_heads = nn.ModuleList(_scale_head(in_channels, width, stride // strides[0]) for stride in strides)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), the finest first -> logits (B, n, H, W) at the finest one's size."""
        finest, *others = (head(level) for head, level in zip(self.scale_heads, levels, strict=True))
        for each in others:
            finest = finest + resized(each, finest.shape[-2:])
        return self.classify(finest)


def _scale_head(in_channels: int, width: int, times: int) -> nn.Sequential:
    """Units that bring a level to a map that many times as large."""
    if times == 1:
        return nn.Sequential(Unit(in_channels, width, 3))
    layers: list[nn.Module] = []
    for step in range(int(math.log2(times))):
        layers += [
            Unit(width if step else in_channels, width, 3),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        ]
    return nn.Sequential(*layers)
