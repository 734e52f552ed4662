"""What every data set of labelled images offers, wherever they come from."""

import warnings
from collections.abc import Sequence
from typing import Protocol

from convattn.task import Dataset

__all__ = ["DataError", "DataWarning", "ImageDataset", "Labelled", "tell"]


class DataError(ValueError):
    """A data set that is missing, empty, or not laid out as expected."""


class DataWarning(UserWarning):
    """What was chosen, mapped or passed over in a data set, in one line."""


def tell(line: str) -> None:
    """Warn, in one line, of what was chosen, mapped or passed over."""
    warnings.warn(line, DataWarning, stacklevel=2)


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
