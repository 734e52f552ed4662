"""Outlines of objects, as they are annotated, and the pixels within them: by pycocotools, as COCO's own tools do it.

A mask is kept as it was annotated, which takes a small part of its pixels' memory: polygons as numbers, runs of pixels
("RLE") as COCO's text. Both come from anybody's files, so they are checked before the C code of pycocotools sees them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from convattn.extras import require

__all__ = [
    "InvalidAnnotation",
    "Outline",
    "Size",
    "area_of",
    "as_polygons",
    "as_runs",
    "bitmap",
    "box_of",
    "counts_of",
    "rle_of",
]

Size = tuple[int, int]  # height and width of a picture, pixels

# Polygons that together cover an object, each flat x, y, x, y, … in pixels; or the runs of its whole picture, as text.
Outline = Sequence[np.ndarray] | bytes

_CORNERS = 3  # the least of a polygon
_BEYOND = 1.0  # sides of the picture by which a corner may lie outside it; far ones would take memory without end
_MOST_CORNERS = 1_000_000  # of an object


class InvalidAnnotation(ValueError):
    """An annotation that means nothing; says why, and of which one its reader knows."""


def as_polygons(parts: Any, size: Size) -> list[np.ndarray]:
    """Polygons out of lists of numbers; parts with fewer than three corners are left out.

    Raises:
        InvalidAnnotation: if they are no numbers, none is left, or a corner lies far outside the picture.
    """
    if not isinstance(parts, list | tuple):
        raise InvalidAnnotation("its outline is no list of polygons")
    if parts and all(isinstance(value, int | float) for value in parts):
        parts = [parts]  # one polygon without the list around it
    polygons = []
    for part in parts:
        try:
            points = np.asarray(part, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise InvalidAnnotation("its outline holds something else than numbers") from None
        if points.ndim != 1 or len(points) % 2:
            raise InvalidAnnotation("its outline is no list of x and y in turn")
        if len(points) >= 2 * _CORNERS:
            polygons.append(points)
    if not polygons:
        raise InvalidAnnotation("its outline has fewer than three corners")
    if sum(map(len, polygons)) > 2 * _MOST_CORNERS:
        raise InvalidAnnotation(f"its outline has more than {_MOST_CORNERS:,} corners")
    height, width = size
    for points in polygons:
        for values, side in ((points[::2], width), (points[1::2], height)):
            if not (np.abs(values - side / 2) <= (0.5 + _BEYOND) * side).all():  # so that it holds for no number
                raise InvalidAnnotation("its outline leads far outside the image")
    return polygons


def as_runs(rle: Any, size: Size) -> bytes:
    """The runs of an RLE object `{"size": [H, W], "counts": …}`, compressed or a list, as COCO's text.

    Raises:
        InvalidAnnotation: if it is of another size than the picture, or does not cover it exactly.
    """
    if not isinstance(rle, dict) or "counts" not in rle:
        raise InvalidAnnotation("its RLE has no counts")
    stated: Any = rle.get("size")
    if not isinstance(stated, list | tuple) or [*stated] != [*size]:
        said = " × ".join(map(str, reversed(stated))) if _is_size(stated) else "no"
        raise InvalidAnnotation(f"its RLE is of {said} pixels, and its image has {size[1]} × {size[0]}")
    counts = rle["counts"]
    is_text = isinstance(counts, str | bytes)
    try:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
        runs = counts_of(text) if is_text else np.asarray(counts)
    except (UnicodeError, TypeError, ValueError, OverflowError):
        raise InvalidAnnotation("its RLE is damaged") from None
    if runs.ndim != 1 or not len(runs) or runs.dtype.kind not in "iu":
        raise InvalidAnnotation("its RLE is damaged")
    if runs.min() < 0 or runs.max() > size[0] * size[1] or runs.sum() != size[0] * size[1]:
        raise InvalidAnnotation(f"its RLE covers other pixels than the {size[1]} × {size[0]} of its image")
    if is_text:
        return text
    return _coco().frPyObjects({"size": [*size], "counts": runs.tolist()}, *size)["counts"]


def counts_of(text: bytes) -> np.ndarray:
    """The lengths of runs out of COCO's text, (n,) int64: of pixels outside and inside in turn, down the columns.

    A number takes a character for each five bits, the lowest first, 48 + 32 · (more follow) + bits, in two's
    complement; from the fourth on it is what a run is longer than the one before the last.

    Raises:
        ValueError: if the text breaks off or holds other characters.
    """
    units = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(units) or units.min() < 0 or units.max() > 63:
        raise ValueError("characters that are none of an RLE")
    ends = np.flatnonzero(units < 32)
    if not len(ends) or ends[-1] != len(units) - 1:
        raise ValueError("an RLE that breaks off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("a number in an RLE that is too large")
    within = np.arange(len(units)) - np.repeat(starts, lengths)
    values = np.add.reduceat((units & 31) << (5 * within), starts)
    negative = (units[ends] & 16) > 0
    values = np.where(negative, values - (1 << (5 * lengths)), values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def rle_of(outline: Outline, size: Size) -> dict[str, Any]:
    """The outline as pycocotools takes it: polygons rasterised at the size of the picture and joined."""
    if isinstance(outline, bytes):
        return {"size": [*size], "counts": outline}
    coco = _coco()
    return coco.merge(coco.frPyObjects([points.tolist() for points in outline], *size))


def bitmap(outline: Outline, size: Size) -> np.ndarray:
    """The pixels of an object, (H, W) uint8: 1 inside and 0 outside, its columns one behind another in memory."""
    runs = counts_of(rle_of(outline, size)["counts"])  # pycocotools' own decoding warns of numpy 2
    return np.repeat(np.arange(len(runs), dtype=np.uint8) & 1, runs).reshape(size[::-1]).T


def area_of(outline: Outline, size: Size) -> float:
    """How many pixels an object has."""
    return float(_coco().area(rle_of(outline, size)))


def box_of(outline: Outline, size: Size) -> tuple[float, float, float, float]:
    """The corners x1, y1, x2, y2 of an outline: of the polygons themselves, of the pixels of runs."""
    if isinstance(outline, bytes):
        x, y, width, height = _coco().toBbox(rle_of(outline, size)).tolist()
        return x, y, x + width, y + height
    xs, ys = (np.concatenate([points[at::2] for points in outline]) for at in (0, 1))
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _coco() -> Any:
    return require("pycocotools.mask", "detection")


def _is_size(stated: Any) -> bool:
    return isinstance(stated, list | tuple) and len(stated) == 2 and all(isinstance(side, int) for side in stated)
