"""From a picture and its label map to what a segmenter learns from, or is judged on: the pipeline of mmsegmentation.

Training, in this order: resize by a random ratio, crop, mirror, distort the colours, normalise, pad. Evaluation: resize
the picture and normalise; the label map keeps its size, for predictions are compared there. Torchvision's functions do
what they do in the same way. They do not resize label maps: PyTorch's nearest computes in float32, and takes another
pixel now and then.

Source: `Resize`, `RandomCrop`, `RandomFlip`, `PhotoMetricDistortion`, `Normalize` and `Pad` of mmsegmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor

from convattn.data.draws import chance, uniform, whole
from convattn.data.resizing import Scale, nearest_places, size_within
from convattn.segmentation.options import IGNORED, SegmentationOptions
from convattn.segmentation.photometric import distorted

__all__ = [
    "EvaluationTransform",
    "TrainingTransform",
    "evaluation_transform",
    "is_varied",
    "normalised",
    "padded",
    "random_crop",
    "resized",
    "resized_part",
    "training_transform",
]

_TRIES = 10  # crops that are tested; the next is taken as it is

Window = tuple[int, int, int, int]  # top, left, height, width


def training_transform(
    options: SegmentationOptions, crop: int, mean: Sequence[float], std: Sequence[float]
) -> "TrainingTransform":
    """The random transform of training.

    Args:
        options: what is varied, and how much.
        crop: side of what comes out, pixels.
        mean, std: of each channel, in units of 0..1.
    """
    return TrainingTransform(options, crop, tuple(mean), tuple(std))


def evaluation_transform(
    scale: Scale | None, mean: Sequence[float], std: Sequence[float], ratio: float = 1.0
) -> "EvaluationTransform":
    """The transform of validation, evaluation and prediction.

    Args:
        scale: what the picture is resized within (`size_within`); None leaves its size.
        mean, std: of each channel, in units of 0..1.
        ratio: that size is further multiplied by, as where a picture is looked at in several sizes.
    """
    return EvaluationTransform(scale, tuple(mean), tuple(std), ratio)


@dataclass(frozen=True)
class TrainingTransform:
    """(PIL RGB, label map (H, W) uint8) -> (image (3, crop, crop) float32, label map (crop, crop) uint8).

    All randomness is torch's global generator's.
    """

    options: SegmentationOptions
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Image.Image, labels: Any) -> tuple[Tensor, Tensor]:
        """One random view of a picture; where it is smaller than the crop, black in normalised units, and ignored."""
        size = self._size(picture.height, picture.width)
        window, labels = random_crop(np.asarray(labels), size, self.crop, self.options.category_cap)
        image = resized_part(picture, size, window)
        if chance(self.options.flip):
            image, labels = tvf.horizontal_flip(image), tvf.horizontal_flip(labels)
        if self.options.photometric:
            image = distorted(image)
        side = (self.crop, self.crop)
        return padded(normalised(image, self.mean, self.std), side, 0), padded(labels, side, IGNORED)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """The size at a random ratio."""
        return _size_at(height, width, self.options.scale, uniform(*self.options.scale_range))


@dataclass(frozen=True)
class EvaluationTransform:
    """(PIL RGB or (3, H, W) uint8, label map or None) -> (image (3, h, w) float32, the label map as it is)."""

    scale: Scale | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ratio: float

    def __call__(self, picture: Image.Image | Tensor, labels: Any) -> tuple[Tensor, Any]:
        """The picture resized and normalised; a tensor's result is on its device."""
        image = picture if isinstance(picture, Tensor) else tvf.pil_to_tensor(picture)
        image = resized(image, _size_at(image.shape[-2], image.shape[-1], self.scale, self.ratio))
        return normalised(image, self.mean, self.std), None if labels is None else torch.as_tensor(labels)


def _size_at(height: int, width: int, scale: Scale | None, ratio: float) -> tuple[int, int]:
    """Height and width of a picture at a ratio of the size that `scale` gives it, or of its own."""
    if scale is None:
        return max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))
    return size_within(height, width, (int(scale[0] * ratio), int(scale[1] * ratio)))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image (3, H, W) uint8 bilinear at half-pixel centres without antialias, as uint8: first across, then down.

    Pixels of one place should lie side by side in memory, as `pil_to_tensor` leaves them: several times as fast.
    """
    # In the order in which PyTorch does both on a CPU, so that `resized_part` can leave out what is not seen.
    across = tvf.resize(image, [image.shape[-2], size[1]], antialias=False)
    return tvf.resize(across, list(size), antialias=False)


def resized_part(picture: Image.Image, size: tuple[int, int], window: Window) -> Tensor:
    """A window of `resized`, bit for bit, computed from the rows that it shows: of large photographs few.

    Args:
        picture: RGB.
        size: height and width of the resized image.
        window: within it.

    Returns:
        (3, height, width) uint8.
    """
    top, left, height, width = window
    step = picture.height / size[0]
    first = max(0, int((top + 0.5) * step - 0.5) - 1)
    last = min(picture.height, int((top + height - 0.5) * step - 0.5) + 3)
    rows = tvf.pil_to_tensor(picture.crop((0, first, picture.width, last)))
    across = tvf.resize(rows, [last - first, size[1]], antialias=False)[..., left : left + width]
    # The other rows may hold anything: no pixel of the window depends on them.
    canvas = torch.empty(picture.height, width, 3, dtype=torch.uint8).permute(2, 0, 1)
    canvas[:, first:last] = across
    return tvf.resize(canvas, [size[0], width], antialias=False)[:, top : top + height]


def random_crop(labels: np.ndarray, size: tuple[int, int], crop: int, category_cap: float) -> tuple[Window, Tensor]:
    """A random window of a resized label map, of which only that is computed.

    A window is drawn anew, up to ten times, while one class has too much of it.

    Args:
        labels: (H, W) uint8.
        size: height and width of the resized one.
        crop: side of the window; what is smaller is taken whole.
        category_cap: share of the pixels that count which a class must stay below; 1 takes any window.

    Returns:
        The window in the resized image, and the label map (height, width) uint8 there.
    """
    rows, columns = (nearest_places(old, new) for old, new in zip(labels.shape, size, strict=True))
    height, width = min(crop, len(rows)), min(crop, len(columns))
    tries = _TRIES if category_cap < 1 else 0
    while True:
        top, left = whole(0, len(rows) - height + 1), whole(0, len(columns) - width + 1)
        seen = torch.from_numpy(labels.take(rows[top : top + height], 0).take(columns[left : left + width], 1))
        if tries == 0 or is_varied(seen, category_cap):
            return (top, left, height, width), seen
        tries -= 1


def is_varied(labels: Tensor, category_cap: float) -> bool:
    """Whether more than one class has pixels, and the largest less than this share of those that count."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORED + 1)[:IGNORED]
    most, pixels = int(counts.max()), int(counts.sum())
    return most < pixels and most / pixels < category_cap


def normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(3, H, W) uint8 -> float32, (values - 255 · mean) / (255 · std)."""
    return tvf.normalize(image.float(), [255 * part for part in mean], [255 * part for part in std], inplace=True)


def padded(image: Tensor, size: tuple[int, int], fill: float) -> Tensor:
    """(…, H, W) with `fill` to the right and below, up to a size."""
    height, width = image.shape[-2:]
    right, below = size[1] - width, size[0] - height
    return torch.nn.functional.pad(image, (0, right, 0, below), value=fill) if right or below else image
