"""Losses of many boxes, divided by a number that is counted apart."""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from convattn.detection.boxes import giou_with_floor

__all__ = [
    "EPS",
    "averaged",
    "centerness_of",
    "focal",
    "focal_of_background",
    "giou_loss",
    "mask_loss",
    "mean_over_processes",
]

EPS = 1.1920928955078125e-07  # float32's, in every precision: mmdetection adds it to every number that it divides by
_ALPHA = 0.25


def averaged(losses: Tensor, count: Tensor | float, eps: float = EPS) -> Tensor:
    """The sum of losses over a number counted apart, a scalar."""
    return losses.sum() / (count + eps)


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """The focal loss of each number; alpha ¼, gamma 2 (Lin et al., arXiv 1708.02002)."""
    return sigmoid_focal_loss(logits, wanted, _ALPHA, 2.0)


def focal_of_background(logits: Tensor) -> Tensor:
    """`focal` where nothing is wanted, in fewer steps."""
    return (_ALPHA - 1) * logits.sigmoid().square() * F.logsigmoid(-logits)  # softplus is inexact above 20


def mask_loss(logits: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross entropy over all pixels of all regions, each in the map of its own class; of none 0.

    Args:
        logits: (n, classes, h, w).
        labels: (n,).
        wanted: (n, h, w), 0 or 1.
    """
    if not len(labels):
        return logits.sum()  # 0, and the weights take part, for who waits for their gradient
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(own, wanted.to(own))


def mean_over_processes(count: Tensor) -> Tensor:
    """A number that losses are divided by, averaged over the processes that learn together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return count
    total = count.detach().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def giou_loss(got_xyxy: Tensor, wanted_xyxy: Tensor) -> Tensor:
    """1 - GIoU of each pair of boxes (n, 4), (n,)."""
    return 1 - giou_with_floor(got_xyxy, wanted_xyxy)


def centerness_of(anchors_xyxy: Tensor, objects_xyxy: Tensor) -> Tensor:
    """How near an anchor's centre is to that of the object around it, (n,) 0 to 1 (FCOS, arXiv 1904.01355)."""
    centres = (anchors_xyxy[:, :2] + anchors_xyxy[:, 2:]) / 2
    low, high = centres - objects_xyxy[:, :2], objects_xyxy[:, 2:] - centres
    return (torch.minimum(low, high) / torch.maximum(low, high)).prod(1).sqrt()
