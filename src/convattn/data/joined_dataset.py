"""Two data sets as one: labelled images, and others that come without labels."""

from array import array
from collections.abc import Sequence
from typing import overload

from PIL import Image

from convattn.data.labelled import ImageDataset, Labelled

__all__ = ["JoinedDataset"]


class JoinedDataset(Labelled):
    """The images of `first`, then those of `second`, under the classes of `first`; labels of `second` may be -1."""

    def __init__(self, first: ImageDataset, second: ImageDataset):
        self._parts = first, second
        self.classes = first.classes
        self.labels: Sequence[int] = array("i", [*first.labels, *second.labels])
        self.paths: Sequence[str] = _Chain(first.paths, second.paths)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        first, second = self._parts
        return first.read(index) if index < len(first) else second.read(index - len(first))


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
