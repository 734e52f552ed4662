"""The losses of predictions that stand for boxes one by one, and the two ways in which the field computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.detection.boxes import giou, giou_with_floor, to_xyxy
from convattn.detection.losses import EPS, focal
from convattn.detection.set_matching import CostWeights, assign, focal_cost
from convattn.detection.truth import Truth

__all__ = ["DETREX", "MMDET", "LossWeights", "Rules", "match", "set_losses"]

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
    normaliser_eps: float  # added to the number of boxes that losses are divided by


DETREX = Rules(1e-8, giou, in_pixels=False, normaliser_eps=0.0)
MMDET = Rules(1e-12, giou_with_floor, in_pixels=True, normaliser_eps=EPS)


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
    logits, boxes, wanted = logits.to(exact), boxes.to(exact), truth.boxes_cxcywh.to(exact)
    l1 = (boxes[:, None] - wanted).abs().sum(-1)
    scale = truth.scale.to(exact) if rules.in_pixels else 1.0
    overlap = rules.giou((to_xyxy(boxes) * scale)[:, None], (to_xyxy(wanted) * scale)[None])
    return weights.l1 * l1 + weights.label * focal_cost(logits, truth.labels, rules.focal_eps) + weights.iou * -overlap


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
        scales.append(truth.scale.to(exact).expand(len(chosen), 4) if rules.in_pixels else torch.ones_like(true[-1]))
    there, target, scale = torch.cat(found), torch.cat(true), torch.cat(scales)
    overlap = rules.giou(to_xyxy(there) * scale, to_xyxy(target) * scale)
    total = normaliser + rules.normaliser_eps
    return {
        "label": weights.label * focal(logits, wanted).sum() / total,
        "l1": weights.l1 * (there - target).abs().sum() / total,
        "iou": weights.iou * (1 - overlap).sum() / total,
    }
