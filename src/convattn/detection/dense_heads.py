"""Detectors without a second stage: a class and a box at every anchor of every level.

Sources: "RetinaNet", Lin et al., ICCV 2017, arXiv 1708.02002; "ATSS", Zhang et al., CVPR 2020, arXiv 1912.02424;
both as mmdetection computes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.detection.anchors import Anchors, flattened
from convattn.detection.assigning import ATSS, MaxIoU
from convattn.detection.best import best
from convattn.detection.box_coder import BoxCoder, clipped
from convattn.detection.feature_pyramid import ConvUnit, Norm
from convattn.detection.losses import (
    EPS,
    centerness_of,
    focal,
    focal_of_background,
    giou_loss,
    mean_over_processes,
)
from convattn.detection.post_processing import stretch, suppressed
from convattn.detection.truth import Truth

__all__ = ["ATSSHead", "Candidates", "DenseHead", "RetinaHead", "Wanted"]

_STRIDES = (8, 16, 32, 64, 128)
_PRIOR = -math.log(99)  # bias of a class at first: one anchor in a hundred is of it
_GIOU_WEIGHT = 2.0
_SPREAD = 0.01  # of weights at first


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

    classifier_name: ClassVar[str]

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

    @property
    def classifier(self) -> nn.Conv2d:
        """The layer that tells the classes."""
        return self.get_submodule(self.classifier_name)  # type: ignore[return-value]

    def start(self) -> None:
        """Small weights everywhere, and the classes' prior."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=_SPREAD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.classifier.bias, _PRIOR)  # type: ignore[arg-type]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the layer that tells the classes by a fresh one."""
        old, count = self.classifier, self.anchors.count * num_classes
        self.num_classes = num_classes
        with old.weight.device:
            fresh = nn.Conv2d(old.in_channels, count, 3, padding=1, dtype=old.weight.dtype)
        nn.init.normal_(fresh.weight, std=_SPREAD)
        nn.init.constant_(fresh.bias, _PRIOR)  # type: ignore[arg-type]
        setattr(self, self.classifier_name, fresh)

    def towers(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """What is behind the convolutions for classes, and for boxes."""
        label, box = level, level
        for conv in self.cls_convs:  # type: ignore[union-attr]
            label = conv(label)
        for conv in self.reg_convs:  # type: ignore[union-attr]
            box = conv(box)
        return label, box

    def losses(self, levels: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """The losses by name, one of each level (levels,).

        Args:
            levels: of the neck.
            truths: of each image.
        """
        raise NotImplementedError

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
        likely = self.candidates(logits, steps, centers)
        boxes = clipped(likely.boxes_xyxy, likely.boxes_xyxy.new_tensor(sizes)[:, None])
        found = []
        for image, size in enumerate(sizes):
            there = boxes[image] / stretch(size, originals[image] if originals else size, boxes)
            (kept,) = (likely.class_scores[image] > self.least).nonzero(as_tuple=True)
            one = suppressed(
                there[kept],
                likely.scores[image, kept],
                likely.labels[image, kept],
                overlap=self.overlap,
                most=self.most,
            )
            found.append({"boxes": one.boxes_xyxy, "scores": one.scores, "labels": one.labels})
        return found

    def candidates(
        self, logits: Sequence[Tensor], steps: Sequence[Tensor], centers: Sequence[Tensor] | None
    ) -> "Candidates":
        """The likeliest pairs of anchor and class, as many for every image, from what `forward` gives.

        Shapes follow from those of the maps alone, so that a graph of it can be exported.
        """
        exact = torch.promote_types(logits[0].dtype, torch.float32)
        parts = [
            self._of_level(level, logits[level].to(exact), steps[level], None if centers is None else centers[level])
            for level in range(len(logits))
        ]
        return Candidates(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))

    def _of_level(
        self, level: int, logits: Tensor, steps: Tensor, centers: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The candidates of a level: boxes, scores, scores of the class alone, labels."""
        count = self.anchors.count
        by_class = logits.unflatten(1, (count, self.num_classes)).flatten(3)  # (B, anchors of a pixel, classes, pixels)
        # The best pairs are of the anchors with the best single class: only their logits are looked at one by one.
        highest, anchors = best(by_class.amax(2).transpose(1, 2).flatten(1), self.of_level)  # (B, k), pixel by pixel
        image = torch.arange(logits.shape[0], device=logits.device)[:, None]
        pixel, own = anchors.div(count, rounding_mode="floor"), anchors % count
        pairs = torch.minimum(by_class[image, own, :, pixel], highest[..., None])  # of an anchor that lacks nothing
        logit, index = best(pairs.flatten(1), self.of_level)
        labels, row = index % self.num_classes, index.div(self.num_classes, rounding_mode="floor")
        pixel, own = pixel.gather(1, row), own.gather(1, row)
        moves = steps.to(logits).unflatten(1, (count, 4)).flatten(3)[image, own, :, pixel]
        boxes = self.anchors.boxes(level, (logits.shape[2], logits.shape[3]), logits)
        moved, of_class = self.coder.decode(boxes[pixel * count + own], moves), logit.sigmoid()
        if centers is None:
            return moved, of_class, of_class, labels
        near = centers.to(logits).flatten(2)[image, own, pixel]
        return moved, of_class * near.sigmoid(), of_class, labels

    def assigned(self, anchors: Tensor, counts: Sequence[int], truth: Truth) -> Tensor:
        """Which object each of the anchors (n, 4), of so many a level, stands for, as `MaxIoU` has it."""
        raise NotImplementedError

    def _laid_out(self, maps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """What convolutions give, anchor by anchor over all levels: logits (B, n, classes), steps (B, n, 4), …"""
        exact = torch.promote_types(maps[0][0].dtype, torch.float32)
        numbers = (self.num_classes, 4, 1)
        return [torch.cat(flattened(each, count), 1).to(exact) for each, count in zip(maps, numbers, strict=False)]

    @torch.no_grad()
    def wanted(self, sizes: Sequence[tuple[int, int]], truths: Sequence[Truth], like: Tensor) -> "Wanted":
        """What is to be learnt of images whose levels are of these heights and widths."""
        parts = self.anchors.all_boxes(sizes, like)
        anchors, counts = torch.cat(parts), [len(part) for part in parts]
        images, positives, labels, objects, rows = [], [], [], [], []
        for image, truth in enumerate(truths):
            own = self._assigned_where_padded(anchors, counts, sizes, truth)
            (positive,) = (own > 0).nonzero(as_tuple=True)
            number = own[positive] - 1
            images.append(torch.full_like(positive, image))
            positives.append(positive)
            labels.append(truth.labels[number])
            objects.append(truth.boxes_xyxy.to(anchors)[number])
            rows.append(own < 0)
        return Wanted(
            anchors,
            counts,
            (torch.cat(images), torch.cat(positives)),
            torch.cat(labels),
            torch.cat(objects),
            torch.stack(rows),
            sum(max(len(positive), 1) for positive in positives),
        )

    def _assigned_where_padded(
        self, anchors: Tensor, counts: list[int], sizes: Sequence[tuple[int, int]], truth: Truth
    ) -> Tensor:
        there = None if truth.padded is None else self.anchors.counted(sizes, truth.padded, anchors.device)
        if there is None:
            return self.assigned(anchors, counts, truth)
        (index,) = torch.cat(there).nonzero(as_tuple=True)
        found = torch.full((len(anchors),), -1, device=anchors.device)
        found[index] = self.assigned(anchors[index], [int(part.sum()) for part in there], truth)
        return found

    @staticmethod
    def _of_levels(losses: Tensor, wanted: "Wanted") -> Tensor:
        """The sum of (B, n) over each level, (levels,)."""
        return torch.stack([part.sum() for part in losses.split(wanted.counts, 1)])

    @staticmethod
    def _class_losses(logits: Tensor, wanted: "Wanted") -> Tensor:
        """The focal loss of each anchor (B, n), without a table of what is wanted: nearly all of it is background."""
        true = logits[(*wanted.positive, wanted.labels)]
        nothing = torch.zeros_like(true)
        more = focal(true, nothing + 1) - focal(true, nothing)
        losses = focal_of_background(logits).sum(2).index_put(wanted.positive, more, accumulate=True)
        return losses.masked_fill(wanted.ignored, 0.0)


@dataclass(frozen=True)
class Candidates:
    """Pairs of anchor and class that an image may show, as many for every image."""

    boxes_xyxy: Tensor  # (B, n, 4) pixels, not cut at the image
    scores: Tensor  # (B, n)
    class_scores: Tensor  # (B, n): of these it is asked whether they are enough
    labels: Tensor  # (B, n) int64


@dataclass(frozen=True)
class Wanted:
    """What is to be learnt of a batch, over the anchors of all levels."""

    anchors_xyxy: Tensor  # (n, 4)
    counts: list[int]  # of anchors of each level
    positive: tuple[Tensor, Tensor]  # of anchors that stand for objects, the image and the anchor (p,) each
    labels: Tensor  # (p,)
    objects_xyxy: Tensor  # (p, 4)
    ignored: Tensor  # (B, n) bool: nothing is to be learnt there
    total: int  # anchors that stand for objects, and one of each image without


class RetinaHead(DenseHead):
    """RetinaNet: nine anchors a pixel, the focal loss."""

    classifier_name = "retina_cls"

    def __init__(self, width: int, num_classes: int, *, conv_width: int = 256):
        scales = tuple(4 * 2 ** (step / 3) for step in range(3))
        super().__init__(
            width, num_classes, Anchors(_STRIDES, scales), BoxCoder(), overlap=0.5, norm="none", conv_width=conv_width
        )
        self.assign = MaxIoU(0.5, 0.4, "all", 0.0)  # whatever its best overlap is, an object gets an anchor
        self.retina_cls = nn.Conv2d(conv_width, self.anchors.count * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(conv_width, self.anchors.count * 4, 3, padding=1)
        self.start()

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], None]:
        """Of each level logits (B, anchors · classes, h, w) and steps (B, anchors · 4, h, w)."""
        towers = [self.towers(level) for level in levels]
        return [self.retina_cls(label) for label, _ in towers], [self.retina_reg(box) for _, box in towers], None

    def assigned(self, anchors: Tensor, counts: Sequence[int], truth: Truth) -> Tensor:
        """As `DenseHead.assigned`."""
        return self.assign(anchors, truth.boxes_xyxy.to(anchors), truth.ignored_xyxy)

    def losses(self, levels: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """The losses `label` and `box`, as `DenseHead.losses`."""
        logits, steps, _ = self(levels)
        scores, moves = self._laid_out((logits, steps))
        wanted = self.wanted([(one.shape[2], one.shape[3]) for one in logits], truths, scores)
        goal = self.coder.encode(wanted.anchors_xyxy[wanted.positive[1]], wanted.objects_xyxy)
        box = (moves[wanted.positive] - goal).abs().sum(1)
        boxes = torch.zeros_like(moves[..., 0]).index_put(wanted.positive, box)
        return {
            "label": self._of_levels(self._class_losses(scores, wanted), wanted) / (wanted.total + EPS),
            "box": self._of_levels(boxes, wanted) / (wanted.total + EPS),
        }


class ATSSHead(DenseHead):
    """ATSS: one anchor a pixel, chosen by statistics; how near it is to an object's middle is learnt too."""

    classifier_name = "atss_cls"

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
        self.start()

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Of each level logits (B, classes, h, w), steps (B, 4, h, w) and how near an object's middle (B, 1, h, w)."""
        towers = [self.towers(level) for level in levels]
        return (
            [self.atss_cls(label) for label, _ in towers],
            [scale(self.atss_reg(box)) for scale, (_, box) in zip(self.scales, towers, strict=True)],
            [self.atss_centerness(box) for _, box in towers],
        )

    def assigned(self, anchors: Tensor, counts: Sequence[int], truth: Truth) -> Tensor:
        """As `DenseHead.assigned`."""
        return self.assign(anchors, counts, truth.boxes_xyxy.to(anchors), truth.ignored_xyxy)

    def losses(self, levels: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """The losses `label`, `box` and `center`, as `DenseHead.losses`.

        What they are divided by is averaged over processes.
        """
        maps = self(levels)
        scores, moves, centers = self._laid_out(maps)
        wanted = self.wanted([(one.shape[2], one.shape[3]) for one in maps[0]], truths, scores)
        anchors, objects = wanted.anchors_xyxy[wanted.positive[1]], wanted.objects_xyxy
        near = centerness_of(anchors, objects)
        box = near * giou_loss(self.coder.decode(anchors, moves[wanted.positive]), objects)
        center = F.binary_cross_entropy_with_logits(centers[wanted.positive][:, 0], near, reduction="none")
        nothing = torch.zeros_like(moves[..., 0])
        count, nearness = mean_over_processes(torch.stack([near.sum(), near.new_tensor(float(wanted.total))])).flip(0)
        count, nearness = count.clamp(min=1) + EPS, nearness.clamp(min=1) * (1 + EPS)
        return {
            "label": self._of_levels(self._class_losses(scores, wanted), wanted) / count,
            "box": _GIOU_WEIGHT * self._of_levels(nothing.index_put(wanted.positive, box), wanted) / nearness,
            "center": self._of_levels(nothing.index_put(wanted.positive, center), wanted) / count,
        }


class _Scale(nn.Module):
    """A learnt factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
