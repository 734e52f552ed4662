"""Which object each anchor or proposal is to stand for: -1 for none that counts, 0 for background, else the object + 1.

Sources: "Faster R-CNN", Ren et al., arXiv 1506.01497, section 3.1.2, as mmdetection and detectron2 read it; "ATSS",
Zhang et al., CVPR 2020, arXiv 1912.02424, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from convattn.detection.boxes import iof, iou

__all__ = ["ATSS", "MaxIoU", "Weak"]

Weak = Literal["none", "all", "first", "own"]
"""Which boxes an object gets that has none of enough overlap: none; all that share its best overlap, and they stand for
it; the first of these; all of these, each for the object that it overlaps most (detectron2)."""

_FAR = 1e8  # pixels: of an anchor that no object may choose


@dataclass(frozen=True)
class MaxIoU:
    """By the overlap with the object that a box overlaps most.

    Args:
        positive: least overlap with which a box stands for that object.
        negative: overlap below which it is background.
        weak: what else an object gets.
        least: overlap that its best must have for that.
        ignored: share of a box within an ignored area from which on it does not count; never by default.
        of_area: that share is of the ignored area, not of the box.
    """

    positive: float
    negative: float
    weak: Weak = "none"
    least: float = 0.0
    ignored: float | None = None
    of_area: bool = False

    def __call__(self, boxes_xyxy: Tensor, objects_xyxy: Tensor, ignored_xyxy: Tensor | None = None) -> Tensor:
        """(n,) int64 for boxes (n, 4), objects (m, 4) and areas to ignore (k, 4)."""
        return self.with_overlaps(boxes_xyxy, objects_xyxy, ignored_xyxy)[0]

    def with_overlaps(
        self, boxes_xyxy: Tensor, objects_xyxy: Tensor, ignored_xyxy: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same, and the overlap of each box with the object that it overlaps most (n,)."""
        count = len(boxes_xyxy)
        if not len(objects_xyxy) or not count:
            return boxes_xyxy.new_zeros(count, dtype=torch.int64), boxes_xyxy.new_zeros(count)
        overlaps = iou(objects_xyxy[:, None], boxes_xyxy)
        if self.ignored is not None and ignored_xyxy is not None and len(ignored_xyxy):
            pairs = (ignored_xyxy, boxes_xyxy[:, None]) if self.of_area else (boxes_xyxy[:, None], ignored_xyxy)
            overlaps = overlaps.masked_fill(iof(*pairs).amax(1) > self.ignored, -1.0)
        best, own = overlaps.max(0)
        found = torch.full_like(own, -1)
        found = torch.where((best >= 0) & (best < self.negative), 0, found)
        found = torch.where(best >= self.positive, own + 1, found)
        return self._with_weak(found, overlaps, own), best

    def _with_weak(self, found: Tensor, overlaps: Tensor, own: Tensor) -> Tensor:
        if self.weak == "none":
            return found
        most, first = overlaps.max(1)
        enough = most >= self.least
        if self.weak == "first":
            number = torch.arange(1, len(first) + 1, device=found.device)
            return found.index_put((first[enough],), number[enough])
        shared = (overlaps == most[:, None]) & enough[:, None]
        if self.weak == "own":
            return torch.where(shared.any(0), own + 1, found)
        # Of several objects the last.
        number = torch.arange(1, len(most) + 1, device=found.device)[:, None]
        last = (shared * number).amax(0)
        return torch.where(last > 0, last, found)


@dataclass(frozen=True)
class ATSS:
    """By statistics of each object: of the nearest anchors of each level, those of more than usual overlap.

    Args:
        nearest: anchors of each level that are looked at.
        ignored: share of an anchor within an ignored area from which on it does not count; never by default.
    """

    nearest: int = 9
    ignored: float | None = None

    def __call__(
        self,
        boxes_xyxy: Tensor,
        counts: Sequence[int],
        objects_xyxy: Tensor,
        ignored_xyxy: Tensor | None = None,
    ) -> Tensor:
        """(n,) int64 for anchors (n, 4), of so many a level, objects (m, 4) and areas to ignore (k, 4)."""
        found = boxes_xyxy.new_zeros(len(boxes_xyxy), dtype=torch.int64)
        if not len(objects_xyxy) or not len(boxes_xyxy):
            return found
        overlaps = iou(boxes_xyxy[:, None], objects_xyxy)
        centres, middles = _centres(boxes_xyxy), _centres(objects_xyxy)
        distances = (centres[:, None] - middles).square().sum(-1).sqrt()
        if self.ignored is not None and ignored_xyxy is not None and len(ignored_xyxy):
            out = iof(boxes_xyxy[:, None], ignored_xyxy).amax(1) > self.ignored
            distances = distances.masked_fill(out[:, None], _FAR)
            found = found.masked_fill(out, -1)
        chosen, start = [], 0
        for part in distances.split([*counts]):
            chosen.append(part.topk(min(self.nearest, len(part)), dim=0, largest=False).indices + start)
            start += len(part)
        candidates = torch.cat(chosen)  # (candidates, objects)
        their = overlaps.gather(0, candidates)
        enough = their >= their.mean(0) + their.std(0)
        x, y = centres[candidates].unbind(-1)
        sides = torch.stack(
            [x - objects_xyxy[:, 0], y - objects_xyxy[:, 1], objects_xyxy[:, 2] - x, objects_xyxy[:, 3] - y]
        )
        positive = enough & (sides.amin(0) > 0.01)
        best = torch.full_like(overlaps, -_FAR).scatter(0, candidates, torch.where(positive, their, -_FAR))
        most, own = best.max(1)
        return torch.where(most > -_FAR, own + 1, found)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
