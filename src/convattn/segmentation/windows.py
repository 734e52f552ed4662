"""A network on an image of any size: whole, or by windows that slide over it, in memory that does not grow with it."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["image_logits", "label_bands", "places", "resized_bands", "window_bands"]

Network = Callable[[Tensor], Tensor]  # images (B, 3, h, w) -> logits (B, classes, h, w)

_AT_ONCE = 2**26  # numbers of logits that are held beside the rest: 256 MiB


def places(side: int, window: int, step: int) -> list[tuple[int, int]]:
    """Where windows lie along a side of so many pixels: the last is moved back so that it is full.

    Of a side shorter than a window there is one, as long as the side.
    """
    ends = [min(start * step + window, side) for start in range(max(side - window + step - 1, 0) // step + 1)]
    return [(max(end - window, 0), end) for end in ends]


def image_logits(network: Network, images: Tensor, window: tuple[int, int] | None, step: tuple[int, int]) -> Tensor:
    """Logits (B, classes, H, W) of images (B, 3, H, W).

    Args:
        network: gives logits at the size of what it sees.
        images: of any size.
        window: height and width of what it sees at a time; whole images if None.
        step: from one window to the next, down and to the right. Where windows overlap, logits are averaged.
    """
    if window is None:
        return network(images)
    return torch.cat([band.clone() for band in window_bands(network, images, window, step)], dim=2)


def window_bands(network: Network, images: Tensor, window: tuple[int, int], step: tuple[int, int]) -> Iterator[Tensor]:
    """The same, top down in bands (B, classes, rows, W): each as soon as no further window reaches it.

    A band is good until the next is asked for, which is written in its place: of many classes one band is gigabytes.
    """
    height, width = images.shape[-2:]
    rows, columns = places(height, window[0], step[0]), places(width, window[1], step[1])
    total = counts = None  # of the rows that the windows of the moment lie in
    for index, (top, bottom) in enumerate(rows):
        for left, right in columns:
            logits = network(images[:, :, top:bottom, left:right])
            if total is None or counts is None:
                total = logits.new_zeros(*logits.shape[:2], bottom - top, width)
                counts = logits.new_zeros(bottom - top, width)
            total[:, :, :, left:right] += logits
            counts[:, left:right] += 1
        assert total is not None and counts is not None  # a side has a window at least
        done = (rows[index + 1][0] if index + 1 < len(rows) else height) - top
        yield total[:, :, :done].div_(counts[:done])
        _move_up(total, done, dim=2)
        _move_up(counts, done, dim=0)


def _move_up(maps: Tensor, rows: int, dim: int) -> None:
    """Drop the first rows in place, and set those that come in below to zero."""
    left = maps.shape[dim] - rows
    for start in range(0, left, rows):  # pieces that do not overlap with where they go
        piece = min(rows, left - start)
        maps.narrow(dim, start, piece).copy_(maps.narrow(dim, start + rows, piece))
    maps.narrow(dim, left, rows).zero_()


def resized_bands(logits: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Logits (B, classes, h, w) bilinearly at another size, top down in bands that fit into the memory.

    What `F.interpolate(logits, size, mode="bilinear", align_corners=False)` gives, to rounding.
    """
    height, width = size
    if logits.shape[-2:] == (height, width):
        yield logits
        return
    rows = max(1, _AT_ONCE // max(1, logits.shape[0] * logits.shape[1] * width))
    if rows >= height:
        yield F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return
    old = logits.shape[2]
    centres = ((torch.arange(height, dtype=torch.float64) + 0.5) * (old / height) - 0.5).clamp(min=0)
    above = centres.floor().long().clamp(max=old - 1)
    below = (above + 1).clamp(max=old - 1)
    share = (centres - above).to(logits)
    above, below = above.to(logits.device), below.to(logits.device)
    for start in range(0, height, rows):
        part = slice(start, start + rows)
        weight = share[part, None]
        mixed = logits[:, :, above[part]] * (1 - weight) + logits[:, :, below[part]] * weight
        yield F.interpolate(mixed, (mixed.shape[2], width), mode="bilinear", align_corners=False)


def label_bands(
    network: Network, images: Tensor, size: tuple[int, int], window: tuple[int, int] | None, step: tuple[int, int]
) -> Iterator[Tensor]:
    """The most probable class of each pixel (B, rows, W) uint8, top down in bands, at the size of the picture.

    Args:
        network, images, window, step: as `image_logits`.
        size: height and width of the picture that the images were made of. Where it is not theirs, the logits are
            resized to it.
    """
    if tuple(images.shape[-2:]) == size and window is not None:
        bands = window_bands(network, images, window, step)
    else:
        bands = resized_bands(image_logits(network, images, window, step), size)
    for band in bands:
        yield band.argmax(1).to(torch.uint8)
