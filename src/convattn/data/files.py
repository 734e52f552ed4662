"""Image files wherever they lie, and the data set of those that have labels."""

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from PIL import Image

from convattn.data.dataset import DataError, tell
from convattn.data.file_names import WHAT_COUNTS
from convattn.data.images import read_bytes, read_image
from convattn.data.labelled import Labelled
from convattn.data.names import Names
from convattn.data.stated_labels import StatedLabels, places_of
from convattn.shown import brief

__all__ = ["Files", "LabelledFiles", "PlainFiles", "label_as_stated", "label_by_name", "listing", "tell_loose"]


class Files(Protocol):
    """Files that can be read by their number."""

    @property
    def paths(self) -> Sequence[str]:
        """One per file: where it is."""

    def read_bytes(self, index: int) -> bytes:
        """The content of a file; raises ImageError if it cannot be read or is not to be trusted."""


class PlainFiles:
    """Files of the file system, by their paths."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def read_bytes(self, index: int) -> bytes:
        """The content of a file; raises ImageError if it cannot be read."""
        return read_bytes(self.paths[index])


class LabelledFiles(Labelled):
    """Image files that have labels, 0 to len(classes) - 1 each."""

    def __init__(self, files: Files, labels: Iterable[int], classes: Sequence[str]):
        self.files = files
        self.paths = files.paths
        self.labels: Sequence[int] = array("i", labels)
        self.classes = classes

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        return read_image(self.read_bytes(index), self.paths[index])

    def read_bytes(self, index: int) -> bytes:
        """The content of the file at `index`; raises ImageError if it cannot be read."""
        return self.files.read_bytes(index)

    def part(self, indices: Sequence[int]) -> "LabelledFiles":
        """Some of the images, which are files of the file system."""
        files = PlainFiles(Names(self.paths[at] for at in indices))
        return LabelledFiles(files, (self.labels[at] for at in indices), self.classes)


def label_by_name(
    files: Files, names: Sequence[str], where: object, classes: Sequence[str] | None = None
) -> LabelledFiles:
    """A data set of files of which each lies with its class, whose name is known: in a folder, or in its own name.

    Classes are sorted where they are not known. DataError if there is no file, or a class is not among them.
    """
    if not names:
        raise DataError(f"{where}: no image; {WHAT_COUNTS}")
    found = sorted(set(names))
    known = found if classes is None else classes
    place = dict(zip(found, places_of(found, known, where), strict=True))
    return LabelledFiles(files, (place[name] for name in names), known)


def label_as_stated(
    files: Files,
    stated: StatedLabels,
    classes: Sequence[str] | None = None,
    names: Mapping[int, str] | None = None,
) -> LabelledFiles:
    """A data set of files whose labels are stated one by one; `names` says what numbers mean, where that is stated.

    DataError if there is no file, or a label is none of the classes or could be meant in two ways.
    """
    if not stated.codes:
        raise DataError(f"{stated.where}: no image; {WHAT_COUNTS}")
    return LabelledFiles(files, *stated.understood(classes, names))


def listing(names: Iterable[str], most: int = 6) -> str:
    """What was found, in order and shortened, for errors."""
    return brief(sorted(names), most)


def tell_loose(where: object, names: Collection[str]) -> None:
    """Say which images lie beside the class folders of a place and not in one."""
    if names:
        tell(f"{where}: passed over beside the class folders: {listing(names, 3)}; only what lies in one has a class")
