"""How right a classifier is, counted on the device: as much memory for a million images as for one."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.classification.options import METRICS
from convattn.task import Batch, Meter

__all__ = ["Scores", "judge", "widest_float"]


def judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable classes (B, k), k = 5 or all if there are fewer, and each image's cross entropy (B,), nats.

    Args:
        logits: (B, classes) float32.
        labels: (B,) on the same device.

    Raises:
        ValueError: on the CPU, if a label lies outside the classes; elsewhere the loss of its image is not a number.
    """
    classes = logits.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if labels.device.type == "cpu" and outside.any():
        raise ValueError(f"label {int(labels[outside][0])} does not exist in a model of {classes} classes")
    losses = F.cross_entropy(logits, labels.clamp(0, classes - 1), reduction="none")
    return logits.topk(min(5, classes), dim=1).indices, losses.masked_fill(outside, float("nan"))


class Scores(Meter):
    """The meter of `top1` and `top5`, percent, and of `val_loss`, the mean cross entropy in nats."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # images, and sums over them: loss, right, right among five

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count a batch by its logits (B, classes)."""
        ranked, losses = judge(outputs, batch.targets)
        right = ranked == batch.targets[:, None]
        counted = [torch.ones_like(losses), losses, right[:, 0], right.any(dim=1)]
        sums = torch.stack([values.to(widest_float(outputs.device)).sum() for values in counted])
        self._sums = sums if self._sums is None else self._sums + sums

    def parts(self) -> dict[str, Any]:
        """The sums, for those of other processes to be added."""
        return {"sums": torch.zeros(4, dtype=torch.float64) if self._sums is None else self._sums}

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """The figures; not numbers where there was no image."""
        images, loss, top1, top5 = parts["sums"].tolist()  # waits for the device, once
        if not images:
            return {metric.name: float("nan") for metric in METRICS}
        return {"val_loss": loss / images, "top1": 100 * (top1 / images), "top5": 100 * (top5 / images)}


def widest_float(device: torch.device) -> torch.dtype:
    """What figures are added up in: Apple's GPUs have no float64, and their float32 counts to 16 million images."""
    return torch.float32 if device.type == "mps" else torch.float64
