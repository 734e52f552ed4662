"""What every data set of labelled images offers, wherever they come from."""

from collections.abc import Sequence
from typing import Protocol

from convattn.task import Dataset

__all__ = ["ImageDataset", "Labelled"]


class ImageDataset(Dataset, Protocol):
    """Images of which each has a class."""

    @property
    def classes(self) -> Sequence[str]:
        """Their names, in the order of the labels."""

    @property
    def labels(self) -> Sequence[int]:
        """One per image, 0 to len(classes) - 1."""


class Labelled:
    """A data set that has the labels of all its images at hand."""

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, index: int) -> int:
        """The label of the image at `index`."""
        return self.labels[index]
