"""Images in a folder per class, `CLASS/…`, and in folders without any order."""

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from convattn.data.dataset import DataError
from convattn.data.files import LabelledFiles, PlainFiles, is_image_name, listing, unknown_classes
from convattn.data.names import Names
from convattn.data.progress import late_progress

__all__ = ["class_folders", "images_below", "list_folder", "open_class_folders"]


def class_folders(folder: Path) -> list[str]:
    """The sub-folders of a folder in order of their names, as torchvision's classes."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def open_class_folders(folder: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """The images below one folder, which has one folder per class; they may lie deeper in these.

    Args:
        folder: its sub-folders are the classes.
        classes: the classes and their order; by default the sub-folders in order of their names. Classes and images
            then have the order of torchvision's ImageFolder.

    Raises:
        DataError: if a class has no image, or a sub-folder is not among `classes`.
    """
    found = class_folders(folder)
    known = found if classes is None else classes
    position = {name: index for index, name in enumerate(known)}
    unknown = [name for name in found if name not in position]
    if unknown:
        raise DataError(unknown_classes(folder, unknown))
    names: list[str] = []
    labels = array("i")
    with late_progress(f"listing {folder}", len(found)) as done:
        for number, name in enumerate(found):
            names += (f"{name}/{below}" for below in images_below(folder / name))
            labels.extend([position[name]] * (len(names) - len(labels)))
            done(number)
    present = set(labels)
    empty = [name for name in found if position[name] not in present]
    if empty:
        raise DataError(
            f"{folder}: no image in class {', '.join(map(repr, empty[:5]))}{' and others' if len(empty) > 5 else ''}; "
            f"files ending in {', '.join(IMG_EXTENSIONS)} count"
        )
    return LabelledFiles(PlainFiles(Names(names, f"{folder}/")), labels, known)


def images_below(folder: Path) -> Iterator[str]:
    """Every image below a folder, however deep: its path within the folder, in a fixed order."""
    top = str(folder)
    for root, _, files in sorted(os.walk(top, followlinks=True)):
        inner = root[len(top) :].lstrip("/")
        for name in sorted(files):
            if is_image_name(name):
                yield f"{inner}/{name}" if inner else name


def list_folder(folder: Path) -> str:
    """What is in a folder, shortened, for errors."""
    return listing(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
