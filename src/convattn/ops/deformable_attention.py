"""Multi-scale deformable attention: every query reads a few places of every level of a pyramid, and weighs them.

    out[q, head] = Σ over levels l and points p of weight[q, head, l, p] · value_l[head](location[q, head, l, p])

Locations go from 0 to 1 over a level; between pixels a level is bilinear, with pixel centres at (i + ½) / size, and
outside it is zero. Source: "Deformable DETR", Zhu et al., ICLR 2021, arXiv 2010.04159, section 4.1.

Three forms of one value: `rows` (CPU), `grid_sample` (any device, learning, export, second derivatives), and the
reference, the formula as it stands. The neighbours of a place are found as for deformable convolution
(`ops.deformable`).
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.ops.deformable import neighbours

__all__ = ["Sampling", "deformable_attention", "deformable_attention_reference"]

Sampling = Literal["auto", "rows", "grid_sample"]


def deformable_attention(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor, *, sampling: Sampling = "auto"
) -> Tensor:
    """Weighted sums of what is read at places of several levels.

    Locations are used in float32 (float64 for float64 values), under autocast too: half precision cannot name a place
    between two pixels of a large map.

    Args:
        value: the pixels of all levels, row by row and level by level, (B, Σ h·w, heads, channels).
        sizes: height and width of each level.
        locations: x and y of each place, 0 to 1 over a level, (B, queries, heads, levels, points, 2).
        weights: of each place, (B, queries, heads, levels, points).
        sampling: which implementation. "rows" gathers rows of channels; "grid_sample" uses ordinary operators alone,
            for any device and for export. "auto" takes rows on a CPU where nothing learns: a third of the time there,
            but with gradients a fifth more.

    Returns:
        (B, queries, heads · channels) in the type of `value`.

    Raises:
        ValueError: if the shapes do not go together, or for an unknown `sampling`.
    """
    _check(value, sizes, locations, weights)
    exact = torch.promote_types(value.dtype, torch.float32)
    wide, locations, weights = value.to(exact), locations.to(exact), weights.to(exact)
    if sampling == "auto":
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in (value, locations, weights))
        sampling = "rows" if value.device.type == "cpu" and not learns else "grid_sample"
    if sampling == "rows":
        return _from_rows(wide, sizes, locations, weights).to(value.dtype)
    if sampling == "grid_sample":
        return _from_grids(wide, sizes, locations, weights).to(value.dtype)
    raise ValueError(f"sampling {sampling!r} is unknown; choose one of {', '.join(get_args(Sampling))}")


def deformable_attention_reference(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The same value by the formula, level by level, point by point and neighbour by neighbour."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = value.new_zeros(batch, queries, heads, channels)
    start = 0
    for level, (height, width) in enumerate(sizes):
        pixels = value[:, start : start + height * width].transpose(1, 2)  # (B, heads, h·w, channels)
        start += height * width
        for point in range(points):
            x = (locations[:, :, :, level, point, 0] * width - 0.5).transpose(1, 2)  # (B, heads, queries)
            y = (locations[:, :, :, level, point, 1] * height - 0.5).transpose(1, 2)
            for row in (y.floor(), y.floor() + 1):
                for column in (x.floor(), x.floor() + 1):
                    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    share = (1 - (y - row).abs()) * (1 - (x - column).abs()) * inside
                    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
                    seen = pixels.gather(2, place[..., None].expand(-1, -1, -1, channels))
                    part = share * weights[:, :, :, level, point].transpose(1, 2)
                    out = out + (part[..., None] * seen).transpose(1, 2)
    return out.flatten(2)


def _from_rows(value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """One weighted sum of 4 · levels · points rows for each query and head; the rows are never written out."""
    batch, tokens, heads, channels = value.shape
    places, shares, start = [], [], 0
    for level, (height, width) in enumerate(sizes):
        x, y = locations[:, :, :, level].unbind(-1)  # (B, queries, heads, points)
        row, row_share = neighbours(y * height - 0.5, height)
        column, column_share = neighbours(x * width - 0.5, width)
        places.append(start + row[..., :, None] * width + column[..., None, :])
        shares.append(row_share[..., :, None] * column_share[..., None, :] * weights[:, :, :, level, :, None, None])
        start += height * width
    words = torch.stack(places, 3).flatten(3)  # (B, queries, heads, levels · points · 4)
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1) * tokens
    head = torch.arange(heads, device=value.device).view(-1, 1)
    words = (image + words) * heads + head
    bags = torch.arange(0, words.numel(), words.shape[3], device=value.device)
    vocabulary = value.reshape(batch * tokens * heads, channels)
    share = torch.stack(shares, 3).flatten()
    # The operator behind F.embedding_bag, which skips the gradient of the shares whenever the vocabulary needs none.
    seen = torch.ops.aten._embedding_bag(vocabulary, words.flatten(), bags, False, 0, False, share)[0]
    return seen.view(batch, -1, heads * channels)


def _from_grids(value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    by_head = locations.movedim(2, 1).flatten(0, 1)  # (B · heads, queries, levels, points, 2)
    levels = value.split([height * width for height, width in sizes], dim=1)
    seen = []
    for level, (pixels, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
        maps = pixels.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        grid = 2 * by_head[:, :, level] - 1  # (B · heads, queries, points, 2)
        seen.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    shares = weights.movedim(2, 1).reshape(batch * heads, 1, queries, len(sizes) * points)
    out = (torch.cat(seen, 3) * shares).sum(3)  # (B · heads, channels, queries)
    return out.view(batch, heads * channels, queries).transpose(1, 2)


def _check(value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    batch, tokens, heads = value.shape[:3]
    pixels = sum(height * width for height, width in sizes)
    if tokens != pixels:
        raise ValueError(
            f"value has {tokens} pixels, and levels of {', '.join(f'{h} x {w}' for h, w in sizes)} {pixels}"
        )
    if locations.shape[:1] + locations.shape[2:4] != (batch, heads, len(sizes)) or locations.shape[5:] != (2,):
        wanted = f"({batch}, queries, {heads}, {len(sizes)}, points, 2)"
        raise ValueError(f"locations of shape {tuple(locations.shape)} should be {wanted}")
    if weights.shape != locations.shape[:5]:
        raise ValueError(f"weights of shape {tuple(weights.shape)} should be {tuple(locations.shape[:5])}")
