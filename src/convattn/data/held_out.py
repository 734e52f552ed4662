"""Validation images held out of a data set that has no split of its own."""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError, tell
from convattn.data.files import LabelledFiles, PlainFiles, listing
from convattn.data.images import ImageError
from convattn.shown import shown

__all__ = ["cut_in_two", "draw_held_out", "hold_out", "same_content", "share_of"]


class ReadableFiles(Protocol):
    """Files by their paths, in the file system."""

    @property
    def paths(self) -> Sequence[str]: ...

    def read_bytes(self, index: int) -> bytes:
        """The content of a file; raises ImageError if it cannot be read."""


def share_of(validation: str | Path | None) -> float | None:
    """The share of the images that is held out, where that and no place is said; ConfigError unless in (0, 1)."""
    try:
        share = float(str(validation))
    except ValueError:
        return None
    if Path(str(validation)).exists():
        return None
    if not 0 < share < 1:
        raise ConfigError(f"data.validation {validation}: a share of the images must be above 0 and below 1, as 0.2")
    return share


def hold_out(data: LabelledFiles, share: float, seed: int) -> tuple[LabelledFiles, LabelledFiles]:
    """Cut a data set in two: images to train on, and about a `share` of each class to validate on.

    Which images these are is drawn from `seed`. Files of the same content go the same way, whatever they are called. A
    class of one picture stays in training, which is said.

    Raises:
        DataError: if the images lie in archives, or no class has two pictures.
    """
    if not isinstance(data.files, PlainFiles):
        raise DataError("data.validation as a share holds files out of folders; give the place of validation images")
    of_class: dict[int, list[list[int]]] = defaultdict(list)
    for group in same_content(data):
        of_class[data.labels[group[0]]].append(group)
    generator = random.Random(f"held out {seed}")
    held: set[int] = set()
    alone = []
    for label in sorted(of_class):
        held |= draw_held_out(of_class[label], share, generator)
        if len(of_class[label]) == 1:
            alone.append(data.classes[label])
    if not held:
        raise DataError("no class has two different pictures, of which one could be held out for validation")
    if alone:
        tell(f"{len(alone)} classes of one picture are not validated: {listing(alone)}")
    return data.part([at for at in range(len(data)) if at not in held]), data.part(sorted(held))


class Divisible(ReadableFiles, Protocol):
    """A data set of which parts can be had."""

    @property
    def where(self) -> str:
        """Where its images are, for messages."""

    def part(self, indices: Sequence[int]) -> Self:
        """Some of its images."""


D = TypeVar("D", bound=Divisible)


def cut_in_two(data: D, share: float, seed: int) -> tuple[D, D]:
    """Images to train on, and about a `share` to validate on, whatever is to be said of them, as `hold_out` draws.

    DataError if all are the same picture.
    """
    held = draw_held_out(same_content(data), share, random.Random(f"held out {seed}"))
    if not held:
        raise DataError(f"{shown(data.where)}: only one picture; none could be held out for validation")
    return data.part([at for at in range(len(data.paths)) if at not in held]), data.part(sorted(held))


def draw_held_out(groups: Sequence[Sequence[int]], share: float, generator: random.Random) -> set[int]:
    """About a `share` of the indices, at least one; groups stay together, and one of them is left to learn from."""
    order = generator.sample(range(len(groups)), len(groups))
    wanted, held = max(1, round(share * sum(map(len, groups)))), set[int]()
    for at in order[:-1]:
        if len(held) >= wanted:
            break
        held |= {*groups[at]}
    return held


def same_content(data: ReadableFiles) -> list[list[int]]:
    """The indices of files that have the same bytes, in the order of the first of each; equal sizes alone are read."""
    of_size: dict[int, list[int]] = defaultdict(list)
    for at, path in enumerate(data.paths):
        try:
            of_size[Path(path).stat().st_size].append(at)
        except OSError:
            of_size[-1 - at].append(at)  # told when it is read
    groups: list[list[int]] = []
    for same in of_size.values():
        of_content: dict[bytes, list[int]] = defaultdict(list)
        for at in same:
            of_content[_digest(data, at) if len(same) > 1 else b""].append(at)
        groups += of_content.values()
    return sorted(groups)


def _digest(data: ReadableFiles, at: int) -> bytes:
    try:
        return hashlib.sha256(data.read_bytes(at)).digest()
    except ImageError:
        return at.to_bytes(8, "big")  # broken: like no other
