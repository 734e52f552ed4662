"""What a detector learns, and by what it is judged."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convattn.detection.average_precision import AveragePrecision
from convattn.detection.batch_targets import ImageTargets
from convattn.detection.options import METRICS
from convattn.task import Batch, Task

__all__ = ["Detection"]

_LAYER = re.compile(r"(layer\d+|stage\d+|encoder)\.")  # of losses that each layer of a decoder has


class Detection(Task):
    """The losses of a detector, and average precision.

    Args:
        num_classes: how many.
        masks: whether masks are learnt and judged.
        image_size: height and width of `blank` images.
    """

    def __init__(self, num_classes: int, *, masks: bool, image_size: tuple[int, int]):
        self.num_classes, self.masks, self.image_size = num_classes, masks, image_size

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The detector's own losses by name; those of one kind, of the layers of a decoder, are added up."""
        found: dict[str, Tensor] = {}
        for name, loss in model(batch.images, batch.targets).items():
            kind = _LAYER.sub("", name)
            found[kind] = found[kind] + loss if kind in found else loss
        return found

    def blank(self, device: torch.device) -> Batch:
        """A black image without an object."""
        target: dict[str, Tensor] = {
            "boxes": torch.zeros(0, 4, device=device),
            "labels": torch.zeros(0, dtype=torch.int64, device=device),
            "masks": torch.zeros(0, *self.image_size, dtype=torch.uint8, device=device),
        }
        return Batch(torch.zeros(1, 3, *self.image_size, device=device), ImageTargets([target]), [""])

    def head(self, model: Any) -> nn.Module:
        """All that stands on the backbone."""
        found: nn.ModuleList = model.on_backbone()
        return found

    def meter(self) -> AveragePrecision:
        """Of `METRICS`."""
        return _Figures(self.num_classes, masks=self.masks)


class _Figures(AveragePrecision):
    """The figures that a run tells, without those of sizes that no object has."""

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        told = {metric.name for metric in METRICS}
        found = super().result(parts)
        return {name: value for name, value in found.items() if name in told and not math.isnan(value)}
