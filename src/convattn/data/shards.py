"""WebDataset shards on disk: tar archives in which `KEY.jpg` and `KEY.cls` (or `KEY.json`) lie side by side.

Indexed once like any archive, so that order is a true shuffle over all shards and an epoch resumes at any place.
"""

import itertools
import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from convattn.data.dataset import DataError, tell
from convattn.data.file_names import LABEL_SUFFIXES, is_image_name
from convattn.data.files import LabelledFiles, label_as_stated
from convattn.data.known_classes import LabelError, impossible, is_code, number_in
from convattn.data.stated_labels import StatedLabels
from convattn.data.tar_cache import Member
from convattn.data.tars import TarFiles
from convattn.data.text_files import text_lines

__all__ = ["LONGEST_LABEL", "are_shards", "grouped", "image_suffix", "label_in", "label_parts", "open_shards"]

_CLASS_FILES = ("classes.txt", "classnames.txt")
LONGEST_LABEL = 2**20  # bytes of a file that states one
_Part = TypeVar("_Part")


def grouped(parts: Iterable[tuple[str, _Part]]) -> Iterator[tuple[str, dict[str, _Part]]]:
    """Samples from the members of a shard: neighbours that share a key, which is the name up to its first point.

    Gives each key with its parts by their suffix, in small letters. A suffix that comes again begins another sample.
    """
    current, found = "", dict[str, _Part]()
    for name, part in parts:
        folder, base = posixpath.split(name)
        stem, _, suffix = base.partition(".")
        key, suffix = (f"{folder}/{stem}" if folder else stem), suffix.lower()
        if found and (key != current or suffix in found):
            yield current, found
            found = {}
        current = key
        found[suffix] = part
    if found:
        yield current, found


def are_shards(names: Iterable[str]) -> bool:
    """Whether the members of archives are samples: one states a label in a `.cls`, or half have a `.json` beside."""
    images = labelled = 0
    for _, parts in grouped((name, None) for name in names):
        kinds = {suffix.rpartition(".")[2] for suffix in parts}
        if "cls" in kinds:
            return True
        if image_suffix(parts) is not None:
            images += 1
            labelled += "json" in kinds
    return labelled > 0 and 2 * labelled >= images


def image_suffix(parts: Iterable[str]) -> str | None:
    """Which part of a sample is the image: `jpg` goes before `seg.png`; of several alike the first."""
    images = [suffix for suffix in parts if is_image_name(f"x.{suffix}")]
    return min(images, key=lambda suffix: "." in suffix, default=None)


def label_in(parts: Mapping[str, bytes]) -> str:
    """The label that a sample states: the content of its `.cls`, or `label` or `cls` of its `.json`.

    Raises:
        LabelError: if it states none, or one that no class can have.
    """
    try:
        if "cls" in parts:
            label = _small(parts["cls"]).decode("utf-8-sig").strip()
        elif "json" in parts:
            content = json.loads(_small(parts["json"]))
            label = content["label"] if "label" in content else content["cls"]
        else:
            raise LabelError(_no_label(parts))
    except LabelError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LabelError("its .cls or .json states no label") from None
    unusable = isinstance(label, bool) or (isinstance(label, float) and not label.is_integer())
    if unusable or not isinstance(label, int | float | str) or label == "":
        shown = repr(label)
        raise LabelError(
            f"its label is {shown if len(shown) < 60 else shown[:60] + '…'}; it must be a number or a name"
        )
    text = str(label)
    if not is_code(text):
        number_in(text)
    return text


def open_shards(
    tars: Sequence[Path], members: Sequence[Member], where: object, classes: Sequence[str] | None = None
) -> LabelledFiles:
    """The samples of shards; `members` are their images and labels, in the order of the shards.

    Numbers are named by `classes.txt` (or `classnames.txt`) beside the shards or a folder higher, a class a line.
    DataError if there is no image, or a label is not among the classes.
    """
    images: list[Member] = []
    labels: list[str | None] = []
    several: dict[str, str] = {}  # samples with images among which none is the first
    for tar, of_tar in itertools.groupby(members, key=lambda member: member.tar):
        with open(tars[tar], "rb") as file:
            for key, parts in grouped((member.name, member) for member in of_tar):
                image, label = _indexed(key, parts, file)
                images.append(image)
                labels.append(label)
                if len(several) < 1 and (others := _equals(parts)):
                    several[image.name] = others
    wrong = impossible({label for label in labels if label is not None}, classes or ())
    for at, label in enumerate(labels if wrong else ()):
        if label in wrong:
            images[at], labels[at] = replace(images[at], problem=str(wrong[label])), None
    fallback = next((label for label in labels if label is not None), None)
    if images and fallback is None:
        raise DataError(f"{where}: no sample is to be used: {images[0].name}: {images[0].problem}")
    for name, others in several.items():
        tell(f"{where}: samples have several images ({others}); the first is taken, such as {name}")
    stated = StatedLabels(where, lambda at: images[at].name)
    for label in labels:
        stated.add(fallback or "" if label is None else label)
    return label_as_stated(TarFiles(tars, images), stated, classes, _class_names(tars))


def _indexed(key: str, parts: Mapping[str, Member], file: BinaryIO) -> tuple[Member, str | None]:
    """The image of a sample and its label; None, and a problem with the image, where one of them is missing."""
    suffix = image_suffix(parts)
    image = next(iter(parts.values())) if suffix is None else parts[suffix]
    if suffix is None:
        return replace(image, problem="no image beside it"), None
    if image.problem:
        return image, None
    try:
        return image, label_in({suffix: _read(file, parts[suffix]) for suffix in label_parts(parts)})
    except LabelError as error:
        return replace(image, problem=str(error)), None


def label_parts(parts: Iterable[str]) -> list[str]:
    """The parts of a sample that state its label; without any, those that would if the key had no point in it."""
    return [suffix for suffix in parts if suffix in LABEL_SUFFIXES] or [
        suffix for suffix in parts if suffix.rpartition(".")[2] in LABEL_SUFFIXES
    ]


def _no_label(parts: Iterable[str]) -> str:
    beside = next((suffix for suffix in parts if suffix.rpartition(".")[2] in LABEL_SUFFIXES), None)
    if beside is None:
        return "no .cls or .json beside it states its label"
    return (
        f"its label is called {beside!r}: as in webdataset, the key of a sample ends at the first point of its name; "
        "write names without other points"
    )


def _equals(parts: Iterable[str]) -> str:
    """The images of a sample among which none goes before the others."""
    images = [suffix for suffix in parts if is_image_name(f"x.{suffix}")]
    plain = [suffix for suffix in images if "." not in suffix] or images
    return ", ".join(plain) if len(plain) > 1 else ""


def _small(content: bytes) -> bytes:
    if len(content) > LONGEST_LABEL:
        raise LabelError(f"its label takes {len(content):,} bytes")
    return content


def _read(file: BinaryIO, member: Member) -> bytes:
    if member.problem or member.size > LONGEST_LABEL:
        raise LabelError(member.problem or f"its label takes {member.size:,} bytes")
    file.seek(member.offset)
    return file.read(member.size)


def _class_names(tars: Sequence[Path]) -> dict[int, str] | None:
    beside = Path(os.path.abspath(tars[0])).parent  # so that the folder above is the same from everywhere
    for folder in (beside, beside.parent):
        for name in _CLASS_FILES:
            if (folder / name).is_file():
                return _lines_of(folder / name)
    return None


def _lines_of(file: Path) -> dict[int, str]:
    with text_lines(file) as lines:
        names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(
            f"{file}: line {names.index('') + 1} is blank; each line names a class, in the order of their numbers"
        )
    return dict(enumerate(names))
