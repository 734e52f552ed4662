"""A look at every image of a data set before training: what is broken, double, leaked between splits, or odd."""

import hashlib
import os
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convattn.data.dataset import DataError, DataWarning
from convattn.data.files import LabelledFiles
from convattn.data.images import ImageError, decode_with_mode, pieces
from convattn.data.sources import has_splits, open_data, open_evaluation, open_test, open_training

__all__ = ["UNREADABLE_LIMIT", "DataCheck", "Found", "Opened", "SplitCheck", "check_data", "open_splits"]

UNREADABLE_LIMIT = 0.01  # share of the training or validation images above which training stops
_STOPPING = {"train": "training images", "val": "validation images", "all": "images"}
_CHUNK = 256  # images handed to the threads at a time
_LONGEST = 4.0  # width over height, or the other way round, above which an image is odd
_DARK = 64  # of 255: below it an image of 16 bits has left the two highest unused
_FAR = 16.0  # times more or fewer pixels than the median, from which on it is odd too


@dataclass(frozen=True)
class Found:
    """One image that is named."""

    split: str
    path: str
    class_name: str
    index: int  # within its split


@dataclass(frozen=True)
class SplitCheck:
    """What one split holds."""

    images: int
    classes: Mapping[str, int]  # images of each, broken ones too
    corrupt: Mapping[str, str]  # file -> why
    modes: Mapping[str, int]  # Pillow's, as in the file: RGB, L, CMYK, …
    widths: tuple[float, float, float]  # smallest, median, greatest, pixels; zeros without a readable image
    heights: tuple[float, float, float]


@dataclass(frozen=True)
class DataCheck:
    """What was found in a data set."""

    splits: Mapping[str, SplitCheck]
    duplicates: Sequence[Sequence[Found]]  # groups of the same picture within one split
    leaked: Sequence[Sequence[Found]]  # groups of the same picture in more than one
    odd: Sequence[tuple[Found, str]]  # and what is odd about it
    stops: Sequence[str]  # why a run would not start or end; each in one line
    notes: Sequence[str] = ()  # what was chosen, mapped or passed over when it was opened

    @property
    def mislabelled(self) -> int:
        """Groups of the same picture in different classes."""
        return sum(len({found.class_name for found in group}) > 1 for group in (*self.duplicates, *self.leaked))


@dataclass(frozen=True)
class _Seen:
    problem: str = ""
    digest: bytes = b""  # of the pixels: a copy in another format, or with other metadata, has the same
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    brightest: int = 255  # of 255, where the file has more than 8 bits


@dataclass(frozen=True)
class Opened:
    """The splits of a data set."""

    splits: dict[str, LabelledFiles]
    problems: list[str]  # why a run would not start, in one line each
    notes: list[str]  # what was chosen, mapped or passed over


def open_splits(
    source: str | Path, *, validation: str | Path | None = None, validation_labels: str | Path | None = None
) -> Opened:
    """Open a data set as training does (`open_training`), and its test images where they are beside.

    A source that has no splits, such as class folders alone or one archive, is looked at as one split named `all`;
    that training would refuse it is among the problems.

    Args:
        source, validation, validation_labels: as `open_data` takes them.

    Raises:
        DataError: if there are no training images, with the reason that training would give.
    """
    notes: list[str] = []
    with _telling(notes):
        splits, problems = {}, []
        if validation is None and not has_splits(source):
            splits = {"all": _with_files(open_evaluation(source, labels=validation_labels))}
            try:
                open_training(source, validation_labels=validation_labels)
            except DataError as error:
                problems.append(str(error))
            return Opened(splits, problems, notes)
        try:
            train, held_out = open_training(source, validation=validation, validation_labels=validation_labels)
            splits = {"train": _with_files(train), "val": _with_files(held_out)}
        except DataError as error:
            splits = {"train": _with_files(open_data(source, "train"))}
            problems.append(str(error))
        try:
            test = open_test(source, classes=splits["train"].classes)
            if test is not None and all(test.paths != other.paths for other in splits.values()):
                splits["test"] = _with_files(test)
        except DataError as error:
            notes.append(f"the test images are not looked at: {error}")
    return Opened(splits, problems, notes)


def check_data(opened: Opened, on_images: Callable[[int], None] | None = None) -> DataCheck:
    """Read and decode every image once, on all processors.

    Args:
        opened: the splits, and what is known of them already.
        on_images: called with a number of images that are done.
    """
    checks: dict[str, SplitCheck] = {}
    odd: list[tuple[Found, str]] = []
    by_content: dict[bytes, list[Found]] = defaultdict(list)
    notes = list(dict.fromkeys(opened.notes))
    for split, data in opened.splits.items():
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; what matters is an error
            for one in _examined(data):
                seen.append(one)
                if on_images is not None:
                    on_images(1)
        notes += _lost_classes(split, data, seen)
        named = [Found(split, data.paths[at], data.classes[data.labels[at]], at) for at in range(len(data))]
        for found, one in zip(named, seen, strict=True):
            if one.digest:
                by_content[one.digest].append(found)
        checks[split] = _summary(data, seen)
        odd += _odd(named, seen)
    groups = [group for group in by_content.values() if len(group) > 1]
    leaked = [group for group in groups if len({found.split for found in group}) > 1]
    duplicates = [group for group in groups if len({found.split for found in group}) == 1]
    problems = [*opened.problems, *_stops(checks)]
    return DataCheck(checks, duplicates, leaked, odd, problems, notes)


@contextmanager
def _telling(notes: list[str]) -> Iterator[None]:
    """Keep what is told of data as a list of lines."""
    others: list[warnings.WarningMessage] = []  # to be warned of anew: all, if an error ends this
    try:
        with warnings.catch_warnings(record=True) as told:
            others = told
            warnings.simplefilter("always", DataWarning)
            yield
        others = [one for one in told if not issubclass(one.category, DataWarning)]
        notes += [str(one.message) for one in told if issubclass(one.category, DataWarning)]
    finally:
        for one in others:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _with_files(data: object) -> LabelledFiles:
    if not isinstance(data, LabelledFiles):
        raise DataError("digits: they are in memory and whole; name a folder, an archive or a list")
    return data


def _examined(data: LabelledFiles) -> Iterator[_Seen]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders let go of Python's lock
        for start in range(0, len(data), _CHUNK):
            yield from pool.map(lambda at: _examine(data, at), range(start, min(start + _CHUNK, len(data))))


def _examine(data: LabelledFiles, index: int) -> _Seen:
    try:
        content = data.read_bytes(index)
        image, mode = decode_with_mode(content, data.paths[index])
    except ImageError as error:
        return _Seen(str(error))
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    for _, piece in pieces(image):
        digest.update(piece.tobytes())
    brightest = int(np.asarray(image).max()) if mode.startswith("I") else 255
    return _Seen("", digest.digest(), mode, image.size, brightest)


def _summary(data: LabelledFiles, seen: Sequence[_Seen]) -> SplitCheck:
    counts = Counter(data.labels)
    readable = [one for one in seen if not one.problem]
    return SplitCheck(
        len(data),
        {name: counts[label] for label, name in enumerate(data.classes)},
        {data.paths[at]: one.problem for at, one in enumerate(seen) if one.problem},
        dict(Counter(one.mode for one in readable).most_common()),
        _spread([one.size[0] for one in readable]),
        _spread([one.size[1] for one in readable]),
    )


def _lost_classes(split: str, data: LabelledFiles, seen: Sequence[_Seen]) -> list[str]:
    left = {data.labels[at] for at, one in enumerate(seen) if not one.problem}
    return [f"{split}: no image of class {data.classes[at]!r} can be read" for at in sorted(set(data.labels) - left)]


def _spread(values: Sequence[int]) -> tuple[float, float, float]:
    return (min(values), statistics.median(values), max(values)) if values else (0, 0, 0)


def _odd(named: Sequence[Found], seen: Sequence[_Seen]) -> Iterator[tuple[Found, str]]:
    """Images whose mode is not that of most, that are very dark for their bits or very long, or of another size."""
    readable = [one for one in seen if not one.problem]
    if not readable:
        return
    usual = Counter(one.mode for one in readable).most_common(1)[0][0]
    median = statistics.median(one.size[0] * one.size[1] for one in readable)
    for found, one in zip(named, seen, strict=True):
        if one.problem:
            continue
        width, height = one.size
        reasons = []
        if one.mode != usual:
            reasons.append(f"mode {one.mode}")
        if one.brightest < _DARK:
            reasons.append(
                f"at most {one.brightest} of 255 bright, as are 12 bits in a file of 16: scale its numbers up"
            )
        if max(width, height) > _LONGEST * min(width, height) or not median / _FAR < width * height < median * _FAR:
            reasons.append(f"{width} × {height} pixels")
        if reasons:
            yield found, ", ".join(reasons)


def _stops(checks: Mapping[str, SplitCheck]) -> Iterator[str]:
    for split, check in checks.items():
        broken = len(check.corrupt)
        if split in _STOPPING and broken > UNREADABLE_LIMIT * check.images:
            yield (
                f"{broken} of {check.images} {_STOPPING[split]} cannot be read, more than {UNREADABLE_LIMIT:.0%}; "
                "repair or remove them"
            )
