"""The numbers that occur in masks, where no file names the classes."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from convattn.data.dataset import DataError
from convattn.data.images import ImageError, decode_as_stored, read_bytes
from convattn.data.progress import late_progress
from convattn.segmentation.masks import numbers_in

__all__ = ["numbers_used"]


def numbers_used(masks: Sequence[str], where: object) -> frozenset[int]:
    """The numbers that occur in any of these masks; those that cannot be read are passed over, and told later.

    Every mask is read, on all processors; a second time in a process only those that have changed.

    Raises:
        DataError: if none can be read, with the reason of the first.
    """
    return _numbers_used(tuple(map(_state, masks)), str(where))


def _state(mask: str) -> tuple[str, int, int]:
    """A file and what changes with its content."""
    try:
        status = Path(mask).stat()
        return mask, status.st_mtime_ns, status.st_size
    except OSError:
        return mask, 0, 0


@lru_cache(maxsize=8)
def _numbers_used(masks: tuple[tuple[str, int, int], ...], where: str) -> frozenset[int]:
    found = np.zeros(256, dtype=bool)
    problem, read = "", 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, late_progress(f"reading masks of {where}", len(masks)) as done:
        for at, one in enumerate(pool.map(lambda mask: _numbers(mask[0]), masks)):
            if isinstance(one, str):
                problem = problem or one
            else:
                found |= one
                read += 1
            done(at + 1)
    if not read:
        raise DataError(problem)
    return frozenset(np.flatnonzero(found).tolist())


def _numbers(mask: str) -> np.ndarray | str:
    """Which numbers occur in a mask, (256,) bool; or why it cannot be read."""
    try:
        content = read_bytes(mask)
        numbers = numbers_in(decode_as_stored(content, mask), content, mask)
    except ImageError as error:
        return str(error)
    return np.bincount(numbers.ravel(), minlength=256) > 0
