"""What every data set of labelled images offers, wherever they come from."""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

__all__ = ["DataError", "DataWarning", "ImageDataset"]


class DataError(ValueError):
    """A data set that is missing, empty, or not laid out as expected."""


class DataWarning(UserWarning):
    """What was chosen, mapped or passed over in a data set, in one line."""


class ImageDataset(Protocol):
    """Labelled images, read one at a time."""

    @property
    def classes(self) -> Sequence[str]:
        """Their names, in the order of the labels."""

    @property
    def labels(self) -> Sequence[int]:
        """One per image, 0 to len(classes) - 1."""

    @property
    def paths(self) -> Sequence[str]:
        """One per image: where it is, or a name for it."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
