"""A look at every image of a data set before training: what is broken, double, leaked between splits, or odd.

What holds for images of every task is here; a task's own `open_splits` and `check_data` add what its targets say.
"""

import hashlib
import os
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from convattn.data.dataset import DataWarning
from convattn.data.images import pieces
from convattn.task import Dataset, Table

__all__ = [
    "UNREADABLE_LIMIT",
    "DataCheck",
    "Examined",
    "Found",
    "Opened",
    "Seen",
    "Sheet",
    "SplitCheck",
    "examined",
    "facts_of",
    "pixels_told",
    "sheets_of",
    "some_of",
    "splits_table",
    "stops_of",
    "telling",
]

UNREADABLE_LIMIT = 0.01  # share of the training or validation images above which training stops
_STOPPING = {"train": "training images", "val": "validation images", "all": "images"}
_EVEN, _OF_CLASS = 12, 4  # images on the sheet of all, and on that of a class
_CLASSES = 60  # that have a sheet; of more, the smallest and the greatest
_CHUNK = 256  # images handed to the threads at a time
_LONGEST = 4.0  # width over height, or the other way round, above which an image is odd
_DARK = 64  # of 255: below it an image of 16 bits has left the two highest unused
_FAR = 16.0  # times more or fewer pixels than the median, from which on it is odd too


@dataclass(frozen=True)
class Found:
    """One image that is named."""

    split: str
    path: str
    class_name: str  # empty where an image has no class as a whole
    index: int  # within its split

    def __str__(self) -> str:
        return f"{self.path} ({self.class_name})" if self.class_name else self.path


@dataclass(frozen=True)
class SplitCheck:
    """What one split holds."""

    images: int
    classes: Mapping[str, int]  # images of each, broken ones too; of masks pixels
    corrupt: Mapping[str, str]  # file -> why it cannot be read, or learnt from
    modes: Mapping[str, int]  # Pillow's, as in the file: RGB, L, CMYK, …
    widths: tuple[float, float, float]  # smallest, median, greatest, pixels; zeros without a readable image
    heights: tuple[float, float, float]
    kinds: Mapping[str, str] = field(default_factory=dict)  # of those in `corrupt`: what several such are called

    def as_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""
        content = asdict(self)
        del content["kinds"]
        return content


@dataclass(frozen=True)
class Sheet:
    """Images that are shown together, under a heading."""

    title: str
    note: str
    split: str
    indices: Sequence[int]


@dataclass(frozen=True)
class DataCheck:
    """What was found in a data set."""

    broken: ClassVar[str] = "cannot be read"  # what is said of images that would be set aside
    contradiction: ClassVar[str] = "under different classes"  # how the same picture is there, where that is wrong

    splits: Mapping[str, SplitCheck]
    duplicates: Sequence[Sequence[Found]]  # groups of the same picture within one split
    leaked: Sequence[Sequence[Found]]  # groups of the same picture in more than one
    contradicting: int  # of both kinds of groups: those of which different things are said
    odd: Sequence[tuple[Found, str]]  # and what is odd about it
    stops: Sequence[str]  # why a run would not start or end; each in one line
    sheets: Sequence[Sheet]
    notes: Sequence[str] = ()  # what was chosen, mapped or passed over when it was opened
    colours: Mapping[str, Sequence[int]] = field(default_factory=dict)  # of classes that are shown in some

    @classmethod
    def of(
        cls,
        opened: "Opened",
        found: "Examined",
        checks: Mapping[str, SplitCheck],
        sheets: Sequence[Sheet],
        notes: Sequence[str],
        **more: Any,
    ) -> Self:
        """What every task tells of its images, beside what it has counted of each split."""
        stops = [*opened.problems, *stops_of(checks, cls.broken)]
        pictures = (found.duplicates, found.leaked, found.contradicting, found.odd)
        return cls(checks, *pictures, stops, sheets, notes, **more)

    def as_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""
        return {
            "splits": {name: split.as_json() for name, split in self.splits.items()},
            "duplicates": [[asdict(found) for found in group] for group in self.duplicates],
            "leaked": [[asdict(found) for found in group] for group in self.leaked],
            "contradicting": self.contradicting,
            "odd": [asdict(found) | {"what": what} for found, what in self.odd],
            "notes": list(self.notes),
            "stops": list(self.stops),
        }

    def class_table(self, most: int | None = None) -> Table:
        """What each split holds of each class; of more than `most` classes the smallest and the greatest."""
        names = some_of(next(iter(self.splits.values())).classes, most)
        rows = tuple((name, *(f"{split.classes[name]:,}" for split in self.splits.values())) for name in names)
        return Table("Classes", ("class", *self.splits), rows, frozenset(range(1, len(self.splits) + 1)))


@dataclass(frozen=True)
class Seen:
    """What a look at one image has told."""

    problem: str = ""
    kind: str = DataCheck.broken  # what several such problems are called
    digest: bytes = b""  # of the pixels, so that copies in other formats have the same; none of what cannot be read
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    brightest: int = 255  # of 255, where the file has more than 8 bits
    class_name: str = ""
    said: Hashable = ""  # of the same picture the same should be said
    oddities: Sequence[str] = ()


@dataclass(frozen=True)
class Opened:
    """The splits of a data set."""

    splits: dict[str, Any]  # Dataset of some kind
    problems: list[str]  # why a run would not start, in one line each
    notes: list[str]  # what was chosen, mapped or passed over


@dataclass(frozen=True)
class Examined:
    """What was seen of every image, and which images are one picture."""

    seen: Mapping[str, Sequence[Seen]]  # split -> an entry an image
    duplicates: Sequence[Sequence[Found]]
    leaked: Sequence[Sequence[Found]]
    contradicting: int
    odd: Sequence[tuple[Found, str]]


def examined(
    splits: Mapping[str, Dataset], look: Callable[[Any, int], Seen], on_images: Callable[[int], None] | None = None
) -> Examined:
    """Look at every image once, on all processors; `look` raises nothing. `on_images` is told how many are done."""
    all_seen: dict[str, list[Seen]] = {}
    odd: list[tuple[Found, str]] = []
    by_content: dict[bytes, list[tuple[Found, Hashable]]] = defaultdict(list)
    for split, data in splits.items():
        seen = all_seen[split] = []
        with warnings.catch_warnings(action="ignore"):  # of odd metadata; what matters is an error
            for one in _in_threads(data, look):
                seen.append(one)
                if on_images is not None:
                    on_images(1)
        named = [
            Found(split, path, one.class_name, at) for at, (path, one) in enumerate(zip(data.paths, seen, strict=True))
        ]
        for found, one in zip(named, seen, strict=True):
            if one.digest:
                by_content[one.digest].append((found, one.said))
        odd += _odd(named, seen)
    groups = [group for group in by_content.values() if len(group) > 1]
    pictures = [[found for found, _ in group] for group in groups]
    return Examined(
        all_seen,
        duplicates=[group for group in pictures if len({found.split for found in group}) == 1],
        leaked=[group for group in pictures if len({found.split for found in group}) > 1],
        contradicting=sum(len({said for _, said in group}) > 1 for group in groups),
        odd=odd,
    )


def facts_of(data: Dataset, seen: Sequence[Seen]) -> dict[str, Any]:
    """The fields of a `SplitCheck` but for its classes."""
    readable = [one for one in seen if one.digest]
    broken = [(path, one) for path, one in zip(data.paths, seen, strict=True) if one.problem]
    return {
        "images": len(data),
        "corrupt": {path: one.problem for path, one in broken},
        "modes": dict(Counter(one.mode for one in readable).most_common()),
        "widths": _spread([one.size[0] for one in readable]),
        "heights": _spread([one.size[1] for one in readable]),
        "kinds": {path: one.kind for path, one in broken},
    }


def sheets_of(split: str, check: SplitCheck, amounts: np.ndarray, note: Callable[[str], str]) -> list[Sheet]:
    """Images in even steps, and of each class those that have the most of it.

    `amounts` says how much each image has of each class of the check, (images, classes); `note` stands beside a class.
    """
    count = len(amounts)
    even = [at * count // _EVEN for at in range(_EVEN)] if count > _EVEN else [*range(count)]
    sheets = [Sheet("Through all images", f"{len(even)} of {count:,}", split, even)]
    places = {name: at for at, name in enumerate(check.classes)}
    for name in some_of(check.classes, _CLASSES):
        amount = amounts[:, places[name]]
        most = np.argsort(-amount, kind="stable")[:_OF_CLASS]
        sheets.append(Sheet(name, note(name), split, [int(at) for at in most if amount[at] > 0]))
    return sheets


def stops_of(checks: Mapping[str, SplitCheck], broken: str = DataCheck.broken) -> Iterator[str]:
    """Why a run would not begin, or end: too many images that are broken, in words of `DataCheck.broken`."""
    for split, check in checks.items():
        count = len(check.corrupt)
        if split in _STOPPING and count > UNREADABLE_LIMIT * check.images:
            yield (
                f"{count} of {check.images} {_STOPPING[split]} {broken}, more than {UNREADABLE_LIMIT:.0%}; "
                "repair or remove them"
            )


def splits_table(check: DataCheck) -> Table:
    """A row a split: how much it holds, what cannot be read, sizes and modes."""
    rows = []
    for name, split in check.splits.items():
        modes = ", ".join(f"{mode} {count:,}" for mode, count in split.modes.items())
        present = sum(count > 0 for count in split.classes.values())
        sizes = (" to ".join(f"{side:g}" for side in sides) for sides in (split.widths, split.heights))
        rows.append((name, f"{split.images:,}", f"{present:,}", f"{len(split.corrupt):,}", *sizes, modes))
    columns = ("split", "images", "classes", check.broken, "width", "height", "modes")
    return Table("Splits", columns, tuple(rows))


def some_of(counts: Mapping[str, int], most: int | None) -> list[str]:
    """The names; of more than `most` those with the smallest and with the greatest counts, half of each."""
    if most is None or len(counts) <= most:
        return [*counts]
    ordered = sorted(counts, key=lambda name: counts[name])
    return [*ordered[: most // 2], *ordered[-(most // 2) :]]


def pixels_told(image: Image.Image, mode: str) -> dict[str, Any]:
    """The fields of a `Seen` that an RGB image tells, and the mode of its file."""
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    for _, piece in pieces(image):
        digest.update(piece.tobytes())
    brightest = int(np.asarray(image).max()) if mode.startswith("I") else 255  # a file of 8 bits may be dark
    return {"digest": digest.digest(), "mode": mode, "size": image.size, "brightest": brightest}


@contextmanager
def telling(notes: list[str]) -> Iterator[None]:
    """Keep what is told of data as a list of lines."""
    others: list[warnings.WarningMessage] = []  # to be warned of anew: all, if an error ends this
    try:
        with warnings.catch_warnings(record=True, action="always", category=DataWarning) as told:
            others = told
            yield
        others = [one for one in told if not issubclass(one.category, DataWarning)]
        notes += [str(one.message) for one in told if issubclass(one.category, DataWarning)]
    finally:
        for one in others:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _in_threads(data: Dataset, look: Callable[[Any, int], Seen]) -> Iterator[Seen]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders let go of Python's lock
        for start in range(0, len(data), _CHUNK):
            yield from pool.map(lambda at: look(data, at), range(start, min(start + _CHUNK, len(data))))


def _spread(values: Sequence[int]) -> tuple[float, float, float]:
    return (min(values), statistics.median(values), max(values)) if values else (0, 0, 0)


def _odd(named: Sequence[Found], seen: Sequence[Seen]) -> Iterator[tuple[Found, str]]:
    """Images whose mode is not that of most, that are very dark for their bits or very long, or of another size."""
    readable = [one for one in seen if one.digest]
    if not readable:
        return
    usual = Counter(one.mode for one in readable).most_common(1)[0][0]
    median = statistics.median(one.size[0] * one.size[1] for one in readable)
    for found, one in zip(named, seen, strict=True):
        if not one.digest:
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
        reasons += one.oddities
        if reasons:
            yield found, ", ".join(reasons)
