"""WebDataset shards on disk: tar archives in which `KEY.jpg` and `KEY.cls` (or `KEY.json`) lie side by side.

Indexed once like any archive, so that order is a true shuffle over all shards and an epoch resumes at any place.
"""

import itertools
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from convattn.data.dataset import DataError
from convattn.data.files import LABEL_SUFFIXES, LabelledFiles, is_image_name, label_files
from convattn.data.member import Member
from convattn.data.tars import TarFiles

__all__ = ["LabelError", "grouped", "image_suffix", "label_in", "open_shards"]

_CLASS_FILES = ("classes.txt", "classnames.txt")
_LONGEST_LABEL = 2**20  # bytes
_Part = TypeVar("_Part")


class LabelError(ValueError):
    """A sample without a label that can be understood."""


def grouped(parts: Iterable[tuple[str, _Part]]) -> Iterator[tuple[str, dict[str, _Part]]]:
    """Samples from the members of a shard: neighbours that share a key, which is the name up to its first point.

    Gives each key with its parts by their suffix, in small letters.
    """
    current, found = "", dict[str, _Part]()
    for name, part in parts:
        folder, base = posixpath.split(name)
        stem, _, suffix = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if found and key != current:
            yield current, found
            found = {}
        current = key
        found.setdefault(suffix.lower(), part)
    if found:
        yield current, found


def image_suffix(parts: Mapping[str, object]) -> str | None:
    """Which part of a sample is the image."""
    return next((suffix for suffix in parts if is_image_name(f".{suffix}")), None)


def label_in(parts: Mapping[str, bytes]) -> int | str:
    """The label that a sample states: the content of its `.cls`, or `label` or `cls` of its `.json`.

    Raises:
        LabelError: if it states none.
    """
    try:
        if "cls" in parts:
            label = parts["cls"].decode().strip()
        elif "json" in parts:
            content = json.loads(parts["json"])
            label = content["label"] if "label" in content else content["cls"]
        else:
            raise LabelError("no .cls or .json beside it states its label")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, LabelError):
            raise
        raise LabelError("its .cls or .json states no label") from None
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise LabelError(f"its label is {label!r}; it must be a number or a name")
    return int(label) if isinstance(label, str) and label.isdecimal() else label


def open_shards(
    tars: Sequence[Path], members: Sequence[Member], where: object, classes: Sequence[str] | None = None
) -> LabelledFiles:
    """The samples of shards.

    Numbers are named by `classes.txt` (or `classnames.txt`) beside the shards or a folder higher, a class a line.

    Args:
        tars: the shards.
        members: their images and labels, in the order of the shards.
        where: what errors call them all.
        classes: the classes and their order.

    Raises:
        DataError: if there is no image, or a label is not among the classes.
    """
    images: list[Member] = []
    labels: list[int | str | None] = []
    for tar, of_tar in itertools.groupby(members, key=lambda member: member.tar):
        with open(tars[tar], "rb") as file:
            for key, parts in grouped((member.name, member) for member in of_tar):
                image, label = _indexed(key, parts, file)
                images.append(image)
                labels.append(label)
    fallback = next((label for label in labels if label is not None), None)
    if images and fallback is None:
        raise DataError(f"{where}: no sample is to be used: {images[0].name}: {images[0].problem}")
    given = [fallback if label is None else label for label in labels]
    return label_files(TarFiles(tars, images), cast(list[int | str], given), where, classes, _class_names(tars))


def _indexed(key: str, parts: Mapping[str, Member], file: BinaryIO) -> tuple[Member, int | str | None]:
    """The image of a sample and its label; None, and a problem with the image, where one of them is missing."""
    suffix = image_suffix(parts)
    image = next(iter(parts.values())) if suffix is None else parts[suffix]
    if suffix is None:
        return replace(image, problem="no image beside it"), None
    if image.problem:
        return image, None
    try:
        return image, label_in({suffix: _read(file, parts[suffix]) for suffix in LABEL_SUFFIXES if suffix in parts})
    except LabelError as error:
        return replace(image, problem=str(error)), None


def _read(file: BinaryIO, member: Member) -> bytes:
    if member.problem or member.size > _LONGEST_LABEL:
        raise LabelError(member.problem or f"its label takes {member.size:,} bytes")
    file.seek(member.offset)
    return file.read(member.size)


def _class_names(tars: Sequence[Path]) -> list[str] | None:
    for folder in (tars[0].parent, tars[0].parent.parent):
        for name in _CLASS_FILES:
            if (folder / name).is_file():
                return [line.strip() for line in (folder / name).read_text().splitlines() if line.strip()]
    return None
