"""The second stage of R-CNN, once or three times over: regions are told apart, their boxes moved, their masks drawn.

Sources: "Faster R-CNN", arXiv 1506.01497; "Mask R-CNN", arXiv 1703.06870; "Cascade R-CNN", Cai and Vasconcelos,
CVPR 2018, arXiv 1712.00726. mmdetection and detectron2 differ; `RegionRules` says where.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.detection.assigning import MaxIoU
from convattn.detection.box_coder import BoxCoder, clipped
from convattn.detection.losses import EPS, averaged, giou_loss, mask_loss
from convattn.detection.masks import pasted
from convattn.detection.post_processing import best_of_classes, stretch
from convattn.detection.region_features import region_features, with_images
from convattn.detection.region_heads import BoxHead, MaskHead
from convattn.detection.sampling import Sampler
from convattn.detection.truth import Truth

__all__ = ["BOX_SIDE", "DETECTRON2_REGIONS", "MASK_SIDE", "MMDET_REGIONS", "RegionRules", "RegionStages", "StageRules"]

_GIOU_WEIGHT = 10.0  # of boxes that are compared themselves
BOX_SIDE, MASK_SIDE = 7, 14  # pixels of regions


@dataclass(frozen=True)
class StageRules:
    """How one stage learns."""

    assign: MaxIoU
    coder: BoxCoder
    beta: float = 0.0  # below which differences of steps count squared
    compares_boxes: bool = False  # the loss is of boxes, 1 - GIoU, instead of steps
    weight: float = 1.0  # of its losses


@dataclass(frozen=True)
class RegionRules:
    """Where mmdetection's second stage and detectron2's differ."""

    objects_first: bool  # the true boxes stand in front of the proposals
    samples_again: bool  # every stage samples anew, with the true boxes among its proposals
    level_eps: float  # of the choice of a level
    eps: float  # added to what losses are divided by
    shares_gradient: bool  # each of several stages passes on its share of the gradient
    averages: Literal["logits", "probabilities"]  # of several stages
    in_original_pixels: bool  # boxes are scaled before suppression


MMDET_REGIONS = RegionRules(True, True, 1e-6, EPS, False, "logits", True)
DETECTRON2_REGIONS = RegionRules(False, False, 4e-8, 0.0, True, "probabilities", False)


@dataclass(frozen=True)
class Regions:
    """The regions that a stage learns from, image by image."""

    boxes_xyxy: list[Tensor]  # (n, 4)
    labels: list[Tensor]  # (n,): the object's class, or that of background
    objects: list[Tensor]  # (n,): which object; 0 where it is background
    are_objects: list[Tensor]  # (n,) bool: the box is the true one


@dataclass(frozen=True)
class StageSaid:
    """What a stage saw and said in training."""

    regions: Regions
    rois: Tensor  # (N, 5)
    logits: Tensor  # (N, classes + 1)
    steps: Tensor  # (N, classes or 1, 4)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, share):
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.share, None


class RegionStages(nn.Module):
    """One stage or several, each with a head for boxes, and heads for masks.

    Args:
        box_heads: one a stage.
        stages: the rules of each.
        mask_heads: none, one, or one a stage.
        rules: of the implementation.
        sampler: of the regions that are learnt from.
        least: scores of what is found must be above.
        overlap: IoU above which the less sure of two boxes of a class goes.
        most: objects of an image.
    """

    def __init__(
        self,
        box_heads: Sequence[BoxHead],
        stages: Sequence[StageRules],
        mask_heads: Sequence[MaskHead] = (),
        *,
        rules: RegionRules = MMDET_REGIONS,
        sampler: Sampler | None = None,
        least: float = 0.05,
        overlap: float = 0.5,
        most: int = 100,
    ):
        super().__init__()
        self.stages, self.rules = tuple(stages), rules
        self.sampler = sampler or Sampler(512, 0.25)
        self.least, self.overlap, self.most = least, overlap, most
        several = len(self.stages) > 1
        self.bbox_head = nn.ModuleList(box_heads) if several else box_heads[0]
        self.mask_head: nn.Module | None = None
        if mask_heads:
            self.mask_head = nn.ModuleList(mask_heads) if len(mask_heads) > 1 else mask_heads[0]

    @property
    def box_heads(self) -> list[nn.Module]:
        """One a stage."""
        return [*self.bbox_head] if isinstance(self.bbox_head, nn.ModuleList) else [self.bbox_head]

    @property
    def mask_heads(self) -> list[nn.Module]:
        """None, one, or one a stage."""
        if self.mask_head is None:
            return []
        return [*self.mask_head] if isinstance(self.mask_head, nn.ModuleList) else [self.mask_head]

    @property
    def num_classes(self) -> int:
        """Of objects."""
        return self.box_heads[0].num_classes  # type: ignore[return-value]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace by fresh ones the layers that tell classes, and those whose boxes or masks are of a class."""
        for head in (*self.box_heads, *self.mask_heads):
            head.reset_classifier(num_classes)  # type: ignore[operator]

    def forward(self, levels: Sequence[Tensor], images: Tensor, regions: int, masks: int) -> list[Tensor]:
        """What all heads make of so many regions and masks an image, all of nothing: costs are counted of it."""
        seen, drawn = (
            levels[0].new_zeros(len(images) * count, levels[0].shape[1], side, side)
            for count, side in ((regions, BOX_SIDE), (masks, MASK_SIDE))
        )
        return [*(part for head in self.box_heads for part in head(seen)), *(head(drawn) for head in self.mask_heads)]

    def _seen(self, levels: Sequence[Tensor], rois: Tensor, side: int) -> Tensor:
        return region_features(levels, rois, side, eps=self.rules.level_eps)

    # Training

    def losses(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], list[StageSaid]]:
        """The losses by name, scalars, and what each stage said.

        Args:
            levels: of the neck.
            proposals: boxes of each image (n, 4).
            truths: of each image.
        """
        named: dict[str, Tensor] = {}
        said: list[StageSaid] = []
        boxes = [one.detach() for one in proposals]
        regions: Regions | None = None
        for number, (head, stage) in enumerate(zip(self.box_heads, self.stages, strict=True)):
            if regions is None or self.rules.samples_again:
                regions = self._sampled(boxes, truths, stage.assign)
            else:
                regions = self._matched(boxes, truths, stage.assign)
            one = self._say(levels, regions, head)
            said.append(one)
            prefix = f"stage{number}." if len(self.stages) > 1 else ""
            named |= {f"{prefix}{name}": stage.weight * loss for name, loss in self._losses(one, stage, truths).items()}
            if number < len(self.mask_heads):
                named[f"{prefix if len(self.mask_heads) > 1 else ''}mask"] = stage.weight * self._mask_loss(
                    levels, regions, self.mask_heads[number], truths
                )
            if number + 1 < len(self.stages):
                boxes = self._moved_on(one, stage, truths)
        return named, said

    def _sampled(self, boxes: Sequence[Tensor], truths: Sequence[Truth], assign: MaxIoU) -> Regions:
        found = Regions([], [], [], [])
        for own, truth in zip(boxes, truths, strict=True):
            objects, count = truth.boxes_xyxy.to(own), len(truth.labels)
            if self.rules.objects_first:
                themselves = torch.arange(1, count + 1, device=own.device)
                assigned = torch.cat([themselves, assign(own, objects, truth.ignored_xyxy)])
                own = torch.cat([objects, own])
                is_object = torch.arange(len(own), device=own.device) < count
            else:  # matched like any proposal: of two objects with one box both stand for the first
                own = torch.cat([own, objects])
                is_object = torch.arange(len(own), device=own.device) >= len(own) - count
                assigned = assign(own, objects, truth.ignored_xyxy)
            sample = self.sampler(assigned)
            index = torch.cat([sample.positive, sample.negative])
            self._add(found, own[index], assigned[index], truth, is_object[index])
        return found

    def _matched(self, boxes: Sequence[Tensor], truths: Sequence[Truth], assign: MaxIoU) -> Regions:
        found = Regions([], [], [], [])
        for own, truth in zip(boxes, truths, strict=True):
            assigned = assign(own, truth.boxes_xyxy.to(own), truth.ignored_xyxy)
            self._add(found, own, assigned, truth, torch.zeros_like(assigned, dtype=torch.bool))
        return found

    def _add(self, found: Regions, boxes: Tensor, assigned: Tensor, truth: Truth, is_object: Tensor) -> None:
        objects = (assigned - 1).clamp(min=0)
        background = torch.full_like(assigned, self.num_classes)
        labels = torch.where(assigned > 0, truth.labels[objects], background) if len(truth.labels) else background
        found.boxes_xyxy.append(boxes)
        found.labels.append(labels)
        found.objects.append(objects)
        found.are_objects.append(is_object)

    def _say(self, levels: Sequence[Tensor], regions: Regions, head: nn.Module) -> StageSaid:
        rois = with_images(regions.boxes_xyxy)
        seen = self._seen(levels, rois, BOX_SIDE)
        if self.rules.shares_gradient and len(self.stages) > 1:
            seen = _ScaledGradient.apply(seen, 1 / len(self.stages))
        logits, steps = head(seen)
        exact = torch.promote_types(logits.dtype, torch.float32)
        return StageSaid(regions, rois, logits.to(exact), steps.to(exact))

    def _losses(self, said: StageSaid, stage: StageRules, truths: Sequence[Truth]) -> dict[str, Tensor]:
        labels = torch.cat(said.regions.labels)
        eps = self.rules.eps
        count = max(len(labels), 1)
        label = averaged(F.cross_entropy(said.logits, labels, reduction="none"), count, eps)
        (positive,) = (labels < self.num_classes).nonzero(as_tuple=True)
        own = labels[positive] if said.steps.shape[1] > 1 else torch.zeros_like(positive)
        steps, boxes = said.steps[positive, own], said.rois[positive, 1:].to(said.steps)
        wanted = _objects(said.regions, truths)[positive].to(said.steps)
        if stage.compares_boxes:
            box = _GIOU_WEIGHT * giou_loss(stage.coder.decode(boxes, steps), wanted)
        else:
            box = F.smooth_l1_loss(steps, stage.coder.encode(boxes, wanted), reduction="none", beta=stage.beta)
        # Without an object the weights still take part, for who waits for their gradient.
        nothing = 0.0 * said.steps.sum() if not len(positive) else 0.0
        return {"label": label, "box": averaged(box, count, eps) + nothing}

    def _mask_loss(
        self, levels: Sequence[Tensor], regions: Regions, head: nn.Module, truths: Sequence[Truth]
    ) -> Tensor:
        kept = [labels < self.num_classes for labels in regions.labels]
        boxes = [own[there] for own, there in zip(regions.boxes_xyxy, kept, strict=True)]
        labels = torch.cat([own[there] for own, there in zip(regions.labels, kept, strict=True)])
        logits = head(self._seen(levels, with_images(boxes), MASK_SIDE))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts = [
            truth.masks.within(index[there], own.to(logits), logits.shape[-1])
            for truth, index, there, own in zip(truths, regions.objects, kept, boxes, strict=True)
            if truth.masks is not None and len(own)
        ]
        return mask_loss(logits, labels, torch.cat(parts) if parts else logits[:, 0])

    @torch.no_grad()
    def _moved_on(self, said: StageSaid, stage: StageRules, truths: Sequence[Truth]) -> list[Tensor]:
        """The boxes that the next stage begins with."""
        labels = torch.cat(said.regions.labels)
        own = torch.where(labels < self.num_classes, labels, said.logits[:, :-1].argmax(1))
        moved = self._moved(said.rois[:, 1:].to(said.steps), said.steps, own, stage)
        parts = moved.split([len(one) for one in said.regions.labels])
        found = []
        for boxes, truth, is_object in zip(parts, truths, said.regions.are_objects, strict=True):
            there = clipped(boxes, truth.size)
            if self.rules.samples_again:
                found.append(there[~is_object])
            else:
                found.append(there[(there[:, 2:] > there[:, :2]).all(1)])
        return found

    @staticmethod
    def _moved(boxes: Tensor, steps: Tensor, labels: Tensor, stage: StageRules) -> Tensor:
        own = labels if steps.shape[1] > 1 else torch.zeros_like(labels)
        return stage.coder.decode(boxes, steps[torch.arange(len(own), device=own.device), own])

    # Inference

    def detections(
        self,
        levels: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        originals: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """What is found in each image, as torchvision has it: boxes_xyxy, scores, labels, and masks (n, H, W) bool.

        Args:
            levels: of the neck.
            proposals: boxes of each image (n, 4).
            sizes: height and width of each image as the network sees it.
            originals: of the pictures behind, at whose size everything is given; `sizes` by default.
        """
        counts = [len(one) for one in proposals]
        boxes, logits, steps = with_images(proposals)[:, 1:], [], proposals[0].new_zeros(0)
        numbers = with_images(proposals)[:, :1]
        cut = boxes.new_tensor(sizes).repeat_interleave(torch.tensor(counts, device=boxes.device), 0)
        for number, (head, stage) in enumerate(zip(self.box_heads, self.stages, strict=True)):
            said, steps = head(self._seen(levels, torch.cat([numbers, boxes], 1), BOX_SIDE))
            exact = torch.promote_types(said.dtype, torch.float32)
            steps = steps.to(exact)
            logits.append(said.to(exact))
            if number + 1 < len(self.stages):
                boxes = clipped(self._moved(boxes.to(exact), steps, said[:, :-1].argmax(1), stage), cut)
        if self.rules.averages == "logits":
            scores = (sum(logits) / len(logits)).softmax(1)
        else:
            scores = sum(one.softmax(1) for one in logits) / len(logits)
        there = clipped(self.stages[-1].coder.decode(boxes[:, None].to(steps), steps), cut[:, None])
        found = []
        for image, (own, score) in enumerate(zip(there.split(counts), scores.split(counts), strict=True)):
            factor = stretch(sizes[image], originals[image] if originals else sizes[image], own)
            scaled = own / factor if self.rules.in_original_pixels else own
            several = scaled.expand(-1, self.num_classes, -1)
            best = best_of_classes(several, score[:, :-1], least=self.least, overlap=self.overlap, most=self.most)
            shown = best.boxes_xyxy if self.rules.in_original_pixels else best.boxes_xyxy / factor
            found.append({"boxes": shown, "scores": best.scores, "labels": best.labels})
        if self.mask_heads:
            self._add_masks(levels, found, sizes, originals or sizes)
        return found

    def mask_shares(self, levels: Sequence[Tensor], boxes_xyxy: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """How sure the pixels of boxes of each image are of their objects, (N, 28, 28) 0 to 1."""
        rois, own = with_images(boxes_xyxy), torch.cat([*labels])
        seen = self._seen(levels, rois, MASK_SIDE)
        shares = []
        for head in self.mask_heads:
            logits = head(seen)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            shares.append(logits[torch.arange(len(own), device=own.device), own].sigmoid())
        return sum(shares) / len(shares)

    def _add_masks(
        self,
        levels: Sequence[Tensor],
        found: list[dict[str, Tensor]],
        sizes: Sequence[tuple[int, int]],
        originals: Sequence[tuple[int, int]],
    ) -> None:
        seen = [
            one["boxes"] * stretch(size, original, one["boxes"])
            for one, size, original in zip(found, sizes, originals, strict=True)
        ]
        shares = self.mask_shares(levels, seen, [one["labels"] for one in found])
        for one, own, original in zip(
            found, shares.split([len(one["labels"]) for one in found]), originals, strict=True
        ):
            one["masks"] = pasted(own, one["boxes"], original)


def _objects(regions: Regions, truths: Sequence[Truth]) -> Tensor:
    """The true box of each region, (N, 4); of a region that is background any, or nothing."""
    found = []
    for index, truth in zip(regions.objects, truths, strict=True):
        found.append(truth.boxes_xyxy[index] if len(truth.labels) else truth.boxes_xyxy.new_zeros(len(index), 4))
    return torch.cat(found)
