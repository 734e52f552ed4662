"""Validation images held out of a data set that has no split of its own."""

import hashlib
import random
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from convattn.data.dataset import DataError, DataWarning
from convattn.data.files import LabelledFiles, PlainFiles, listing
from convattn.data.images import ImageError
from convattn.data.names import Names

__all__ = ["hold_out", "share_of"]


def share_of(validation: str | Path | None) -> float | None:
    """The share of the images that is held out, where that is said instead of a place; None otherwise.

    Raises:
        DataError: if it is not between 0 and 1.
    """
    try:
        share = float(str(validation))
    except ValueError:
        return None
    if Path(str(validation)).exists():
        return None
    if not 0 < share < 1:
        raise DataError(f"data.validation {validation}: a share of the images must be above 0 and below 1, as 0.2")
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
    for group in _same_content(data):
        of_class[data.labels[group[0]]].append(group)
    generator = random.Random(f"held out {seed}")
    held: set[int] = set()
    alone = []
    for label in sorted(of_class):
        groups = of_class[label]
        order = generator.sample(range(len(groups)), len(groups))
        if len(groups) == 1:
            alone.append(data.classes[label])
            continue
        wanted, taken = max(1, round(share * sum(map(len, groups)))), 0
        for at in order[:-1]:  # the last one is left to learn from
            if taken >= wanted:
                break
            held |= {*groups[at]}
            taken += len(groups[at])
    if not held:
        raise DataError("no class has two different pictures, of which one could be held out for validation")
    if alone:
        told = f"{len(alone)} classes of one picture are not validated: {listing(alone)}"
        warnings.warn(told, DataWarning, stacklevel=2)
    return _part(data, [at for at in range(len(data)) if at not in held]), _part(data, sorted(held))


def _part(data: LabelledFiles, indices: Sequence[int]) -> LabelledFiles:
    files = PlainFiles(Names(data.paths[at] for at in indices))
    return LabelledFiles(files, [data.labels[at] for at in indices], data.classes)


def _same_content(data: LabelledFiles) -> list[list[int]]:
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


def _digest(data: LabelledFiles, at: int) -> bytes:
    try:
        return hashlib.sha256(data.read_bytes(at)).digest()
    except ImageError:
        return at.to_bytes(8, "big")  # broken: like no other
