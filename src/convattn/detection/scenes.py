"""One view of an image with its objects: resized, cut out, mirrored, all of it together.

Pixels go through torchvision. Where a row or column of the picture goes is known for each side by itself, so masks are
looked up once, at the end: of an outline only its pixels in the view are ever held beside one picture's.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor

from convattn.data.dataset import DataWarning
from convattn.data.resizing import nearest_places
from convattn.detection.annotations import Annotations
from convattn.detection.rasterise import Size, bitmap
from convattn.shown import shown

__all__ = ["Scene", "View"]


@dataclass(frozen=True)
class Scene:
    """What is seen, and the objects in it."""

    image: Tensor  # (3, H, W) uint8
    boxes_xyxy: Tensor  # (n, 4) float32, pixels, within the image
    labels: Tensor  # (n,) int64
    crowd: Tensor  # (n,) bool
    masks: Tensor | None  # (n, H, W) uint8, 0 or 1

    def part(self, kept: Tensor) -> "Scene":
        """With some of the objects, by places or by (n,) bool."""
        masks = None if self.masks is None else self.masks[kept]
        return Scene(self.image, self.boxes_xyxy[kept], self.labels[kept], self.crowd[kept], masks)


@dataclass(frozen=True)
class _Side:
    """Where rows, or columns, of a picture have gone."""

    places: np.ndarray  # (now,) int64: which of the picture's each shows, in nearest-neighbour
    scale: float  # of coordinates, which are then shifted
    shift: float

    @property
    def length(self) -> int:
        return len(self.places)

    def resized(self, length: int) -> "_Side":
        ratio = length / self.length
        return _Side(self.places[nearest_places(self.length, length)], self.scale * ratio, self.shift * ratio)

    def cut(self, start: int, length: int) -> "_Side":
        return _Side(self.places[start : start + length], self.scale, self.shift - start)

    def mirrored(self) -> "_Side":
        return _Side(self.places[::-1], -self.scale, self.length - self.shift)

    def within(self, coordinates: np.ndarray) -> np.ndarray:
        """(n, 2) from a picture's, the smaller first, cut off at the ends."""
        return np.sort((coordinates * self.scale + self.shift).clip(0, self.length), axis=1)


@dataclass(frozen=True)
class View:
    """A picture on its way to a scene."""

    image: Tensor  # (3, H, W) uint8
    annotations: Annotations
    rows: _Side
    columns: _Side

    @classmethod
    def of(cls, picture: Image.Image, annotations: Annotations) -> "View":
        """The whole picture as it is."""
        height, width = (_Side(np.arange(side), 1.0, 0.0) for side in (picture.height, picture.width))
        return cls(tvf.pil_to_tensor(picture), annotations, height, width)

    @property
    def size(self) -> Size:
        """Height and width of what is seen."""
        return self.rows.length, self.columns.length

    def resized(self, size: Size, *, antialias: bool) -> "View":
        """Bilinear, by half-pixel centres; masks by the nearest pixel."""
        if size == self.size:
            return self
        image = tvf.resize(self.image, [*size], antialias=antialias)
        return replace(self, image=image, rows=self.rows.resized(size[0]), columns=self.columns.resized(size[1]))

    def cut(self, top: int, left: int, height: int, width: int) -> "View":
        """A window of it."""
        image = tvf.crop(self.image, top, left, height, width)
        return replace(self, image=image, rows=self.rows.cut(top, height), columns=self.columns.cut(left, width))

    def mirrored(self) -> "View":
        """With left and right exchanged."""
        return replace(self, image=tvf.horizontal_flip(self.image), columns=self.columns.mirrored())

    def scene(self, *, masks: bool = True, most: int | None = None) -> Scene:
        """What is left of the objects: of each the box as it was annotated, cut off at the border, and its pixels.

        An object goes if nothing of its box or, where there are outlines, none of its pixels is left.

        Args:
            masks: whether outlines become masks, where there are any; (n, H, W) bytes.
            most: objects that get masks; the smallest of more are left out, which is told.
        """
        seen = self.annotations
        boxes = np.empty_like(seen.boxes_xyxy)
        boxes[:, ::2] = self.columns.within(seen.boxes_xyxy[:, ::2])
        boxes[:, 1::2] = self.rows.within(seen.boxes_xyxy[:, 1::2])
        boxes = boxes.astype(np.float32)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        drawn = masks and seen.outlines is not None
        if drawn and most is not None and len(kept) > most:
            kept = self._largest(kept, most)
        boxes_xyxy, labels, crowd = (torch.from_numpy(part[kept]) for part in (boxes, seen.labels, seen.crowd))
        scene = Scene(self.image, boxes_xyxy, labels, crowd, None)
        if not drawn:
            return scene
        pixels = self._pixels(kept)
        return replace(scene, masks=pixels).part(pixels.flatten(1).any(1).bool())

    def _pixels(self, kept: np.ndarray) -> Tensor:
        """The masks of some objects, (n, H, W) uint8."""
        outlines = self.annotations.outlines
        assert outlines is not None
        pixels = torch.empty(len(kept), *self.size, dtype=torch.uint8)
        for row, at in enumerate(kept.tolist()):
            whole = bitmap(outlines[at], self.annotations.size)
            pixels[row] = torch.from_numpy(whole.T.take(self.columns.places, 0).T.take(self.rows.places, 0))
        return pixels

    def _largest(self, kept: np.ndarray, most: int) -> np.ndarray:
        seen = self.annotations
        where = "an image" if seen.data is None else seen.data.paths[seen.index]
        needed = len(kept) * self.size[0] * self.size[1]
        warnings.warn(
            f"{shown(where)}: masks of {len(kept):,} objects would take {needed:,} bytes; the "
            f"{len(kept) - most:,} smallest are left out",
            DataWarning,
            stacklevel=2,
        )
        order = np.argsort(-seen.areas[kept], kind="stable")
        return np.sort(kept[order[:most]])
