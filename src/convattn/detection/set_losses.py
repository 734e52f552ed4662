"""The losses of predictions that stand for boxes one by one, and the two ways in which the field computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import box_convert

from convattn.detection.boxes import giou, giou_with_floor
from convattn.detection.losses import EPS, focal, mean_over_processes
from convattn.detection.set_matching import CostWeights, assign, focal_cost
from convattn.detection.truth import Truth

__all__ = ["DETREX", "MMDET", "SPARSE", "LossWeights", "Rules", "counted", "counted_noisy", "match", "set_losses"]

Pairs = Sequence[tuple[Tensor, Tensor]]  # of each image: queries, boxes


@dataclass(frozen=True)
class LossWeights:
    """What counts how much in the loss."""

    label: float = 1.0
    l1: float = 5.0
    iou: float = 2.0


@dataclass(frozen=True)
class Rules:
    """Where two implementations of one paper differ."""

    focal_eps: float  # inside of the logarithms of a match's cost
    giou: Callable[[Tensor, Tensor], Tensor]
    in_pixels: bool  # that GIoU's boxes are in pixels, otherwise from 0 to 1
    l1_of: Literal["cxcywh", "xyxy"]  # what of a box is compared number by number, from 0 to 1
    counts_matched: bool  # losses are divided by the boxes that a query stands for, otherwise by all
    normaliser_eps: float  # added to that number

    def numbers(self, boxes_cxcywh: Tensor) -> Tensor:
        """What of boxes (…, 4) is compared number by number."""
        return boxes_cxcywh if self.l1_of == "cxcywh" else box_convert(boxes_cxcywh, "cxcywh", "xyxy")

    def overlap(self, a_cxcywh: Tensor, b_cxcywh: Tensor, scale: Tensor) -> Tensor:
        """GIoU of boxes from 0 to 1 that are broadcast; `scale` is their images' width, height, width, height."""
        a, b = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (a_cxcywh, b_cxcywh))
        return self.giou(a * scale, b * scale) if self.in_pixels else self.giou(a, b)


DETREX = Rules(1e-8, giou, in_pixels=False, l1_of="cxcywh", counts_matched=False, normaliser_eps=0.0)
MMDET = Rules(1e-12, giou_with_floor, in_pixels=True, l1_of="cxcywh", counts_matched=True, normaliser_eps=EPS)
SPARSE = Rules(1e-12, giou_with_floor, in_pixels=True, l1_of="xyxy", counts_matched=True, normaliser_eps=EPS)


def match(
    logits: Sequence[Tensor],
    boxes_cxcywh: Sequence[Tensor],
    truths: Sequence[Truth],
    rules: Rules,
    weights: CostWeights,
) -> list[list[tuple[Tensor, Tensor]]]:
    """For several layers at once, which query of an image stands for which box.

    Args:
        logits: of each layer, (B, queries, classes).
        boxes_cxcywh: of each layer, (B, queries, 4), 0 to 1.
        truths: of each image.
        rules: of the implementation.
        weights: of the parts of the cost.
    """
    with torch.no_grad():
        costs = [
            _costs(scores[at], there[at], truth, rules, weights)
            for scores, there in zip(logits, boxes_cxcywh, strict=True)
            for at, truth in enumerate(truths)
        ]
    pairs, count = assign(costs), len(truths)
    return [pairs[start : start + count] for start in range(0, len(pairs), count)]


def _costs(logits: Tensor, boxes: Tensor, truth: Truth, rules: Rules, weights: CostWeights) -> Tensor:
    exact = torch.promote_types(logits.dtype, torch.float32)
    logits, boxes, wanted = logits.to(exact), boxes.to(exact)[:, None], truth.boxes_cxcywh.to(exact)
    l1 = (rules.numbers(boxes) - rules.numbers(wanted)).abs().sum(-1)
    overlap = rules.overlap(boxes, wanted, truth.scale.to(exact))
    return weights.l1 * l1 + weights.label * focal_cost(logits, truth.labels, rules.focal_eps) - weights.iou * overlap


def counted(truths: Sequence[Truth], pairs: Pairs, rules: Rules) -> Tensor:
    """The number of boxes that losses are divided by, 1 or more: averaged over the processes that learn together."""
    count = sum(len(queries) for queries, _ in pairs) if rules.counts_matched else sum(map(len, truths))
    return mean_over_processes(truths[0].boxes_xyxy.new_tensor(count)).clamp(min=1)


def counted_noisy(truths: Sequence[Truth], groups: int, rules: Rules) -> Tensor:
    """The number that losses of denoising queries are divided by: the boxes, as often as there are groups of queries.

    detrex takes the average over processes of the boxes alone, mmdetection of the product.
    """
    count = truths[0].boxes_xyxy.new_tensor(sum(map(len, truths)))
    if rules.counts_matched:
        return mean_over_processes(count * groups).clamp(min=1)
    return mean_over_processes(count).clamp(min=1) * groups


def set_losses(
    logits: Tensor,
    boxes_cxcywh: Tensor,
    truths: Sequence[Truth],
    pairs: Pairs,
    normaliser: Tensor | float,
    rules: Rules,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """The losses `label`, `l1` and `iou` of one layer, scalars, weighed, in float32 or better.

    Args:
        logits: (B, queries, classes).
        boxes_cxcywh: (B, queries, 4), 0 to 1.
        truths: of each image.
        pairs: of each image the queries that stand for a box, and which; all others are background.
        normaliser: what the sums are divided by, beside `rules.normaliser_eps`.
        rules: of the implementation.
        weights: of the three.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    logits, boxes_cxcywh = logits.to(exact), boxes_cxcywh.to(exact)
    wanted = torch.zeros_like(logits)
    found, true, scales = [], [], []
    for at, (truth, (queries, chosen)) in enumerate(zip(truths, pairs, strict=True)):
        wanted[at, queries, truth.labels[chosen]] = 1.0
        found.append(boxes_cxcywh[at, queries])
        true.append(truth.boxes_cxcywh[chosen].to(exact))
        scales.append(truth.scale.to(exact).expand(len(chosen), 4))
    there, target = torch.cat(found), torch.cat(true)
    total = normaliser + rules.normaliser_eps
    return {
        "label": weights.label * focal(logits, wanted).sum() / total,
        "l1": weights.l1 * (rules.numbers(there) - rules.numbers(target)).abs().sum() / total,
        "iou": weights.iou * (1 - rules.overlap(there, target, torch.cat(scales))).sum() / total,
    }
