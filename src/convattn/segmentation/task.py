"""What the training loop needs to know of segmentation."""

from typing import Any

import torch
from torch import Tensor, nn

from convattn.segmentation.confusion import IGNORED
from convattn.segmentation.loss import pixel_losses
from convattn.segmentation.options import EvaluationOptions, SegmentationOptions
from convattn.segmentation.scores import Confusions
from convattn.task import Batch, Task

__all__ = ["Segmentation"]


class Segmentation(Task):
    """Cross entropy of every pixel, of the head and of the one that learns beside it.

    Args:
        num_classes: how many.
        options: the averaging of the loss, the weight of the second head.
        image_size: height and width of `blank` images.
    """

    def __init__(self, num_classes: int, options: SegmentationOptions, image_size: tuple[int, int]):
        self.num_classes = num_classes
        self.options = options
        self.image_size = image_size

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The mean losses of a batch by the reference's names, at the size of its labels."""
        return pixel_losses(
            model(batch.images),
            batch.targets.long(),
            mean=self.options.loss_mean,
            auxiliary_weight=self.options.auxiliary_weight,
        )

    def blank(self, device: torch.device) -> Batch:
        """Black images of which no pixel counts."""
        labels = torch.full((2, *self.image_size), IGNORED, dtype=torch.uint8, device=device)
        return Batch(torch.zeros(2, 3, *self.image_size, device=device), labels, ["", ""])

    def head(self, model: Any) -> nn.Module:
        """All that stands on the backbone."""
        found: nn.ModuleList = model.on_backbone()
        return found

    def meter(self) -> Confusions:
        """Of `METRICS`, whole images."""
        return Confusions(self.num_classes, EvaluationOptions(), lambda image: [image])
