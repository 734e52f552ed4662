"""How much two boxes have in common, by the formulas of mmdetection; torchvision divides by no least area."""

import torch
from torch import Tensor

__all__ = ["giou", "giou_with_floor", "iof", "iou"]

_LEAST_AREA = 1e-6


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union of boxes that are broadcast, (…, 4), (…, 4) -> (…); of nothing over nothing 0."""
    inter, union, _ = _areas(a_xyxy, b_xyxy)
    return inter / union.clamp(min=_LEAST_AREA)


def iof(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over the first box's area, of boxes that are broadcast."""
    inter, _, _ = _areas(a_xyxy, b_xyxy)
    return inter / _area(a_xyxy).clamp(min=_LEAST_AREA)


def giou(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (Rezatofighi et al., arXiv 1902.09630), with `eps` added to both areas that are divided by."""
    inter, union, around = _areas(a_xyxy, b_xyxy)
    return inter / (union + eps) - (around - union) / (around + eps)


def giou_with_floor(a_xyxy: Tensor, b_xyxy: Tensor, eps: float = 1e-6) -> Tensor:
    """The same, with both areas at least `eps`."""
    inter, union, around = _areas(a_xyxy, b_xyxy)
    union, around = union.clamp(min=eps), around.clamp(min=eps)
    return inter / union - (around - union) / around


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What both cover, what either covers, and what the box around both covers."""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    return inter, _area(a) + _area(b) - inter, around[..., 0] * around[..., 1]
