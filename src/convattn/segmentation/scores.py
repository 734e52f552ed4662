"""The meter of a segmenter: its confusion on images of any sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convattn.segmentation.confusion import confusion, scores
from convattn.segmentation.looking import Look, look_of
from convattn.segmentation.options import METRICS, EvaluationOptions
from convattn.task import Batch, Meter

__all__ = ["Confusions"]


class Confusions(Meter):
    """The meter of `METRICS`, percent: one confusion over all pixels of all images, at the size of their masks.

    Args:
        classes: how many.
        options: how images are looked at.
        views: makes the images of a batch, at each of the options' scales, out of what the transform left of one.
    """

    def __init__(self, classes: int, options: EvaluationOptions, views: Callable[[Tensor], list[Tensor]]):
        self.classes = classes
        self.options = options
        self.views = views
        self._counts: Tensor | None = None

    def run(self, model: nn.Module, batch: Batch) -> list[Tensor]:
        """The class of each pixel, (H, W) uint8, for each image of the batch."""
        look, maps = look_of(model, self.options, max(self.options.scales)), [*batch.targets]
        if self.options.looks_again:
            return [self._averaged(look, image, labels) for image, labels in zip(batch.images, maps, strict=True)]
        if isinstance(batch.images, Tensor) and len({labels.shape for labels in maps}) == 1:
            groups: Sequence[Tensor] = [batch.images]
        else:
            groups = [image[None] for image in batch.images]
        found: list[Tensor] = []
        for images in groups:
            height, width = maps[len(found)].shape[-2:]
            found += torch.cat([*look.labels(images, (height, width))], dim=1)
        return found

    def update(self, outputs: Sequence[Tensor], batch: Batch) -> None:
        """Count the pixels of a batch by what `run` gave."""
        for predicted, labels in zip(outputs, batch.targets, strict=True):
            counts = confusion(predicted, labels, self.classes)
            self._counts = counts if self._counts is None else self._counts + counts

    def parts(self) -> dict[str, Any]:
        """The counts, for those of other processes to be added."""
        none = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        return {"counts": none if self._counts is None else self._counts}

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """The figures; not numbers where no pixel had a label."""
        found = scores(parts["counts"])
        return {metric.name: getattr(found, metric.name) for metric in METRICS}

    def _averaged(self, look: Look, picture: Tensor, labels: Tensor) -> Tensor:
        views = [view[None].to(labels.device) for view in self.views(picture)]
        height, width = labels.shape[-2:]
        probable = look.probabilities(views, (height, width), flip=self.options.flip)
        return probable[0].argmax(0).to(torch.uint8)
