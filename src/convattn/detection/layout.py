"""What the formats of detection data have in common: where their splits are, and which words name these."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from convattn.data.dataset import DataError
from convattn.data.split_words import SPLITS
from convattn.detection.dataset import DetectionImages
from convattn.shown import shown

__all__ = ["ALONE", "Layout", "label_places", "one_of", "split_named"]

ALONE = "all"  # the split of what has none


class Layout(Protocol):
    """A data set in one format: where its splits are. Nothing but names is read before it is asked for."""

    @property
    def format(self) -> str:
        """Its name for people."""

    @property
    def splits(self) -> Mapping[str, Path]:
        """The file or folder that stands for each split."""

    def classes(self, splits: Sequence[str]) -> list[str]:
        """The names of the classes of some splits, in order."""

    def read(self, split: str, classes: Sequence[str], *, masks: bool) -> DetectionImages:
        """The images of a split with labels that count in `classes`.

        Raises:
            DataError: if it cannot be read, too much of it is invalid, or a class that has objects is none of these.
        """


def split_named(name: str) -> str | None:
    """The split that a name says: `val`, `valid`, `val2017`, `instances_val2017` say val; None without one."""
    words = re.split(r"[^a-z]+", name.lower())
    found = {split for split, called in SPLITS.items() if set(called) & {*words}}
    return found.pop() if len(found) == 1 else None


def one_of(found: Iterable[Path], where: object, what: str) -> Path:
    """The only one; DataError where several could be meant."""
    paths = [*found]
    if len(paths) > 1:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in paths[:4])
        raise DataError(f"{shown(where)}: {shown(names)} could all be {what}; leave one, or name it itself")
    return paths[0]


def label_places(names: Iterable[str], classes: Sequence[str], where: object) -> dict[str, int]:
    """The label of each of these names.

    Raises:
        DataError: naming those that are none of the classes.
    """
    places = {name: place for place, name in enumerate(classes)}
    unknown = [name for name in names if name not in places]
    if unknown:
        some = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        known = ", ".join(classes[:8]) + (" …" if len(classes) > 8 else "")
        raise DataError(
            f"{shown(where)}: objects of {shown(some)}, and the classes are {shown(known)}; rename or remove them"
        )
    return places
