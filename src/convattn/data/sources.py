"""A data set by its name on the command line: `digits`, or where its files are; the layout is recognised."""

import re
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from convattn.data.dataset import DataError, ImageDataset
from convattn.data.digits import open_digits
from convattn.data.files import Files, LabelledFiles, PlainFiles, is_image_name
from convattn.data.flat import open_by_label_file, open_by_synset
from convattn.data.folder import class_folders, images_below, list_folder, open_class_folders
from convattn.data.lists import LIST_SUFFIXES, open_list, paths_in_list
from convattn.data.names import Names
from convattn.data.shards import open_shards
from convattn.data.tars import TarFiles, open_class_tars, scan_tars
from convattn.extras import require

__all__ = ["is_stream", "open_data", "open_evaluation", "open_unlabelled"]

_LAYOUT = "expected DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE (or DIR/test/…), or another layout of the data page"
_SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}  # names that serve, the first found
_TAR_WORDS = {"train": {"train"}, "val": {"val", "valid", "validation"}, "test": {"test"}}  # in the names of archives
_Place = Path | list[Path]  # a folder, a file, or several archives


def open_data(
    source: str | Path,
    split: str,
    image_size: int = 32,
    *,
    validation: str | Path | None = None,
    validation_labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """One split of a data set, in whatever layout of the data page it lies. Labels follow the classes of training.

    Args:
        source: "digits" for scikit-learn's handwritten digits, a folder with the splits, or shards such as
            `train-{0000..0146}.tar`, which hold the training split alone.
        split: "train", "val" (where there is none, `test` serves) or "test" (and the other way round).
        image_size: side of the digits in pixels; other images keep their size until they are transformed.
        validation: where the other splits are, if not in `source`: as `open_evaluation` takes it.
        validation_labels: label file of these, if their folder has none of its own (`open_by_label_file`).
        classes: those of the training split, if they are known already; saves a look at it.

    Raises:
        DataError: if it is missing, empty or laid out in another way, or a class is present only in validation.
    """
    if split not in _SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(_SPLITS)}")
    if str(source) == "digits" and (split == "train" or validation is None):
        return open_digits(split, image_size)
    if split == "train":
        return _open(_split_of(source, split))
    if classes is None:
        classes = _training_classes(source, image_size)
    if validation is not None:
        return open_evaluation(validation, image_size, labels=validation_labels, classes=classes)
    return _open(_split_of(source, split), validation_labels, classes)


def open_evaluation(
    source: str | Path,
    image_size: int = 32,
    *,
    labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """Images to evaluate on: the split `val` or `test` of a folder, or what is there itself, in any layout.

    Args:
        source: "digits" (their test split), a folder, an archive, shards or a list.
        image_size: side of the digits in pixels.
        labels: label file of images without class folders. ImageNet's synset at the beginning of their names does too.
        classes: the classes and their order; by default those that are found.

    Raises:
        DataError: if it is missing, empty or laid out in another way.
    """
    if str(source) == "digits":
        return open_digits("test", image_size)
    place = _place(source)
    if isinstance(place, Path) and place.is_dir():
        inner = _find_split(place, "val")
        if inner is None and _find_split(place, "train") is not None:
            raise DataError(f"{place}: has train but neither val nor test; {_LAYOUT}")
        place = inner or place
    return _open(place, labels, classes)


def open_unlabelled(source: str | Path) -> LabelledFiles:
    """Every image of a folder however deep, of archives (those below a folder without images too), or of a list.

    Labels are -1, and there are no classes.

    Raises:
        DataError: if there is none.
    """
    place = _place(source, "give a folder of images, a .tar file, or a list of files")
    files: Files
    if isinstance(place, Path) and place.is_dir():
        names = Names(images_below(place), f"{place}/")
        tars = [] if names else sorted(place.rglob("*.tar"))
        files = _images_in(tars) if tars else PlainFiles(names)
    elif isinstance(place, Path) and place.suffix in LIST_SUFFIXES:
        files = PlainFiles(paths_in_list(place))
    else:
        tars = _archives(place)
        files = _images_in(tars)
    if not files.paths:
        raise DataError(
            f"{source}: no image; files ending in {', '.join(IMG_EXTENSIONS)} count, and those in .tar files"
        )
    return LabelledFiles(files, [-1] * len(files.paths), ())


def is_stream(source: str | Path) -> bool:
    """Whether a source can only be read from its beginning, by a `StreamLoader`."""
    return str(source).startswith("pipe:")


def _open(place: _Place, labels: str | Path | None = None, classes: Sequence[str] | None = None) -> LabelledFiles:
    if isinstance(place, list) or place.is_file():
        if isinstance(place, Path) and place.suffix in LIST_SUFFIXES:
            return open_list(place, classes)
        return _open_archives(_archives(place), place, labels, classes)
    if labels is not None:
        ordered = sorted(images_below(place), key=lambda name: name.rpartition("/")[2])
        return open_by_label_file(PlainFiles(Names(ordered, f"{place}/")), Path(labels), classes)
    if class_folders(place):
        return open_class_folders(place, classes)
    tars = sorted(place.glob("*.tar"))
    if tars:
        return _open_archives(tars, place, labels, classes)
    names = Names(images_below(place), f"{place}/")
    if not names:
        raise DataError(f"{place}: no class folders; {_LAYOUT}, found {list_folder(place)}")
    return open_by_synset(PlainFiles(names), place, classes)


def _open_archives(
    tars: list[Path], place: _Place, labels: str | Path | None, classes: Sequence[str] | None
) -> LabelledFiles:
    where = place if isinstance(place, Path) else f"{tars[0]} and {len(tars) - 1} more"
    members = scan_tars(tars)
    images = [member for member in members if is_image_name(member.name)]
    if labels is not None:
        ordered = sorted(images, key=lambda member: member.name.rpartition("/")[2])
        return open_by_label_file(TarFiles(tars, ordered), Path(labels), classes)
    if len(images) < 2 * (len(members) - len(images)):  # about one .cls or .json an image
        return open_shards(tars, members, where, classes)
    return open_class_tars(tars, images, where, classes)


def _images_in(tars: list[Path]) -> TarFiles:
    return TarFiles(tars, (member for member in scan_tars(tars) if is_image_name(member.name)))


def _training_classes(source: str | Path, image_size: int) -> Sequence[str]:
    if str(source) != "digits":
        place = _split_of(source, "train")
        if isinstance(place, Path) and place.is_dir() and class_folders(place):
            return class_folders(place)
    return open_data(source, "train", image_size).classes


def _split_of(source: str | Path, split: str) -> _Place:
    place = _place(source)
    if isinstance(place, list) or place.is_file():
        if split == "train":
            return place
        raise DataError(f"{source}: holds the training split alone; name the other with data.validation")
    found = _find_split(place, split)
    if found is None:
        raise DataError(f"{place}: no folder {' or '.join(_SPLITS[split])}; {_LAYOUT}, found {list_folder(place)}")
    return found


def _find_split(folder: Path, split: str) -> _Place | None:
    """A folder, list or archive of this name, or archives that have it in theirs."""
    tars = sorted(folder.glob("*.tar"))
    for name in _SPLITS[split]:
        if (folder / name).is_dir():
            return folder / name
        for suffix in LIST_SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
        ours = [tar for tar in tars if _TAR_WORDS[name] & set(re.split(r"[^a-z]+", tar.stem.lower()))]
        if ours:
            return ours[0] if len(ours) == 1 else ours
    return None


def _place(source: str | Path, expected: str = _LAYOUT) -> _Place:
    text = str(source)
    if is_stream(source):
        raise DataError(f"{text}: a pipe can be trained from, not validated on or looked through; name files")
    path = Path(text)
    if not path.exists() and "{" in text:
        return _archives([Path(name) for name in require("braceexpand", "train").braceexpand(text)])
    if not path.exists():
        raise DataError(f"{text}: no such folder; {expected}")
    return path


def _archives(place: _Place) -> list[Path]:
    tars = place if isinstance(place, list) else [place]
    for tar in tars:
        if not tar.is_file():
            raise DataError(f"{tar}: no such file")
        if tar.suffix != ".tar":
            raise DataError(f"{tar}: neither a .tar file nor a list ({', '.join(LIST_SUFFIXES)})")
    return tars
