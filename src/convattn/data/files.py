"""Image files wherever they lie, and the data set of those that have labels."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from convattn.data.dataset import DataError
from convattn.data.images import read_bytes, read_image
from convattn.data.names import NumberedClasses

__all__ = [
    "LABEL_SUFFIXES",
    "Files",
    "LabelledFiles",
    "PlainFiles",
    "is_image_name",
    "is_shard_name",
    "label_files",
    "listing",
    "unknown_classes",
]

LABEL_SUFFIXES = ("cls", "json")  # of what states an image's label in a WebDataset shard


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


class LabelledFiles:
    """A data set of image files.

    Args:
        files: where they are.
        labels: one per file, 0 to len(classes) - 1.
        classes: the names of the labels.
    """

    def __init__(self, files: Files, labels: Iterable[int], classes: Sequence[str]):
        self.files = files
        self.paths = files.paths
        self.labels: Sequence[int] = array("i", labels)
        self.classes = classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        return read_image(self.read_bytes(index), self.paths[index])

    def read_bytes(self, index: int) -> bytes:
        """The content of the file at `index`; raises ImageError if it cannot be read."""
        return self.files.read_bytes(index)


def label_files(
    files: Files,
    given: Sequence[int | str],
    where: object,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> LabelledFiles:
    """A data set of files whose labels are stated one by one: all as numbers, or all as names of classes.

    Args:
        files: where they are.
        given: one per file, the number of its class from 0, or its name.
        where: what states them, for errors.
        classes: the classes and their order. By default `names`; without them, names are sorted, and numbers run up to
            the greatest.
        names: what numbers mean, if that is known.

    Raises:
        DataError: if there is no file, numbers and names are mixed, or one is not among the classes, naming it.
    """
    if not given:
        raise DataError(f"{where}: no image; files ending in {', '.join(IMG_EXTENSIONS)} count")
    numbers = [label for label in given if isinstance(label, int)]
    words = [label for label in given if isinstance(label, str)]
    if numbers and words:
        raise DataError(f"{where}: labels are numbers ({numbers[0]}) and names ({words[0]!r}); write all in one way")
    if numbers:
        known = names or classes or NumberedClasses(max(numbers) + 1)
        wrong = min(numbers) if min(numbers) < 0 else max(numbers)
        if not 0 <= wrong < len(known):
            raise DataError(f"{where}: label {wrong} must be between 0 and {len(known) - 1}, for {len(known)} classes")
        if classes is None or list(known) == list(classes):
            return LabelledFiles(files, numbers, known)
        words = [known[number] for number in numbers]
    ordered = classes or names or sorted(set(words))
    position = {name: index for index, name in enumerate(ordered)}
    unknown = sorted({name for name in words if name not in position})
    if unknown:
        raise DataError(unknown_classes(where, unknown, "the training classes" if classes else "the listed classes"))
    return LabelledFiles(files, (position[name] for name in words), ordered)


def unknown_classes(where: object, unknown: Sequence[str], among: str = "the training classes") -> str:
    """One line that says which classes are not known."""
    shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    return f"{where}: class {shown} is here but not among {among}; add it there or remove it here"


def is_image_name(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return name.lower().endswith(IMG_EXTENSIONS)


def is_shard_name(name: str) -> bool:
    """Whether a member of an archive is an image or may state the label of one."""
    return is_image_name(name) or name.lower().endswith(tuple(f".{suffix}" for suffix in LABEL_SUFFIXES))


def listing(names: Iterable[str], most: int = 6) -> str:
    """What was found, shortened, for errors."""
    found = sorted(names)
    if not found:
        return "an empty folder"
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
