"""DINO's first stage: every pixel proposes a box, and the best become the first boxes of the decoder's queries.

Source: "DINO", Zhang et al., ICLR 2023, arXiv 2203.03605, section 3.4 (mixed query selection).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Selected", "pixel_proposals", "select"]

_LEAST = 0.01  # of a proposal's centre and size, from 0 to 1; and as far from 1 at most
_SIZE = 0.05  # of a proposal of the finest level; twice as much with each


@dataclass(frozen=True)
class Selected:
    """The proposals that were taken, the best first."""

    index: Tensor  # (B, n) pixels
    logits: Tensor  # (B, n, classes)
    boxes: Tensor  # (B, n, 4) cxcywh, 0 to 1, with gradients


def pixel_proposals(paddings: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A box for each pixel, and which of them count.

    Args:
        paddings: of each level, true for pixels of no image, (B, h, w).
        dtype: of the boxes.

    Returns:
        The logits of boxes cxcywh (B, Σ h·w, 4), infinite for a pixel that does not count; and whether one counts,
        (B, Σ h·w): it lies in an image, and its box away from the image's edges.
    """
    boxes, inside = [], []
    for level, padding in enumerate(paddings):
        batch, height, width = padding.shape
        columns, rows = ((~padding[:, 0]).sum(1).clamp(min=1), (~padding[:, :, 0]).sum(1).clamp(min=1))
        y = (torch.arange(height, device=padding.device).to(dtype) + 0.5)[None] / rows[:, None].to(dtype)
        x = (torch.arange(width, device=padding.device).to(dtype) + 0.5)[None] / columns[:, None].to(dtype)
        size = torch.full((batch, height, width), _SIZE * 2**level, dtype=dtype, device=padding.device)
        grid = torch.stack([x[:, None].expand_as(size), y[:, :, None].expand_as(size), size, size], -1)
        boxes.append(grid.flatten(1, 2))
        inside.append(~padding.flatten(1))
    box = torch.cat(boxes, 1)
    counts = torch.cat(inside, 1) & ((box > _LEAST) & (box < 1 - _LEAST)).all(-1)
    logits = (box / (1 - box)).log()
    return logits.masked_fill(~counts[..., None], float("inf")), counts


def select(logits: Tensor, box_logits: Tensor, number: int) -> Selected:
    """The `number` pixels, or all if there are fewer, that are surest of any class.

    Args:
        logits: (B, pixels, classes).
        box_logits: of their boxes, (B, pixels, 4).
        number: how many.
    """
    index = logits.amax(-1).topk(min(number, logits.shape[1]), dim=1).indices
    taken = [part.gather(1, index[..., None].expand(-1, -1, part.shape[2])) for part in (logits, box_logits)]
    return Selected(index, taken[0], taken[1].sigmoid())
