"""Where a pixel or a box is, as sines and cosines; and how much of a padded batch is image.

Source: "DAB-DETR", Liu et al., ICLR 2022, arXiv 2201.12329, section 4.2 (boxes); "End-to-end object detection with
transformers", Carion et al., ECCV 2020, arXiv 2005.12872, appendix A.4 (maps).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["box_positions", "inverse_sigmoid", "level_padding", "map_positions", "valid_ratios"]

_CIRCLE = 2 * math.pi


def map_positions(padding: Tensor, features: int, temperature: float, offset: float, dtype: torch.dtype) -> Tensor:
    """The position of each pixel within its image, rows first, (B, 2 · features, h, w).

    Args:
        padding: true for pixels of no image, (B, h, w).
        features: of each direction.
        temperature: the longest wave over the shortest.
        offset: added to the rows and columns, which count from 1.
        dtype: of the result.
    """
    inside = ~padding
    rows, columns = inside.cumsum(1, dtype=dtype), inside.cumsum(2, dtype=dtype)
    down = (rows + offset) / (rows[:, -1:] + 1e-6) * _CIRCLE
    right = (columns + offset) / (columns[:, :, -1:] + 1e-6) * _CIRCLE
    waves = torch.cat([_waves(down, features, temperature), _waves(right, features, temperature)], -1)
    return waves.permute(0, 3, 1, 2)


def box_positions(boxes_cxcywh: Tensor, features: int) -> Tensor:
    """Boxes (…, 4), 0 to 1, as waves (…, 4 · features) in the order of y, x, width, height."""
    x, y, width, height = (boxes_cxcywh * _CIRCLE).unbind(-1)
    return torch.cat([_waves(value, features, 10_000.0) for value in (y, x, width, height)], -1)


def _waves(angle: Tensor, features: int, temperature: float) -> Tensor:
    """(…) -> (…, features): sines at even places, cosines at odd ones, of ever longer waves."""
    pair = torch.arange(features // 2, device=angle.device, dtype=angle.dtype)
    turns = angle[..., None] / temperature ** (2 * pair / features)
    return torch.stack([turns.sin(), turns.cos()], -1).flatten(-2)


def level_padding(padding: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The padding (B, H, W) of a batch at the sizes of its levels, each (B, h, w)."""
    return [F.interpolate(padding[None].float(), size)[0] > 0.5 for size in sizes]


def valid_ratios(paddings: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """How much of each level's width and height is image, (B, levels, 2); at least a pixel."""
    ratios = []
    for padding in paddings:
        columns = (~padding[:, 0]).sum(1).clamp(min=1).to(dtype) / padding.shape[2]
        rows = (~padding[:, :, 0]).sum(1).clamp(min=1).to(dtype) / padding.shape[1]
        ratios.append(torch.stack([columns, rows], -1))
    return torch.stack(ratios, 1)


def inverse_sigmoid(value: Tensor, eps: float = 1e-3) -> Tensor:
    """The logit of numbers from 0 to 1, in float32 or better; no logarithm is taken of less than `eps`.

    Args:
        value: others are clamped to 0 to 1.
        eps: the least that a logarithm is taken of.
    """
    value = value.to(torch.promote_types(value.dtype, torch.float32))
    return (value.clamp(eps, 1.0) / (1 - value).clamp(eps, 1.0)).log()
