"""From many scored boxes to the few that are shown."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import batched_nms

__all__ = ["Found", "Surest", "best_of_classes", "stretch", "suppressed", "surest"]


@dataclass(frozen=True)
class Found:
    """What is left, the surest first."""

    boxes_xyxy: Tensor  # (n, 4)
    scores: Tensor  # (n,)
    labels: Tensor  # (n,) int64
    index: Tensor  # (n,) int64: where it stood before


@torch.compiler.disable  # one size a call: compiled, it would be compiled anew each time
def suppressed(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, *, overlap: float, most: int | None = None) -> Found:
    """Boxes (n, 4) without those that overlap a surer one of the same label by more than `overlap`, `most` at most."""
    exact = torch.promote_types(boxes_xyxy.dtype, torch.float32)
    kept = batched_nms(boxes_xyxy.to(exact), scores.to(exact), labels, overlap)[:most]
    return Found(boxes_xyxy[kept], scores[kept], labels[kept], kept)


def best_of_classes(
    boxes_xyxy: Tensor, scores: Tensor, *, least: float, overlap: float, most: int, factor: Tensor | None = None
) -> Found:
    """What is found in an image by scores of every class.

    Args:
        boxes_xyxy: (n, 4), or (n, classes, 4) where each class has its own.
        scores: (n, classes).
        least: scores must be above.
        overlap: IoU above which the less sure of two boxes of one class goes.
        most: how many are left.
        factor: (n,) of the scores, once `least` was asked of them without it.

    Returns:
        The boxes; `index` counts box by box, class by class.
    """
    classes = scores.shape[1]
    row, label = (scores > least).nonzero(as_tuple=True)
    boxes = boxes_xyxy[row] if boxes_xyxy.ndim == 2 else boxes_xyxy[row, label]
    sure = scores[row, label]
    found = suppressed(boxes, sure if factor is None else sure * factor[row], label, overlap=overlap, most=most)
    return replace(found, index=(row * classes + label)[found.index])


@dataclass(frozen=True)
class Surest:
    """The surest of each image of a batch, the first the surest: as many in all, whatever they hold."""

    boxes_xyxy: Tensor  # (B, n, 4)
    scores: Tensor  # (B, n) float32 or better
    labels: Tensor  # (B, n) int64
    queries: Tensor  # (B, n) int64: the query that each is of


def surest(logits: Tensor, boxes_xyxy: Tensor, most: int) -> Surest:
    """The surest pairs of a query and a class; a box may have several classes, and none is suppressed.

    Args:
        logits: (B, queries, classes).
        boxes_xyxy: of the queries, (B, queries, 4).
        most: how many an image; all pairs, if there are fewer.
    """
    classes = logits.shape[2]
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid().flatten(1)
    scores, index = scores.topk(min(most, scores.shape[1]), dim=1)
    query = index.div(classes, rounding_mode="floor")
    return Surest(boxes_xyxy.gather(1, query[..., None].expand(-1, -1, 4)), scores, index % classes, query)


def stretch(size: tuple[int, int], original: tuple[int, int], like: Tensor) -> Tensor:
    """What the pixels of an original are multiplied with to be those of a size: width, height, width, height."""
    down, right = size[0] / original[0], size[1] / original[1]
    return like.new_tensor([right, down, right, down])
