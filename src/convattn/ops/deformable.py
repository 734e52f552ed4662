"""Modulated deformable convolution: every tap of a kernel reads the map at a place of its own, and weighs it.

    out[o, p] = bias[o] + Σ over taps k of mask[k, p] · Σ over channels c of W[o, c, k] · x[c, p + r_k + offset[k, p]]

Between pixels x is bilinear; outside the map it is zero, without clamping: half a pixel above the first row lies half
of that row. Source: "Deformable ConvNets v2", Zhu, Hu, Lin, Dai, CVPR 2019, arXiv 1811.11168.

Layouts are torchvision's: per offset group and tap the offsets (dy, dx), dy first, groups outermost.
Four forms of one value: `rows` (CPU), `torchvision`'s kernel, `grid_sample` (any device, export, second derivatives),
and the reference, the formula as it stands.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

__all__ = ["Sampling", "deformable_conv2d", "deformable_conv2d_reference", "neighbours", "sample_displaced"]

Sampling = Literal["auto", "rows", "torchvision", "grid_sample"]

_HAS_TORCHVISION_KERNEL = hasattr(torch.ops.torchvision, "deform_conv2d")  # not with a foreign torch version


class Geometry(NamedTuple):
    """How the taps lie over the map."""

    kernel: tuple[int, int]
    stride: int
    padding: int
    dilation: int


def deformable_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    sampling: Sampling = "auto",
) -> Tensor:
    """Deformable convolution; with `mask` each tap is weighed too (version 2).

    Positions and interpolation are computed in float32 (float64 for float64 maps), whatever the map's type and under
    autocast too: half precision cannot name a place between two pixels of a large map.

    Args:
        x: map (B, C, H, W).
        offset: displacement of each tap in pixels, (B, 2·G·taps, H', W') for G offset groups.
        weight: kernel (O, C/groups, kh, kw); the number of groups follows from its shape.
        mask: weight of each tap, (B, G·taps, H', W'), or None.
        bias: (O,) or None.
        stride, padding, dilation: of the undisplaced kernel, in pixels.
        sampling: which implementation. "rows" gathers channel rows of a channels-last map, the fastest on a CPU.
            "torchvision" is its compiled kernel. "grid_sample" uses ordinary operators alone: any device, exportable,
            and the only one with second derivatives. "auto" takes rows on a CPU, elsewhere torchvision where its
            extension is present and grid_sample where not.

    Returns:
        (B, O, H', W') in the type of `x`.

    Raises:
        ValueError: if the shapes do not go together, or for an unknown `sampling`.
    """
    geometry = Geometry(tuple(weight.shape[2:]), stride, padding, dilation)  # type: ignore[arg-type]
    _check_shapes(x, offset, weight, mask, geometry)
    exact = torch.promote_types(x.dtype, torch.float32)
    wide_x, offset = x.to(exact), offset.to(exact)
    mask = None if mask is None else mask.to(exact)
    if sampling == "auto":
        elsewhere: Sampling = "torchvision" if _HAS_TORCHVISION_KERNEL else "grid_sample"
        sampling = "rows" if x.device.type == "cpu" else elsewhere
    if sampling == "torchvision":
        wide_bias = None if bias is None else bias.to(exact)
        sides = (stride, stride), (padding, padding), (dilation, dilation)
        return deform_conv2d(wide_x, offset, weight.to(exact), wide_bias, *sides, mask).to(x.dtype)
    if sampling == "rows":
        return _product_of_rows(_sample_rows(wide_x, offset, mask, geometry).to(x.dtype), weight, bias)
    if sampling == "grid_sample":
        columns = _sample_grid(wide_x, offset, mask, geometry).to(x.dtype)
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(columns, weight.flatten(1)[:, :, None, None], bias, groups=groups)
    raise ValueError(f"sampling {sampling!r} is unknown; choose one of {', '.join(get_args(Sampling))}")


def sample_displaced(x: Tensor, offset: Tensor) -> Tensor:
    """The map read at displaced positions, zero outside: out[:, i, j] = x[:, i + dy, j + dx].

    Args:
        x: map (B, C, H, W).
        offset: (dy, dx) in pixels, (B, 2, H, W).

    Returns:
        (B, C, H, W) in the type of `x`.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    return _sample_grid(x.to(exact), offset.to(exact), None, Geometry((1, 1), 1, 0, 1)).to(x.dtype)


def deformable_conv2d_reference(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """The same value by the formula, tap by tap and neighbour by neighbour; the oracle of the tests."""
    batch, channels, height, width = x.shape
    out_channels, group_width, kernel_h, kernel_w = weight.shape
    taps, groups = kernel_h * kernel_w, channels // group_width
    offset_groups = offset.shape[1] // (2 * taps)
    out_size = offset.shape[2:]
    rows = torch.arange(out_size[0], device=x.device).to(x.dtype)[:, None] * stride - padding
    columns = torch.arange(out_size[1], device=x.device).to(x.dtype) * stride - padding
    out = x.new_zeros(batch, groups, out_channels // groups, *out_size)
    for tap in range(taps):
        a, b = divmod(tap, kernel_w)
        parts = []
        for index, part in enumerate(x.chunk(offset_groups, 1)):
            own = index * taps + tap
            y, z = rows + a * dilation + offset[:, 2 * own], columns + b * dilation + offset[:, 2 * own + 1]
            value = x.new_zeros(*part.shape[:2], *out_size)
            for y_near in (y.floor(), y.floor() + 1):
                for z_near in (z.floor(), z.floor() + 1):
                    inside = (y_near >= 0) & (y_near < height) & (z_near >= 0) & (z_near < width)
                    share = (1 - (y - y_near).abs()) * (1 - (z - z_near).abs()) * inside
                    place = (y_near.clamp(0, height - 1) * width + z_near.clamp(0, width - 1)).long()
                    index_of_all = place.flatten(1)[:, None].expand(-1, part.shape[1], -1)
                    value = value + share[:, None] * part.flatten(2).gather(2, index_of_all).view_as(value)
            parts.append(value if mask is None else value * mask[:, own, None])
        seen = torch.cat(parts, 1).unflatten(1, (groups, group_width))
        kernel = weight[:, :, a, b].unflatten(0, (groups, -1))
        out = out + torch.einsum("goc,bgchw->bgohw", kernel, seen)
    return out.flatten(1, 2) if bias is None else out.flatten(1, 2) + bias[:, None, None]


def _positions(offset: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Rows and columns, in pixels, that each tap reads: two tensors (B, G, taps, H', W')."""
    (kernel_h, kernel_w), stride, padding, dilation = geometry
    by_tap = offset.unflatten(1, (-1, kernel_h * kernel_w, 2))
    device = offset.device
    tap = torch.arange(kernel_h * kernel_w, device=device)
    tap_row = (torch.div(tap, kernel_w, rounding_mode="floor") * dilation - padding).to(offset.dtype)
    tap_column = (tap % kernel_w * dilation - padding).to(offset.dtype)
    row = torch.arange(offset.shape[2], device=device).to(offset.dtype)[:, None] * stride + tap_row[:, None, None]
    column = torch.arange(offset.shape[3], device=device).to(offset.dtype) * stride + tap_column[:, None, None]
    return by_tap[:, :, :, 0] + row, by_tap[:, :, :, 1] + column


def _sample_grid(x: Tensor, offset: Tensor, mask: Tensor | None, geometry: Geometry) -> Tensor:
    """What the taps read, as columns (B, C·taps, H', W') in the order of a kernel's channels and taps."""
    channels, height, width = x.shape[1:]
    row, column = _positions(offset, geometry)
    batch, groups, taps, out_h, out_w = row.shape
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], dim=-1)
    # The taps lie one below the other in a map that is taps times as high, so that the result needs no permutation.
    grid = grid.view(batch * groups, taps * out_h, out_w, 2)
    parts = x.reshape(batch * groups, channels // groups, height, width)
    seen = F.grid_sample(parts, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    seen = seen.view(batch, groups, channels // groups, taps, out_h, out_w)
    if mask is not None:
        seen = seen * mask.view(batch, groups, 1, taps, out_h, out_w)
    return seen.reshape(batch, channels * taps, out_h, out_w)


def _sample_rows(x: Tensor, offset: Tensor, mask: Tensor | None, geometry: Geometry) -> Tensor:
    """What the taps read, (B, H', W', taps, C): each a weighted sum of four rows of a channels-last map.

    The sum is `embedding_bag` with the pixels as vocabulary: whole rows of channels are read and the four neighbours
    are never written out.
    """
    channels, height, width = x.shape[1:]
    row, column = (position.permute(0, 3, 4, 2, 1) for position in _positions(offset, geometry))
    batch, groups = row.shape[0], row.shape[4]
    near_row, row_share = neighbours(row, height)  # (B, H', W', taps, G, 2)
    near_column, column_share = neighbours(column, width)
    if mask is not None:
        row_share = row_share * mask.unflatten(1, (groups, -1)).permute(0, 3, 4, 2, 1)[..., None]
    image = torch.arange(batch, device=x.device).view(-1, 1, 1, 1, 1, 1, 1) * (height * width)
    pixel = image + near_row[..., :, None] * width + near_column[..., None, :]
    share = row_share[..., :, None] * column_share[..., None, :]
    if groups > 1:  # a row of the vocabulary is then a pixel's channels of one group
        pixel = pixel * groups + torch.arange(groups, device=x.device)[:, None, None]

    vocabulary = x.permute(0, 2, 3, 1).reshape(batch * height * width * groups, channels // groups)
    words = pixel.flatten()
    bags = torch.arange(0, words.numel(), 4, device=x.device)
    # The operator behind F.embedding_bag, which skips the gradient of the shares whenever the vocabulary needs none.
    seen = torch.ops.aten._embedding_bag(vocabulary, words, bags, False, 0, False, share.flatten())[0]
    return seen.view(*row.shape[:4], channels)


def neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each position and their shares: (…, 2) each; a pixel outside 0 … size-1 has none."""
    below = position.floor()
    near = torch.stack([below, below + 1], dim=-1)
    share = torch.stack([below + 1 - position, position - below], dim=-1)
    inside = (near >= 0) & (near < size)
    return near.clamp(0, size - 1).long().clamp(0, size - 1), share * inside  # the second clamp is for NaN


def _product_of_rows(columns: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Columns (B, H', W', taps, C) times kernel (O, C/groups, kh, kw) -> (B, O, H', W') in channels-last memory."""
    groups = columns.shape[4] // weight.shape[1]
    kernel = weight.permute(0, 2, 3, 1)  # a view where the weight is channels-last
    if groups == 1:
        return F.linear(columns.flatten(3), kernel.flatten(1), bias).permute(0, 3, 1, 2)
    kernel = kernel.flatten(1, 2).unflatten(0, (groups, -1))
    out = torch.einsum("bhwkgc,gokc->bhwgo", columns.unflatten(4, (groups, -1)), kernel).flatten(3)
    return (out if bias is None else out + bias).permute(0, 3, 1, 2)


def _check_shapes(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, geometry: Geometry) -> None:
    (kernel_h, kernel_w), stride, padding, dilation = geometry
    taps = kernel_h * kernel_w
    if x.shape[1] % weight.shape[1] or weight.shape[0] % (x.shape[1] // weight.shape[1]):
        raise ValueError(
            f"map of {x.shape[1]} channels does not fit a weight of shape {tuple(weight.shape)}; "
            "it is (out channels, in channels / groups, height, width)"
        )
    groups = offset.shape[1] // (2 * taps)  # in a trace these are tensors, which have no divmod
    if offset.shape[1] % (2 * taps) or not groups or x.shape[1] % groups:
        raise ValueError(
            f"offset has {offset.shape[1]} channels; a {kernel_h}x{kernel_w} kernel needs {2 * taps} for each of its "
            f"offset groups, whose number divides {x.shape[1]}"
        )
    size = tuple(
        (side + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for side, k in zip(x.shape[2:], geometry.kernel, strict=True)
    )
    if tuple(offset.shape[2:]) != size:
        raise ValueError(f"offset of size {tuple(offset.shape[2:])} does not fit an output of {size}")
    if mask is not None and mask.shape[1:] != (groups * taps, *size):
        raise ValueError(f"mask of shape {tuple(mask.shape)} should be {(x.shape[0], groups * taps, *size)}")
