"""Images of any sizes as one batch, with padding at their right and bottom."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MULTIPLE", "ImageBatch", "batched"]

MULTIPLE = 32  # pixels: the coarsest stride of a backbone's levels


@dataclass(frozen=True)
class ImageBatch:
    """What a network sees, and where in it the images are: each in the upper left corner of its own."""

    pixels: Tensor  # (B, C, H, W)
    sizes: list[tuple[int, int]]  # height and width of each image
    padded: list[tuple[int, int]]  # the same with an image's own padding, up to a multiple of 32


def batched(images: Sequence[Tensor] | Tensor, like: Tensor, channels: int = 3) -> ImageBatch:
    """Images as one batch, padded with 0 to multiples of 32.

    Args:
        images: (C, H, W) each, of any sizes, or all of one size as (B, C, H, W); normalised.
        like: a weight of the network: its type and place are what images must have (under autocast any type of
            floating point).
        channels: C.

    Raises:
        ValueError: if there is no image, or one is not as the network takes it, saying which and how.
    """
    if not len(images):
        raise ValueError("there is no image in the batch; give one or more")
    for number, image in enumerate(images):
        _check(number, image, like, channels)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    padded = [(-(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE) for height, width in sizes]
    height, width = max(size[0] for size in padded), max(size[1] for size in padded)
    if isinstance(images, Tensor) and images.shape[2:] == (height, width):
        return ImageBatch(images, sizes, padded)
    pixels = images[0].new_zeros(len(images), channels, height, width)
    for row, image in zip(pixels, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]].copy_(image)
    return ImageBatch(pixels, sizes, padded)


def _check(number: int, image: Tensor, like: Tensor, channels: int) -> None:
    if not isinstance(image, Tensor):
        raise ValueError(f"image {number} is {type(image).__name__}; give tensors ({channels}, H, W)")
    if image.ndim != 3 or image.shape[0] != channels or not image.numel():
        raise ValueError(f"image {number} has shape {tuple(image.shape)}; images are ({channels}, H, W), 1 × 1 or more")
    if not image.is_floating_point():
        raise ValueError(f"image {number} is {_name(image)}; give normalised images of {_name(like)}")
    if image.dtype != like.dtype and not torch.is_autocast_enabled(image.device.type):
        raise ValueError(f"image {number} is {_name(image)}, the model {_name(like)}; convert one of them")
    if image.device != like.device:
        raise ValueError(f"image {number} is on {image.device}, the model on {like.device}; move one of them")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
