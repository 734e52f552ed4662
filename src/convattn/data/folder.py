"""Images in a folder per class, `CLASS/…`, and in folders without any order."""

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from convattn.data.dataset import DataError
from convattn.data.file_names import WHAT_COUNTS, is_image_name, is_service_name, is_unread_name, tell_unread
from convattn.data.files import LabelledFiles, PlainFiles, listing, tell_loose
from convattn.data.names import Names
from convattn.data.progress import late_progress
from convattn.data.stated_labels import places_of
from convattn.shown import brief

__all__ = ["Content", "content_of", "images_below", "list_folder", "open_class_folders"]


@dataclass
class Content:
    """What lies in a folder itself, in order of the names; hidden and service files are left out."""

    folders: list[str] = field(default_factory=list)
    links: set[str] = field(default_factory=set)  # those of the folders that are links
    images: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # images of formats that are not read here
    others: list[str] = field(default_factory=list)


def content_of(folder: str | Path) -> Content:
    """What lies in a folder, by one look at it and none at its files; DataError if it cannot be read."""
    found = Content()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_service_name(entry.name):
                    continue
                if _is_folder(entry):
                    found.folders.append(entry.name)
                    if entry.is_symlink():
                        found.links.add(entry.name)
                elif is_image_name(entry.name):
                    found.images.append(entry.name)
                elif is_unread_name(entry.name):
                    found.unread.append(entry.name)
                else:
                    found.others.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder}: could not be read ({error.strerror or error})") from None
    for names in (found.folders, found.images, found.unread, found.others):
        names.sort()
    return found


def open_class_folders(folder: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """The images below one folder, which has one folder per class; they may lie deeper in these.

    By default the classes are the sub-folders in order of their names; then classes and images have the order of
    torchvision's ImageFolder. DataError if a class has no image, a sub-folder is not among `classes`, or one is a link
    to another's images.
    """
    content = content_of(folder)
    _check_links(folder, content)
    found = content.folders
    known = found if classes is None else classes
    places = places_of(found, known, folder)
    names: list[str] = []
    labels = array("i")
    unread: list[str] = []
    with late_progress(f"listing {folder}", len(found)) as done:
        for number, name in enumerate(found):
            names += (f"{name}/{below}" for below in images_below(folder / name, unread))
            labels.extend([places[number]] * (len(names) - len(labels)))
            done(number)
    tell_unread(folder, unread)
    present = set(labels)
    empty = [name for name, label in zip(found, places, strict=True) if label not in present]
    if empty:
        raise DataError(f"{folder}: no image in class {brief(map(repr, empty))}; {WHAT_COUNTS}")
    tell_loose(folder, content.images)
    return LabelledFiles(PlainFiles(Names(names, f"{folder}/")), labels, known)


def images_below(folder: Path, unread: list[str] | None = None) -> Iterator[str]:
    """Every image below a folder, however deep: its path within the folder, in a fixed order.

    Hidden and service folders, and links that lead back to where they are, are passed over. `unread` gets the names of
    images of formats that are not read here. DataError if a folder cannot be read.
    """
    top = str(folder)
    found: list[tuple[str, list[str]]] = []
    waiting: list[tuple[str, tuple[str, ...]]] = [(top, ())]  # folders, and the real ones in which links were followed
    while waiting:
        root, through = waiting.pop()
        content = content_of(root)
        if content.images:
            found.append((root, content.images))
        if unread is not None:
            unread += content.unread
        for name in content.folders:
            if name not in content.links:
                waiting.append((f"{root}/{name}", through))
            elif not _leads_back(inside := (*through, os.path.realpath(root)), f"{root}/{name}"):
                waiting.append((f"{root}/{name}", inside))
    for root, files in sorted(found):
        inner = root[len(top) :].lstrip("/")
        for name in files:
            yield f"{inner}/{name}" if inner else name


def list_folder(folder: Path) -> str:
    """What is in a folder, shortened, for errors."""
    content = content_of(folder)
    folders = [f"{name}/" for name in content.folders]
    return listing([*folders, *content.images, *content.unread, *content.others]) or "an empty folder"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _check_links(folder: Path, content: Content) -> None:
    """Refuse a class that is a link to the images of another: they would be of two classes."""
    top = Path(os.path.realpath(folder))
    taken = {top / name: name for name in content.folders if name not in content.links}
    around = dict.fromkeys((top, *top.parents), "")  # what lies around a class, with its name; "" around all
    for name in sorted(content.links):
        target = Path(os.path.realpath(folder / name))
        there = around.get(target, next((taken[place] for place in (target, *target.parents) if place in taken), None))
        if there is not None:
            others = f"class {there!r}" if there else "all the classes"
            raise DataError(f"{folder}: class {name!r} is a link to the images of {others}; remove it")
        taken[target] = name
        for place in target.parents:
            around.setdefault(place, name)


def _leads_back(folders: Sequence[str], link: str) -> bool:
    """Whether a link leads to one of these folders or to one that they lie in: two may lead to each other."""
    target = os.path.realpath(link).rstrip("/")
    return any(f"{folder}/".startswith(f"{target}/") for folder in folders)
