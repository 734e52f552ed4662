"""Images without labels beside images with them, for learning from a teacher."""

from array import array
from collections.abc import Sequence
from typing import overload

from PIL import Image

from convattn.data.dataset import ImageDataset

__all__ = ["JoinedDataset"]


class JoinedDataset:
    """A labelled data set followed by an unlabelled one, whose labels are -1.

    Args:
        labelled: gives the classes.
        unlabelled: as `open_unlabelled` gives it.
    """

    def __init__(self, labelled: ImageDataset, unlabelled: ImageDataset):
        self._parts = (labelled, unlabelled)
        self.classes = labelled.classes
        self.labels: Sequence[int] = array("i", [*labelled.labels, *unlabelled.labels])
        self.paths: Sequence[str] = _Chain(labelled.paths, unlabelled.paths)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        first = len(self._parts[0])
        return self._parts[0].read(index) if index < first else self._parts[1].read(index - first)


class _Chain(Sequence[str]):
    def __init__(self, first: Sequence[str], second: Sequence[str]):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]
        return self._first[at] if at < len(self._first) else self._second[at - len(self._first)]
