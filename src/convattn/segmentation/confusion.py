"""How right the classes of pixels are: one table, summed over a data set before anything is divided."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.segmentation.options import IGNORED

__all__ = ["IGNORED", "Scores", "confusion", "scores"]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How many pixels of a class (row) were taken for another (column), (classes, classes) int64, on the device.

    Args:
        predicted: integers of any shape, 0 to `classes` - 1.
        labels: of the same shape; pixels of `IGNORED`, and others outside the classes, are left out.
        classes: how many there are.
    """
    labels, predicted = labels.long(), predicted.long()
    known = (labels >= 0) & (labels < classes)
    # One bin behind the last takes what is left out: no waiting for the device to count it.
    places = torch.where(known, labels * classes + predicted, classes * classes).flatten()
    return torch.bincount(places, minlength=classes * classes + 1)[:-1].view(classes, classes)


@dataclass(frozen=True)
class Scores:
    """What a confusion says, in percent; a class that cannot be judged has no number there (NaN).

    IoU is intersection over union, Acc the share of a class's pixels that were found, Dice twice the intersection over
    the sum of both areas. Means leave out what is not a number; a class that was predicted and never labelled has an
    IoU of 0, which counts, and no Acc.
    """

    iou: Tensor  # (classes,) float64
    acc: Tensor
    dice: Tensor
    precision: Tensor
    pixels: Tensor  # (classes,) int64: labelled ones
    aacc: float  # of all pixels

    @property
    def miou(self) -> float:
        """Mean of the classes' IoU."""
        return self.iou.nanmean().item()

    @property
    def macc(self) -> float:
        """Mean of the classes' Acc."""
        return self.acc.nanmean().item()

    @property
    def mdice(self) -> float:
        """Mean of the classes' Dice."""
        return self.dice.nanmean().item()


def scores(counts: Tensor) -> Scores:
    """The figures of a confusion (classes, classes)."""
    counts = counts.double().cpu()
    right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return Scores(
        iou=100 * right / (labelled + predicted - right),
        acc=100 * right / labelled,
        dice=200 * right / (labelled + predicted),
        precision=100 * right / predicted,
        pixels=labelled.long(),
        aacc=(100 * right.sum() / counts.sum()).item(),
    )
