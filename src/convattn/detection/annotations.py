"""The objects of images, as they are annotated: one plain form, whatever format they come from."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from convattn.detection.rasterise import Outline, Size

__all__ = ["Annotations", "Outlines"]


@dataclass(frozen=True)
class Annotations:
    """The objects of one image, in pixels of the upright picture.

    Boxes are as they were annotated: where one reaches over the border of the picture, so it does here. Transforms cut
    it off; evaluation takes it as it is, as COCO's does.
    """

    boxes_xyxy: np.ndarray  # (n, 4) float64
    labels: np.ndarray  # (n,) int64, from 0
    crowd: np.ndarray  # (n,) bool: many objects at once, or one that is not judged; neither learnt nor counted
    areas: np.ndarray  # (n,) float64, pixels: by which an object is small, medium or large
    size: Size
    outlines: Sequence[Outline] | None = None  # n masks, compact; `rasterise.bitmap` makes pixels of them
    index: int = -1  # of the image in its data set
    data: Any = None  # the data set, `DetectionImages`; mosaic and copy-paste draw from it

    def __len__(self) -> int:
        return len(self.labels)


class Outlines(Sequence[Outline]):
    """Many outlines in two buffers, which worker processes share without copying them.

    As lists of numbers those of COCO's 860,000 objects take several gigabytes; here 8 bytes a number.
    """

    def __init__(self, outlines: Iterable[Outline]):
        content, ends = bytearray(), [0]
        for outline in outlines:
            if isinstance(outline, bytes):
                content += b"r" + outline
            else:
                content += b"p" + struct.pack(f"<I{len(outline)}I", len(outline), *map(len, outline))
                for points in outline:
                    content += np.ascontiguousarray(points, "<f8").tobytes()
            ends.append(len(content))
        self._content, self._ends = bytes(content), np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Outline: ...
    @overload
    def __getitem__(self, index: slice) -> list[Outline]: ...
    def __getitem__(self, index: int | slice) -> Outline | list[Outline]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]
        start, end = int(self._ends[at]), int(self._ends[at + 1])
        if self._content[start : start + 1] == b"r":
            return self._content[start + 1 : end]
        (parts,) = struct.unpack_from("<I", self._content, start + 1)
        lengths = struct.unpack_from(f"<{parts}I", self._content, start + 5)
        points = np.frombuffer(self._content, "<f8", sum(lengths), start + 5 + 4 * parts)
        return np.split(points, np.cumsum(lengths)[:-1])
