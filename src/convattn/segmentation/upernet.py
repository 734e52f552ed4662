"""UperNet's head: pooled surroundings on the coarsest level, then all levels joined from coarse to fine.

Paper: "Unified Perceptual Parsing for Scene Understanding", Xiao, Liu, Zhou, Jiang, Sun, ECCV 2018, arXiv 1807.10221.
Reference code: github.com/open-mmlab/mmsegmentation (Apache-2.0), `UPerHead`; written from a description.

    stride 32:  x3 and its means over grids of 1, 2, 3 and 6 -> concat -> 3×3 ─┬────────────┐
    stride 16:  x2 -> 1×1 ──────────────────────────────────── + <- resize ────┼─ -> 3×3 ──┤
    stride 8:   x1 -> 1×1 ──────────────────────────────────── + <- resize ────┼─ -> 3×3 ──┤ resize, concat
    stride 4:   x0 -> 1×1 ──────────────────────────────────── + <- resize ────┴─ -> 3×3 ──┴─ -> 3×3 -> classes
"""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from convattn.segmentation.grid_mean import GridMean
from convattn.segmentation.head import Head, Unit
from convattn.segmentation.resize import resized

__all__ = ["POOLS", "UPerHead"]

POOLS = (1, 2, 3, 6)  # sides of the grids that the coarsest level is averaged over


class UPerHead(Head):
    """Logits at stride 4 from four levels.

    The coarsest level has no 1×1 and no 3×3 of its own in the pyramid: the pooling takes their place.

    Args:
        in_channels: of the levels, the finest first.
        width: channels inside.
        num_classes, dropout: as in `Head`.
    """

    def __init__(self, in_channels: Sequence[int], width: int, num_classes: int, dropout: float):
        super().__init__(width, num_classes, dropout)
        *finer, coarsest = in_channels
        self.psp_modules = nn.ModuleList(nn.Sequential(GridMean(side), Unit(coarsest, width, 1)) for side in POOLS)
        self.bottleneck = Unit(coarsest + len(POOLS) * width, width, 3)
        self.lateral_convs = nn.ModuleList(Unit(channels, width, 1) for channels in finer)
        self.fpn_convs = nn.ModuleList(Unit(width, width, 3) for _ in finer)
        self.fpn_bottleneck = Unit(len(in_channels) * width, width, 3)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Levels (B, C, H, W), the finest first -> logits (B, n, H, W) at the finest level's size.

        Raises:
            ValueError: in training on a single image, of which the coarsest mean is one number a channel.
        """
        *finer, coarsest = levels
        maps = [lateral(level) for lateral, level in zip(self.lateral_convs, finer, strict=True)]
        maps.append(self._pool(coarsest))
        for index in range(len(finer), 0, -1):
            maps[index - 1] = maps[index - 1] + resized(maps[index], maps[index - 1].shape[-2:])
        merged = [conv(each) for conv, each in zip(self.fpn_convs, maps, strict=False)] + maps[-1:]
        size = merged[0].shape[-2:]
        joined = torch.cat([merged[0], *(resized(each, size) for each in merged[1:])], 1)
        return self.classify(self.fpn_bottleneck(joined))

    def _pool(self, x: Tensor) -> Tensor:
        pooled = [resized(pool(x), x.shape[-2:]) for pool in self.psp_modules]
        return self.bottleneck(torch.cat([x, *pooled], 1))
