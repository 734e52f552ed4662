"""From a photograph and its objects to what a detector is trained on or asked about.

Pictures are resized by torchvision, bilinear at half-pixel centres on 8 bits; masks by the nearest pixel; boxes stay
those that were annotated, scaled by the ratio of the rounded sizes, cut off at the border.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import RandomPhotometricDistort

from convattn.config_errors import check
from convattn.data.draws import chance, whole
from convattn.data.resizing import Scale, size_within
from convattn.detection.annotations import Annotations
from convattn.detection.mixing import another, drawn_window, mosaic, pasted
from convattn.detection.scenes import Scene, View
from convattn.detection.variation import Variation

__all__ = ["MOST_MASK_BYTES", "EvaluationTransform", "TrainingTransform", "evaluation_transform", "training_transform"]

# Of the crop branch: mmdetection's 3x schedules.
_SMALL_SIDES = (400, 500, 600)
_WINDOW = (384, 600)  # sides that are drawn, the last included

MOST_MASK_BYTES = 2**29  # of an image's masks; the smallest objects of more are left out, which is told
_DISTORT = RandomPhotometricDistort()


def training_transform(
    variation: Variation, mean: Sequence[float], std: Sequence[float], *, masks: bool
) -> "TrainingTransform":
    """The random transform of training.

    Args:
        variation: what is varied, and how much.
        mean, std: of each channel, in units of 0..1.
        masks: whether the model learns masks.

    Raises:
        ConfigError: if objects are to be copied without masks.
    """
    check(masks or not variation.copy_paste, "variation.copy_paste copies objects by their masks; train with masks")
    return TrainingTransform(variation, tuple(mean), tuple(std), masks)


def evaluation_transform(
    scale: Scale, mean: Sequence[float], std: Sequence[float], *, antialias: bool = False
) -> "EvaluationTransform":
    """The transform of validation, evaluation and prediction.

    Args:
        scale: the longest and the shortest side within which a picture is resized, as 1333 and 800.
        mean, std: of each channel, in units of 0..1.
        antialias: as in `Variation`.
    """
    return EvaluationTransform(scale, tuple(mean), tuple(std), antialias)


@dataclass(frozen=True)
class TrainingTransform:
    """(PIL RGB, Annotations) -> (image (3, H, W) float32, what torchvision's detectors are told, labels from 0).

    That is a dict: `boxes` (n, 4) float32 xyxy within the image, `labels` (n,) int64, `iscrowd` (n,) bool, and with
    masks `masks` (n, H, W) uint8, which take n · H · W bytes, `MOST_MASK_BYTES` at most. n may be 0.

    All randomness is torch's global generator's.
    """

    variation: Variation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    masks: bool

    def __call__(self, picture: Image.Image, annotations: Annotations) -> tuple[Tensor, dict[str, Tensor]]:
        """One random view of a picture, or of several."""
        varied = self.variation
        scene = self._mosaic(picture, annotations) if varied.mosaic and chance(varied.mosaic) else None
        if scene is None:
            view = self._view(picture, annotations)
            scene = view.scene(masks=self.masks, most=self._most(view.size))
        if varied.copy_paste and chance(varied.copy_paste):
            other = another(annotations.data)
            if other is not None:
                scene = pasted(scene, self._view(*other))
        image = _DISTORT(scene.image) if varied.photometric else scene.image
        found = {"boxes": scene.boxes_xyxy, "labels": scene.labels, "iscrowd": scene.crowd}
        if scene.masks is not None:
            found["masks"] = scene.masks
        return _normalised(image, self.mean, self.std), found

    def _view(self, picture: Image.Image, annotations: Annotations) -> View:
        view, varied = View.of(picture, annotations), self.variation
        if varied.crop and chance(varied.crop):
            small = _SMALL_SIDES[whole(0, len(_SMALL_SIDES))]
            size = size_within(*view.size, (max(varied.longest_side, small), small))
            view = view.resized(size, antialias=varied.antialias)
            sides = [whole(min(side, _WINDOW[0]), min(side, _WINDOW[1]) + 1) for side in view.size]
            view = drawn_window(view, (sides[0], sides[1]))
        view = view.resized(self._size(view.size), antialias=varied.antialias)
        return view.mirrored() if chance(varied.flip) else view

    def _mosaic(self, picture: Image.Image, annotations: Annotations) -> Scene | None:
        others = [another(annotations.data) for _ in range(3)]
        views = [View.of(*one) for one in ((picture, annotations), *others) if one is not None]
        if len(views) < 4:
            return None
        size, varied = self._size(views[0].size), self.variation
        most = self._most(size)
        return mosaic(views, size, flip=varied.flip, antialias=varied.antialias, masks=self.masks, most=most)

    def _size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size at a random short side."""
        sides = self.variation.short_sides
        short = whole(min(sides), max(sides) + 1) if self.variation.between else sides[whole(0, len(sides))]
        return size_within(*size, (self.variation.longest_side, short))

    def _most(self, size: tuple[int, int]) -> int:
        """How many objects of an image of this size get masks."""
        return max(1, MOST_MASK_BYTES // (size[0] * size[1]))


@dataclass(frozen=True)
class EvaluationTransform:
    """(PIL RGB, Annotations or None) -> (image (3, h, w) float32, the annotations in the picture's own pixels)."""

    scale: Scale
    mean: tuple[float, ...]
    std: tuple[float, ...]
    antialias: bool = False

    def __call__(self, picture: Image.Image, annotations: Any) -> tuple[Tensor, Any]:
        """The picture resized and normalised."""
        size = size_within(picture.height, picture.width, self.scale)
        image = tvf.pil_to_tensor(picture)
        if size != (picture.height, picture.width):
            image = tvf.resize(image, [*size], antialias=self.antialias)
        # Without the data set, which would go from a worker process to the main one with each image.
        return _normalised(image, self.mean, self.std), annotations and replace(annotations, data=None)


def _normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(3, H, W) uint8 -> float32, (values - 255 · mean) / (255 · std)."""
    return tvf.normalize(image.float(), [255 * part for part in mean], [255 * part for part in std], inplace=True)
