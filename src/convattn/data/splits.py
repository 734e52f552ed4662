"""Where the splits of a folder lie: one rule for folders, lists and archives.

A split is a folder, a list or an archive called by one of its words, in small or capital letters; or archives that have
one among the words of their names, such as `ILSVRC2012_img_train.tar` or `photos-train-0000.tar`. What goes exactly by
the word goes before these. A list beside a folder of the same split states the labels of that folder's images. Two
things that could both be the split are refused.
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from convattn.data.dataset import DataError, tell
from convattn.data.folder import Content, content_of, images_below
from convattn.data.lists import LIST_SUFFIXES, is_list_name
from convattn.data.split_words import SPLIT_WORDS, SPLITS
from convattn.shown import brief, shown

__all__ = ["Place", "find_split", "holds_classes", "split_to_validate", "split_words"]


def split_to_validate(splits: Container[str], source: object) -> str:
    """Which of a data set's splits a run is validated on: `val`, or `test` with a word about it; DataError without."""
    if "val" in splits:
        return "val"
    if "test" in splits:
        tell(
            f"{shown(source)}: no {split_words('val')}; test serves, so the best epoch is chosen by the test images: "
            "hold some training images out to report a fair figure"
        )
        return "test"
    raise DataError(
        f"{shown(source)}: no validation images; put some into a split val, or hold some out: --data.validation 0.2"
    )


@dataclass(frozen=True)
class Place:
    """Where the images of a split are."""

    path: Path  # a folder, a list or an archive; of several archives the first
    tars: tuple[Path, ...] = ()
    labels: Path | None = None  # a list that states the labels of the folder's images

    @property
    def is_folder(self) -> bool:
        """Whether it is no archive and no list."""
        return not self.tars and self.path.is_dir()

    @property
    def is_list(self) -> bool:
        """Whether it is a file that is called like one."""
        return not self.tars and not self.path.is_dir() and is_list_name(self.path.name)

    def __str__(self) -> str:
        if len(self.tars) > 1:
            return f"{self.path} and {len(self.tars) - 1} more"
        return str(self.path)


def find_split(folder: Path, split: str) -> Place | None:
    """Where "train", "val" or "test" lies in a folder, by the names in it alone; None if it is not there.

    DataError if several could be meant, naming them.
    """
    words, content = SPLITS[split], content_of(folder)
    folders = [folder / name for name in content.folders if name.lower() in words]
    lists = [folder / name for name in content.others if is_list_name(name) and Path(name).stem.lower() in words]
    archives = [folder / name for name in content.others if name.lower().endswith(".tar") and _words(name) & set(words)]
    tars = [tar for tar in archives if tar.stem.lower() in words]
    exact = [*folders, *lists, *tars]
    if exact:
        further = [tar for tar in archives if tar not in tars]
        if further and tars:
            raise DataError(_ambiguous(folder, split, [*exact, *further]))
        found = _exact(folder, split, folders, lists, tars)
        if further:
            tell(f"{found}: holds the {split} images; {further[0].name} beside it is not read")
    elif archives:
        found = _archives(folder, split, archives)
    else:
        return None
    taken = found.path.name if len(found.tars) < 2 else f"{found.path.name} …"
    if split not in _words(found.path.name, exactly=True):
        tell(f"{folder}: the {split} images are those of {taken}")
    return found


def split_words(split: str) -> str:
    """The words that name a split, for errors."""
    *others, last = SPLITS[split]
    return f"{', '.join(others)} or {last}"


def holds_classes(folder: Path) -> bool:
    """Whether the folders in a folder are classes, though one may be called like a split (`train`, of CIFAR-100).

    So it is where one folder alone is called like a split, no list is, and all hold images: that one no folders, lists
    or archives.
    """
    content = content_of(folder)
    called = [name for name in content.folders if name.lower() in SPLIT_WORDS]
    beside = any(Path(name).stem.lower() in SPLIT_WORDS for name in content.others)
    if len(called) != 1 or len(content.folders) < 2 or beside:
        return False
    if not _holds_images_alone(content_of(folder / called[0])):
        return False
    return all(next(images_below(folder / name), None) is not None for name in content.folders)


def _exact(folder: Path, split: str, folders: list[Path], lists: list[Path], tars: list[Path]) -> Place:
    found = [*folders, *lists, *tars]
    if len(found) == 1:
        return Place(found[0], tuple(tars))
    if len(folders) == len(lists) == 1 and not tars:
        if next(images_below(folders[0]), None) is None:
            if _holds_archives(content_of(folders[0])):
                raise DataError(_ambiguous(folder, split, found))
            return Place(lists[0])
        tell(f"{lists[0]}: states the labels of the images in {folders[0].name}/")
        return Place(folders[0], labels=lists[0])
    raise DataError(_ambiguous(folder, split, found))


def _archives(folder: Path, split: str, archives: list[Path]) -> Place:
    """Archives with a word of the split in their names: one, or several whose names differ in numbers alone."""
    for tar in archives:
        others = [other for other, words in SPLITS.items() if other != split and _words(tar.name) & set(words)]
        if others:
            raise DataError(
                f"{tar}: could be the {split} or the {others[0]} images by its name; call it {split}.tar or so"
            )
    if len({re.sub(r"\d+", "", tar.stem.lower()) for tar in archives}) > 1:
        raise DataError(_ambiguous(folder, split, archives))
    return Place(archives[0], tuple(archives))


def _ambiguous(folder: Path, split: str, found: list[Path]) -> str:
    names = [path.name + ("/" if path.is_dir() else "") for path in found]
    return (
        f"{folder}: {brief(names, 4)} could all be the {split} images; leave one, or put what belongs together into "
        f"{split}/"
    )


def _words(name: str, exactly: bool = False) -> set[str]:
    """The words of a name without its suffix; with `exactly` as they are, otherwise in small letters."""
    stem = name
    for suffix in (*LIST_SUFFIXES, ".tar"):
        if name.lower().endswith(suffix):
            stem = name[: -len(suffix)]
    return set(re.split(r"[^A-Za-z]+", stem if exactly else stem.lower()))


def _holds_images_alone(content: Content) -> bool:
    lists = any(map(is_list_name, content.others))
    return bool(content.images) and not content.folders and not lists and not _holds_archives(content)


def _holds_archives(content: Content) -> bool:
    return any(name.lower().endswith(".tar") for name in content.others)
