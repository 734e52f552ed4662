"""Detectors without a second stage: a class and a box at every anchor of every level.

Sources: "RetinaNet", Lin et al., ICCV 2017, arXiv 1708.02002; "ATSS", Zhang et al., CVPR 2020, arXiv 1912.02424;
both as mmdetection computes them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.detection.anchors import Anchors, flattened
from convattn.detection.assigning import ATSS, MaxIoU
from convattn.detection.box_coder import BoxCoder, clipped
from convattn.detection.feature_pyramid import ConvUnit, Norm
from convattn.detection.losses import EPS, centerness_of, focal, giou_loss
from convattn.detection.post_processing import suppressed
from convattn.detection.truth import Truth

__all__ = ["ATSSHead", "DenseHead", "RetinaHead"]

_STRIDES = (8, 16, 32, 64, 128)
_PRIOR = -math.log(99)  # bias of a class at first: one anchor in a hundred is of it
_GIOU_WEIGHT = 2.0


class DenseHead(nn.Module):
    """Two towers over every level, and what both kinds of head share.

    Args:
        width: channels of the neck.
        num_classes: classes of objects.
        anchors: of all levels.
        coder: of boxes.
        overlap: IoU above which the less sure of two boxes of a class goes.
        convs: of each tower.
        norm: behind each of them.
        conv_width: their channels.
        of_level: pairs of anchor and class that are looked at of a level.
        least: scores of what is found must be above.
        most: objects of an image.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        anchors: Anchors,
        coder: BoxCoder,
        *,
        overlap: float,
        norm: Norm,
        convs: int = 4,
        conv_width: int = 256,
        of_level: int = 1000,
        least: float = 0.05,
        most: int = 100,
    ):
        super().__init__()
        self.num_classes, self.anchors, self.coder = num_classes, anchors, coder
        self.of_level, self.least, self.overlap, self.most = of_level, least, overlap, most
        for name in ("cls_convs", "reg_convs"):
            units = (ConvUnit(width if at == 0 else conv_width, conv_width, 3, norm=norm) for at in range(convs))
            self.add_module(name, nn.ModuleList(units))

    def start(self, classifier: nn.Conv2d) -> None:
        """Small weights everywhere, and the classes' prior."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(classifier.bias, _PRIOR)  # type: ignore[arg-type]

    def towers(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """What is behind the convolutions for classes, and for boxes."""
        label, box = level, level
        for conv in self.cls_convs:  # type: ignore[union-attr]
            label = conv(label)
        for conv in self.reg_convs:  # type: ignore[union-attr]
            box = conv(box)
        return label, box

    def detections(
        self,
        levels: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        originals: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """What is found in each image, as torchvision has it: boxes_xyxy, scores, labels.

        Args:
            levels: of the neck.
            sizes: height and width of each image as the network sees it.
            originals: of the pictures behind, at whose size boxes are given; `sizes` by default.
        """
        logits, steps, centers = self(levels)
        return self.results(logits, steps, centers, sizes, originals)

    def results(
        self,
        logits: Sequence[Tensor],
        steps: Sequence[Tensor],
        centers: Sequence[Tensor] | None,
        sizes: Sequence[tuple[int, int]],
        originals: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """The same from what `forward` gives."""
        exact = torch.promote_types(logits[0].dtype, torch.float32)
        anchors = self.anchors.all_boxes([one.shape[2:] for one in logits], logits[0].to(exact))  # type: ignore[misc]
        scores = [one.to(exact).sigmoid() for one in flattened(logits, self.num_classes)]
        moves = [one.to(exact) for one in flattened(steps, 4)]
        sure = [one.to(exact).sigmoid()[..., 0] for one in flattened(centers, 1)] if centers is not None else None
        found = []
        for image, size in enumerate(sizes):
            boxes, best, labels = [], [], []
            for level, anchor in enumerate(anchors):
                score, at, label = self._best(scores[level][image])
                boxes.append(self.coder.decode(anchor[at], moves[level][image][at]))
                best.append(score if sure is None else score * sure[level][image][at])
                labels.append(label)
            there = clipped(torch.cat(boxes), size)
            height, width = originals[image] if originals else size
            there = there / there.new_tensor([size[1] / width, size[0] / height] * 2)
            one = suppressed(there, torch.cat(best), torch.cat(labels), overlap=self.overlap, most=self.most)
            found.append({"boxes": one.boxes_xyxy, "scores": one.scores, "labels": one.labels})
        return found

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of anchor and class of a level: scores, anchors, classes."""
        score, index = scores.flatten().topk(min(self.of_level, scores.numel()))
        kept = score > self.least
        score, index = score[kept], index[kept]
        return score, index.div(self.num_classes, rounding_mode="floor"), index % self.num_classes

    def _laid_out(
        self, maps: Sequence[Sequence[Tensor]], truths: Sequence[Truth], padded: tuple[int, int]
    ) -> tuple[list[Tensor], Tensor, list[int], Tensor]:
        """What convolutions give, anchor by anchor; the anchors; how many a level; whether they count (n,)."""
        exact = torch.promote_types(maps[0][0].dtype, torch.float32)
        sizes = [(one.shape[2], one.shape[3]) for one in maps[0]]
        numbers = (self.num_classes, 4, 1)
        flat = [torch.cat(flattened(each, count), 1).to(exact) for each, count in zip(maps, numbers, strict=False)]
        parts = self.anchors.all_boxes(sizes, flat[0])
        there = torch.cat(self.anchors.within(sizes, padded, flat[0].device))
        return flat, torch.cat(parts), [len(part) for part in parts], there


class RetinaHead(DenseHead):
    """RetinaNet: nine anchors a pixel, the focal loss."""

    def __init__(self, width: int, num_classes: int, *, conv_width: int = 256):
        scales = tuple(4 * 2 ** (step / 3) for step in range(3))
        super().__init__(
            width, num_classes, Anchors(_STRIDES, scales), BoxCoder(), overlap=0.5, norm="none", conv_width=conv_width
        )
        self.assign = MaxIoU(0.5, 0.4, "all", 0.0)
        self.retina_cls = nn.Conv2d(conv_width, self.anchors.count * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(conv_width, self.anchors.count * 4, 3, padding=1)
        self.start(self.retina_cls)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], None]:
        """Of each level logits (B, anchors · classes, h, w) and steps (B, anchors · 4, h, w)."""
        towers = [self.towers(level) for level in levels]
        return [self.retina_cls(label) for label, _ in towers], [self.retina_reg(box) for _, box in towers], None

    def losses(self, levels: Sequence[Tensor], truths: Sequence[Truth], padded: tuple[int, int]) -> dict[str, Tensor]:
        """The losses `label` and `box`, one of each level (levels,).

        Args:
            levels: of the neck.
            truths: of each image.
            padded: height and width of the batch.
        """
        logits, steps, _ = self(levels)
        (scores, moves), anchors, counts, there = self._laid_out((logits, steps), truths, padded)
        wanted, counted = torch.zeros_like(scores), torch.zeros_like(scores[..., :1])
        box, total = torch.zeros_like(scores[..., 0]), 0
        (index,) = there.nonzero(as_tuple=True)
        for image, truth in enumerate(truths):
            objects = truth.boxes_xyxy.to(anchors)
            assigned = torch.full((len(anchors),), -1, device=anchors.device)
            assigned[index] = self.assign(anchors[index], objects, truth.ignored_xyxy)
            (positive,) = (assigned > 0).nonzero(as_tuple=True)
            own = assigned[positive] - 1
            wanted[image, positive, truth.labels[own]] = 1.0
            counted[image] = (assigned >= 0).to(counted)[:, None]
            total += max(len(positive), 1)
            goal = self.coder.encode(anchors[positive], objects[own])
            loss = (moves[image, positive] - goal).abs().sum(1)
            box = box.index_put((torch.full_like(positive, image), positive), loss)
        label = (focal(scores, wanted) * counted).sum(2)
        return {
            name: torch.stack([part.sum() for part in loss.split(counts, 1)]) / (total + EPS)
            for name, loss in (("label", label), ("box", box))
        }


class ATSSHead(DenseHead):
    """ATSS: one anchor a pixel, chosen by statistics; how near it is to an object's middle is learnt too."""

    def __init__(self, width: int, num_classes: int, *, conv_width: int = 256):
        super().__init__(
            width,
            num_classes,
            Anchors(_STRIDES, (8.0,), (1.0,)),
            BoxCoder((0.1, 0.1, 0.2, 0.2)),
            overlap=0.6,
            norm="group",
            conv_width=conv_width,
        )
        self.assign = ATSS()
        self.atss_cls = nn.Conv2d(conv_width, num_classes, 3, padding=1)
        self.atss_reg = nn.Conv2d(conv_width, 4, 3, padding=1)
        self.atss_centerness = nn.Conv2d(conv_width, 1, 3, padding=1)
        self.scales = nn.ModuleList(_Scale() for _ in _STRIDES)
        self.start(self.atss_cls)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each level logits (B, classes, h, w), steps (B, 4, h, w) and how near an object's middle (B, 1, h, w)."""
        towers = [self.towers(level) for level in levels]
        return (
            [self.atss_cls(label) for label, _ in towers],
            [scale(self.atss_reg(box)) for scale, (_, box) in zip(self.scales, towers, strict=True)],
            [self.atss_centerness(box) for _, box in towers],
        )

    def losses(self, levels: Sequence[Tensor], truths: Sequence[Truth], padded: tuple[int, int]) -> dict[str, Tensor]:
        """The losses `label`, `box` and `center`, one of each level (levels,); as `RetinaHead.losses`."""
        flat, anchors, counts, there = self._laid_out(self(levels), truths, padded)
        scores, moves, centers = flat
        wanted, counted = torch.zeros_like(scores), torch.zeros_like(scores[..., :1])
        box, center, total = torch.zeros_like(scores[..., 0]), torch.zeros_like(scores[..., 0]), 0
        weights = torch.zeros_like(scores[..., 0])
        (index,) = there.nonzero(as_tuple=True)
        valid = [int(part.sum()) for part in there.split(counts)]
        for image, truth in enumerate(truths):
            objects = truth.boxes_xyxy.to(anchors)
            assigned = torch.full((len(anchors),), -1, device=anchors.device)
            assigned[index] = self.assign(anchors[index], valid, objects, truth.ignored_xyxy)
            (positive,) = (assigned > 0).nonzero(as_tuple=True)
            own = assigned[positive] - 1
            wanted[image, positive, truth.labels[own]] = 1.0
            counted[image] = (assigned >= 0).to(counted)[:, None]
            total += max(len(positive), 1)
            goal = centerness_of(anchors[positive], objects[own])
            loss = giou_loss(self.coder.decode(anchors[positive], moves[image, positive]), objects[own])
            place = torch.full_like(positive, image), positive
            weights = weights.index_put(place, goal)
            box = box.index_put(place, _GIOU_WEIGHT * loss * goal)
            near = F.binary_cross_entropy_with_logits(centers[image, positive, 0], goal, reduction="none")
            center = center.index_put(place, near)
        label = (focal(scores, wanted) * counted).sum(2)
        by: dict[str, Any] = {
            "label": total + EPS,
            "box": weights.sum().clamp(min=1) * (1 + EPS),
            "center": total + EPS,
        }
        losses = {"label": label, "box": box, "center": center}
        return {
            name: torch.stack([part.sum() for part in loss.split(counts, 1)]) / by[name]
            for name, loss in losses.items()
        }


class _Scale(nn.Module):
    """A learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
