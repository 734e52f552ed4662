"""Anchors: boxes of a few sizes and shapes at every pixel of every level, from which objects are found.

Source: "Faster R-CNN", Ren et al., NeurIPS 2015, arXiv 1506.01497, section 3.1; sizes and order as in mmdetection.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Anchors", "flattened", "inside_border"]


@dataclass(frozen=True)
class Anchors:
    """The anchors of a detector.

    A base anchor of a level with stride s has height s · scale · √ratio and width s · scale / √ratio, around the upper
    left corner of the level's pixel; ratios are the outer order, scales the inner one.

    detectron2 computes the height from the width. That rounds otherwise, and which of several anchors overlap an object
    exactly alike hangs on it.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height over width
    heights_by_widths: bool = False  # as in detectron2

    @property
    def count(self) -> int:
        """How many stand at a pixel."""
        return len(self.scales) * len(self.ratios)

    def base(self, level: int) -> Tensor:
        """Those of one pixel around (0, 0), (count, 4) xyxy float64."""
        sides = [self._sides(self.strides[level], scale, ratio) for ratio in self.ratios for scale in self.scales]
        return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides], dtype=torch.float64)

    def _sides(self, stride: int, scale: float, ratio: float) -> tuple[float, float]:
        if self.heights_by_widths:
            width = math.sqrt((stride * scale) ** 2 / ratio)
            return width, width * ratio
        return stride / math.sqrt(ratio) * scale, stride * math.sqrt(ratio) * scale

    def boxes(self, level: int, size: tuple[int, int], like: Tensor) -> Tensor:
        """All of a level of that height and width, (h · w · count, 4) xyxy, of the type and place of `like`."""
        height, width = size
        stride = self.strides[level]
        x = torch.arange(width, device=like.device).to(like.dtype) * stride
        y = torch.arange(height, device=like.device).to(like.dtype) * stride
        corner = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
        shift = torch.cat([corner, corner], 1)
        return (shift[:, None] + self.base(level).to(like)).flatten(0, 1)

    def all_boxes(self, sizes: Sequence[tuple[int, int]], like: Tensor) -> list[Tensor]:
        """Those of every level."""
        return [self.boxes(level, size, like) for level, size in enumerate(sizes)]

    def within(
        self, sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """Of every level, whether an anchor's pixel lies in an image of that padded height and width, (n,) bool."""
        found = []
        for stride, (height, width) in zip(self.strides, sizes, strict=True):
            rows = torch.arange(height, device=device) < min(-(-padded[0] // stride), height)
            columns = torch.arange(width, device=device) < min(-(-padded[1] // stride), width)
            found.append((rows[:, None] & columns).flatten().repeat_interleave(self.count))
        return found

    def counted(
        self, sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device | str = "cpu"
    ) -> list[Tensor] | None:
        """As `within`; None if all of them do."""
        reach = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in self.strides]
        if all(h <= down and w <= right for (h, w), (down, right) in zip(sizes, reach, strict=True)):
            return None
        return self.within(sizes, padded, device)


def inside_border(anchors_xyxy: Tensor, size: tuple[int, int], border: float) -> Tensor:
    """Whether anchors (n, 4) lie in an image of that height and width, or up to `border` pixels outside, (n,) bool."""
    (height, width), (x0, y0, x1, y1) = size, anchors_xyxy.unbind(1)
    return (x0 >= -border) & (y0 >= -border) & (x1 < width + border) & (y1 < height + border)


def flattened(maps: Sequence[Tensor], numbers: int) -> list[Tensor]:
    """What convolutions say of the anchors of each level: (B, count · numbers, h, w) -> (B, h · w · count, numbers)."""
    return [one.permute(0, 2, 3, 1).reshape(one.shape[0], -1, numbers) for one in maps]
