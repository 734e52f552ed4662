"""Images with objects, read one at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from convattn.data.images import ImageError, size_of
from convattn.data.names import Names
from convattn.data.picture_files import PictureFiles
from convattn.data.progress import late_progress
from convattn.detection.annotations import Annotations, Outlines
from convattn.detection.rasterise import Outline
from convattn.shown import shown

__all__ = ["DetectionImages", "Objects", "OtherSize"]


class OtherSize(ImageError):
    """A picture whose size is not the one that its annotations are for."""


@dataclass(frozen=True)
class Objects:
    """The objects of all images, those of one image behind one another."""

    starts: np.ndarray  # (images + 1,) int64: where the objects of each image begin
    boxes_xyxy: np.ndarray  # (n, 4) float64, pixels, or shares of the picture's sides
    labels: np.ndarray  # (n,) int64
    crowd: np.ndarray  # (n,) bool
    areas: np.ndarray  # (n,) float64, pixels, or shares of the picture's
    outlines: Outlines | None = None


class DetectionImages(PictureFiles):
    """Images of which objects are known by a box, a class and perhaps an outline.

    Args:
        where: the file or folder of the annotations, for messages.
        paths: one per image.
        sizes: (images, 2) int64 height and width as the annotations state them; zeros where they do not.
        objects: of all images.
        classes: the names of the labels.
        relative: whether coordinates are shares of the picture's sides.
        image_ids: what the annotations call the images; numbers from 1 by default.
        category_ids: what they call the classes, one a label; numbers from 1 by default, 0 for one they do not know.
        problems: why annotations were passed over, a line for each reason.
    """

    def __init__(
        self,
        where: str,
        paths: Sequence[str],
        sizes: np.ndarray,
        objects: Objects,
        classes: Sequence[str],
        *,
        relative: bool = False,
        image_ids: Sequence[int | str] | None = None,
        category_ids: Sequence[int] | None = None,
        problems: Sequence[str] = (),
    ):
        super().__init__(paths)
        self.where, self.classes = where, tuple(classes)
        self.objects, self.relative, self.problems = objects, relative, tuple(problems)
        self.image_ids = range(1, len(paths) + 1) if image_ids is None else image_ids
        self.category_ids = tuple(category_ids or range(1, len(self.classes) + 1))
        self._stated = sizes
        self._rows = np.arange(len(paths))  # of each image in `objects`

    @property
    def has_masks(self) -> bool:
        """Whether every object has an outline."""
        return self.objects.outlines is not None

    @cached_property
    def sizes(self) -> np.ndarray:
        """Height and width of each picture, (images, 2) int64; zeros of one that cannot be read.

        Where the annotations do not state them, the headers of the files are read once, on all processors.
        """
        unknown = np.flatnonzero(self._stated.min(1, initial=1) < 1)
        sizes = self._stated.copy()
        if len(unknown):
            what = f"reading the sizes of images of {self.where}"
            with ThreadPoolExecutor(os.cpu_count()) as pool, late_progress(what, len(unknown)) as done:
                for count, (at, size) in enumerate(zip(unknown, pool.map(self._size, unknown.tolist()), strict=True)):
                    sizes[at] = size
                    done(count + 1)
        return sizes

    @property
    def without_objects(self) -> list[int]:
        """The images in which nothing can be learnt: without objects, or with crowds alone."""
        counts = np.append(0, np.cumsum(~self.objects.crowd))[self.objects.starts]
        return np.flatnonzero(np.diff(counts)[self._rows] == 0).tolist()

    def target(self, index: int) -> Annotations:
        """The objects of the image at `index`; ImageError if it cannot be read, OtherSize if they do not fit it."""
        return self.annotations(index, self.size(index))

    def annotations(self, index: int, size: tuple[int, int]) -> Annotations:
        """`target`, for an image of this width and height."""
        stated_height, stated_width = self._stated[index].tolist()
        if stated_height and (stated_width, stated_height) != size:
            is_turned = (stated_height, stated_width) == size
            raise OtherSize(
                f"{shown(self.paths[index])}: {size[0]} × {size[1]} pixels, and its annotations are for "
                f"{stated_width} × {stated_height}"
                + ("; the photograph is turned by its EXIF entry, and they are not?" if is_turned else "")
            )
        row = int(self._rows[index])
        part = slice(*self.objects.starts[row : row + 2].tolist())
        boxes, areas = self.objects.boxes_xyxy[part], self.objects.areas[part]
        outlines = None if self.objects.outlines is None else self.objects.outlines[part]
        if self.relative:
            boxes, areas = boxes * np.tile(size, 2), areas * (size[0] * size[1])
            outlines = None if outlines is None else [_scaled(outline, size) for outline in outlines]
        labels, crowd = self.objects.labels[part], self.objects.crowd[part]
        return Annotations(boxes, labels, crowd, areas, (size[1], size[0]), outlines, index, self)

    def counts(self) -> np.ndarray:
        """How many objects each class has, crowds left out, (classes,) int64."""
        counted = [
            self.objects.labels[start:end][~self.objects.crowd[start:end]]
            for start, end in (self.objects.starts[row : row + 2] for row in self._rows)
        ]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *counted]), minlength=len(self.classes))

    def part(self, indices: Sequence[int]) -> "DetectionImages":
        """Some of the images, without what was told of all."""
        some = DetectionImages(
            self.where,
            Names(self.paths[at] for at in indices),
            self._stated[np.asarray(indices, dtype=np.int64)],
            self.objects,
            self.classes,
            relative=self.relative,
            image_ids=[self.image_ids[at] for at in indices],
            category_ids=self.category_ids,
        )
        some._rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return some

    def _size(self, index: int) -> tuple[int, int]:
        try:
            width, height = size_of(self.read_bytes(index), self.paths[index])
            return height, width
        except ImageError:  # told when it is read
            return 0, 0


def _scaled(outline: Outline, size: tuple[int, int]) -> Outline:
    assert not isinstance(outline, bytes)  # runs are in pixels
    return [points * np.tile(size, len(points) // 2) for points in outline]
