"""Images of any sizes as one batch, with padding at their right and bottom."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MULTIPLE", "ImageBatch", "batched", "of_one_size"]

MULTIPLE = 32  # pixels: the coarsest stride of a backbone's levels


@dataclass(frozen=True)
class ImageBatch:
    """What a network sees, and where in it the images are: each in the upper left corner of its own.

    One size, with one padding, stands for all images where they have the same.
    """

    pixels: Tensor  # (B, C, H, W)
    sizes: list[tuple[int, int]]  # height and width of each image
    padded: list[tuple[int, int]]  # the same with an image's own padding, up to a multiple of some pixels

    @property
    def padding(self) -> Tensor | None:
        """True for pixels of no image, (B, H, W); None where there are none."""
        height, width = self.pixels.shape[2:]
        if all(size == (height, width) for size in self.sizes):
            return None
        device = self.pixels.device
        ends = torch.tensor(self.sizes, device=device)[:, :, None]
        rows, columns = (
            torch.arange(height, device=device) >= ends[:, 0],
            torch.arange(width, device=device) >= ends[:, 1],
        )
        return rows[:, :, None] | columns[:, None]


def batched(images: Sequence[Tensor] | Tensor, like: Tensor, channels: int = 3, multiple: int = MULTIPLE) -> ImageBatch:
    """Images as one batch, padded with 0 to multiples of some pixels, and to 32 pixels at least.

    Args:
        images: (C, H, W) each, of any sizes, or all of one size as (B, C, H, W); normalised.
        like: a weight of the network: its type and place are what images must have (under autocast any type of
            floating point).
        channels: C.
        multiple: of the sides of each with its padding.

    Raises:
        ValueError: if there is no image, or one is not as the network takes it, saying which and how.
    """
    if not len(images):
        raise ValueError("there is no image in the batch; give one or more")
    for number, image in enumerate(images):
        _check(number, image, like, channels)
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    padded = [(_rounded(height, multiple), _rounded(width, multiple)) for height, width in sizes]
    height, width = max(size[0] for size in padded), max(size[1] for size in padded)
    if isinstance(images, Tensor) and images.shape[2:] == (height, width):
        return ImageBatch(images, sizes, padded)
    pixels = images[0].new_zeros(len(images), channels, height, width)
    for number, image in enumerate(images):  # rows of an iteration would take no image that has a gradient
        pixels[number, :, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, sizes, padded)


def of_one_size(images: Tensor, multiple: int = MULTIPLE) -> ImageBatch:
    """Images (B, C, H, W) as a batch, padded as `batched` does; whatever B is, the steps are the same.

    For forms of a network that are written once for many batches; nothing is checked.
    """
    height, width = images.shape[2:]
    down, right = _rounded(height, multiple), _rounded(width, multiple)
    pixels = F.pad(images, (0, right - width, 0, down - height)) if (down, right) != (height, width) else images
    return ImageBatch(pixels, [(height, width)], [(down, right)])


def _rounded(side: int, multiple: int) -> int:
    return -(-max(side, MULTIPLE) // multiple) * multiple


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
