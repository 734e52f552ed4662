"""What an exported file is tried and calibrated on: photographs, prepared as the weights expect, and random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.data.dataset import DataError
from convattn.data.images import ImageError, read_image
from convattn.data.sources import open_unlabelled
from convattn.data.transforms import Transform, transforms_for

__all__ = [
    "CALIBRATION_IMAGES",
    "MOST_PHOTOGRAPHS",
    "Photographs",
    "random_images",
    "read_calibration",
    "read_photographs",
    "times",
]

MOST_PHOTOGRAPHS = 100  # of a folder: an image is run at least twice, and a folder may hold thousands
CALIBRATION_IMAGES = 300  # of a folder: what NNCF takes by default

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Photographs:
    """Images prepared for one model."""

    images: Tensor  # (N, C, H, W) float32
    set_aside: tuple[str, ...]  # why a file could not be read, each in a line that names it


def read_photographs(model: nn.Module, shape: Shape, folder: str | Path | None = None) -> Photographs:
    """The photographs of this package and those of a folder, as `transforms_for(model)` prepares them.

    Args:
        model: what is going to see them. Where it takes another number of channels than three, red, green and blue
            are given to them in turn.
        shape: (channels, height, width) to resize to, where the transform gives another size.
        folder: images however deep, an archive or a list; of more than `MOST_PHOTOGRAPHS` so many, evenly spread.

    Raises:
        DataError: if there is no readable image in the folder.
    """
    transform = transforms_for(model)
    own = [file for file in resources.files("convattn.deploy.photographs").iterdir() if file.name.endswith(".jpg")]
    images = [
        _prepared(transform(read_image(file.read_bytes(), file.name)), shape)
        for file in sorted(own, key=lambda file: file.name)
    ]
    theirs, set_aside = ([], ()) if folder is None else _read_some(folder, MOST_PHOTOGRAPHS, transform, shape)
    return Photographs(torch.stack(images + theirs), set_aside)


def read_calibration(
    model: nn.Module, shape: Shape, source: str | Path | Tensor | Sequence[Tensor]
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Images (1, C, H, W) to find the ranges of values with, and why files were set aside.

    Args:
        model: what is going to see them.
        shape: (channels, height, width).
        source: images however deep in a folder, an archive or a list, of more than `CALIBRATION_IMAGES` so many,
            evenly spread; or prepared images, as a tensor (N, C, H, W) or one by one.

    Raises:
        DataError: if there is no readable image. ValueError: for a tensor of another shape.
    """
    if isinstance(source, str | Path):
        images, set_aside = _read_some(source, CALIBRATION_IMAGES, transforms_for(model), shape)
        return [image[None] for image in images], set_aside
    given = [image[None].float() for batch in source for image in (batch if batch.ndim == 4 else batch[None])]
    if not given:
        raise ValueError("calibration has no image; give a folder, or tensors (N, C, H, W)")
    wrong = next((tuple(image.shape[1:]) for image in given if image.shape[1:] != shape), None)
    if wrong is not None:
        raise ValueError(f"calibration has an image {times(wrong)}, and the file is written for {times(shape)}")
    return given, ()


def random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normally distributed numbers (B, C, H, W), the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _read_some(
    source: str | Path, most: int, transform: Transform, shape: Shape
) -> tuple[list[Tensor], tuple[str, ...]]:
    files = open_unlabelled(source)
    count, images, set_aside = len(files), [], []
    for index in range(count) if count <= most else [at * count // most for at in range(most)]:  # evenly spread
        try:
            images.append(_prepared(transform(files.read(index)), shape))
        except ImageError as error:
            set_aside.append(str(error))
    if not images:
        raise DataError(f"{source}: none of its {count} images can be read; the first: {set_aside[0]}")
    return images, tuple(set_aside)


def _prepared(image: Tensor, shape: Shape) -> Tensor:
    """(3, h, w) -> `shape`."""
    channels, *size = shape
    if list(image.shape[1:]) != size:
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
    return image if channels == 3 else image[[channel % 3 for channel in range(channels)]]


def times(shape: Sequence[int]) -> str:
    """A shape for people: 2 x 3 x 224 x 224."""
    return " x ".join(map(str, shape))
