"""Which query stands for which box: the cheapest way to give each box one.

Source: "End-to-end object detection with transformers", Carion et al., ECCV 2020, arXiv 2005.12872, section 3.1,
with the focal cost of Deformable DETR, arXiv 2010.04159.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convattn.extras import require

__all__ = ["CostWeights", "assign", "focal_cost"]

_ALPHA, _GAMMA = 0.25, 2.0


@dataclass(frozen=True)
class CostWeights:
    """What counts how much in a match, and in a loss."""

    label: float = 2.0
    l1: float = 5.0
    iou: float = 2.0


def focal_cost(logits: Tensor, labels: Tensor, eps: float) -> Tensor:
    """What it costs that a query stands for a box of a class, (queries, boxes): negative where it is sure of it.

    Args:
        logits: (queries, classes).
        labels: (boxes,) int64.
        eps: added inside of logarithms.
    """
    p = logits.sigmoid()
    positive = -(p + eps).log() * _ALPHA * (1 - p) ** _GAMMA
    negative = -(1 - p + eps).log() * (1 - _ALPHA) * p**_GAMMA
    return (positive - negative)[:, labels]


def assign(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each table of costs (queries, boxes) the cheapest pairs, by rising query: queries, boxes, int64.

    All tables come from the device together, and all pairs go there together, so that it is waited for once.

    Raises:
        ValueError: if a cost is not finite.
        MissingExtra: if scipy is not installed.
    """
    linear_sum_assignment = require("scipy.optimize", "detection").linear_sum_assignment
    if not costs:
        return []
    device = costs[0].device
    flat = torch.cat([cost.detach().flatten().double() for cost in costs]).cpu()
    if not flat.isfinite().all():
        raise ValueError("costs of matching are not finite: the outputs of the network have overflowed")
    tables = flat.split([cost.numel() for cost in costs])
    pairs = [linear_sum_assignment(table.view_as(cost).numpy()) for table, cost in zip(tables, costs, strict=True)]
    both = torch.as_tensor(np.concatenate(pairs, axis=1), device=device)  # (2, pairs)
    return [(queries, boxes) for queries, boxes in both.split([len(queries) for queries, _ in pairs], dim=1)]
