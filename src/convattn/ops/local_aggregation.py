"""Local aggregation: each position is a weighted sum of its neighbours, with weights of its own for every position.

    out[b, head·C + c, i, j] = Σ over taps (u, v) of weight[b, head, u·k + v, w(c), i, j]
                                  · value[b, c, i·stride + (u - k//2)·dilation, j·stride + (v - k//2)·dilation]

with zeros outside the map. Several channels share one weight: the channels split into `groups` consecutive parts, and
inside a part of P channels with Q weights, channel p takes weight p mod Q (the sharing is strided, not in runs).

The plain reference gathers all neighbours by unfold, k² times the memory. The fast path never does: it lays values out
as (B, groups, sharers, H, W, Q) and weights tap by tap as (B, heads, taps, groups, 1, H, W, Q), so that a tap is one
multiply-add of two views in which whole rows of the map lie together, however few the weights are.

Where a GPU kernel belongs: the `forward` of `_Gather`, `_Scatter` and `_Correlate`, the result and its gradients by the
values and by the weights, each one loop over taps on the layout above. A kernel takes the place of a loop for tensors
on its device; autograd around the three stays as it is. Until then a GPU runs the loops as they are.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

__all__ = ["LocalAggregation", "aggregate_planes", "local_aggregation", "local_aggregation_reference"]


class _Stencil(NamedTuple):
    """Which neighbours a position sums: (B, groups, sharers, H, W, Q) against weights of the output's size."""

    kernel_size: int
    stride: int
    dilation: int

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel_size // 2)

    def pad(self, value: Tensor) -> Tensor:
        return F.pad(value, (0, 0, *(self.padding,) * 4))

    def crop(self, padded: Tensor) -> Tensor:
        return F.pad(padded, (0, 0, *(-self.padding,) * 4))

    def views(self, padded: Tensor, height: int, width: int) -> list[Tensor]:
        """For each tap the part of the padded map that meets an output of `height` x `width`."""
        rows, columns = self.stride * (height - 1) + 1, self.stride * (width - 1) + 1
        starts = [self.dilation * step for step in range(self.kernel_size)]
        return [
            padded[:, :, :, top : top + rows : self.stride, left : left + columns : self.stride]
            for top in starts
            for left in starts
        ]


def local_aggregation(
    value: Tensor, weight: Tensor, *, kernel_size: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """Sum each position's neighbourhood with that position's own weights.

    Differentiable any number of times. Half precision accumulates in float32. Works on any device, and is exported as
    slices, products and sums.

    Args:
        value: (B, C, H, W).
        weight: (B, heads, kernel_size², Cw, H', W'), tap-major, taps row by row; H' and W' are the output's size,
            ceil(H / stride) and ceil(W / stride). Cw divides C, and `groups` divides Cw. Or with the groups apart,
            (B, heads, kernel_size², groups, Cw / groups, H', W').
        kernel_size: odd side of the neighbourhood.
        stride: distance between the positions summed.
        dilation: distance between neighbours.
        groups: consecutive parts of the channels, of which each has its own part of the weights.

    Returns:
        (B, heads · C, H', W') in the precision of `value`, channels-last.

    Raises:
        ValueError: if the shapes do not fit one another.
    """
    stencil = _Stencil(kernel_size, stride, dilation)
    weight = _with_groups(value, weight, stencil, groups)
    wide = torch.promote_types(torch.promote_types(value.dtype, weight.dtype), torch.float32)
    packed_value = value.to(wide).unflatten(1, (groups, -1, weight.shape[4])).permute(0, 1, 2, 4, 5, 3)
    packed_weight = weight.to(wide)[:, :, :, :, None].permute(0, 1, 2, 3, 4, 6, 7, 5).contiguous()
    out = _Gather.apply(packed_value, packed_weight, stencil)  # (B, heads, groups, sharers, H', W', Q)
    return out.to(value.dtype).permute(0, 4, 5, 1, 2, 3, 6).flatten(3).permute(0, 3, 1, 2)


def aggregate_planes(value: Tensor, weight: Tensor, *, groups: int = 1) -> Tensor:
    """`local_aggregation` of stride 1 and one head on channels-first maps, for graph runtimes.

    Those copy what they shift, so the sum over taps is taken apart: the map is shifted by columns, once a column of the
    kernel; rows are shifted in the weights, of which there are fewer, and back in the partial sums. That is 2·k shifts
    of whole maps and k² of weights where tap by tap it would be k² of maps.

    Args:
        value: (B, C, H, W).
        weight: (B, Cw, kernel_size², H, W), taps row by row; Cw divides C, and `groups` divides Cw.
        groups: as in `local_aggregation`.

    Returns:
        (B, C, H, W), contiguous.
    """
    kernel_size = math.isqrt(weight.shape[2])
    reach = range(-(kernel_size // 2), kernel_size // 2 + 1)
    taps = weight.unflatten(1, (groups, 1, -1)).unbind(4)  # each (B, groups, 1, Q, H, W)
    value = value.unflatten(1, (groups, -1, taps[0].shape[3]))  # (B, groups, sharers, Q, H, W)
    columns = [_shift(value, step, (-1, 1)) for step in reach]
    rows = []
    for row, step in enumerate(reach):
        of_row = [_shift(tap, -step, (0, 0, -1, 1)) for tap in taps[row * kernel_size :][:kernel_size]]
        partial = columns[0] * of_row[0]
        for column, tap in zip(columns[1:], of_row[1:], strict=True):
            partial = partial + column * tap
        rows.append(_shift(partial, step, (0, 0, -1, 1)))
    return functools.reduce(torch.add, rows).flatten(1, 3)


def _shift(x: Tensor, steps: int, one: tuple[int, ...]) -> Tensor:
    """`x` read `steps` positions further on, zeros outside; `one` is the padding that moves it by one."""
    for _ in range(abs(steps)):  # by one at a time: no map is too small to lose a row
        x = F.pad(x, one if steps > 0 else [-side for side in one])
    return x


def local_aggregation_reference(
    value: Tensor, weight: Tensor, *, kernel_size: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """The same by unfold in float64, written as the formula; for checking, at k² times the memory."""
    stencil = _Stencil(kernel_size, stride, dilation)
    weight = _with_groups(value, weight, stencil, groups).double()
    heads, taps, _, num_weights, height, width = weight.shape[1:]
    neighbours = F.unfold(value.double(), kernel_size, dilation, stencil.padding, stride)
    neighbours = neighbours.reshape(len(value), 1, groups, -1, num_weights, taps, height, width)
    weights = weight.permute(0, 1, 3, 4, 2, 5, 6)[:, :, :, None]  # (B, heads, groups, 1, Q, taps, H', W')
    return (neighbours * weights).sum(5).reshape(len(value), heads * value.shape[1], height, width).to(value.dtype)


@register_notrace_module
class LocalAggregation(nn.Module):
    """`local_aggregation` as a layer without parameters.

    Args:
        kernel_size, stride, dilation, groups: as there.
    """

    def __init__(self, kernel_size: int = 3, *, stride: int = 1, dilation: int = 1, groups: int = 1):
        super().__init__()
        self.kernel_size, self.stride, self.dilation, self.groups = kernel_size, stride, dilation, groups

    def forward(self, value: Tensor, weight: Tensor) -> Tensor:
        """(B, C, H, W) and (B, heads, kernel_size², Cw, H', W') -> (B, heads · C, H', W')."""
        return local_aggregation(
            value, weight, kernel_size=self.kernel_size, stride=self.stride, dilation=self.dilation, groups=self.groups
        )

    def kernel_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        """One multiply-add for each tap of each output element."""
        return self.kernel_size**2 * output.numel()

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, dilation={self.dilation}, groups={self.groups}"


# The form Σ grad · weight · value is linear in each of its three operands, so each of the three loops has the other two
# as its gradients, and all of them together can be differentiated any number of times.
#
# Shapes: value (B, G, S, H, W, Q), weight (B, heads, taps, G, 1, H', W', Q), result and its gradient
# (B, heads, G, S, H', W', Q); G groups, S channels that share a weight, Q weights of a group.


class _Linear(torch.autograd.Function):
    """Two operands and a stencil, kept for the gradients by one operand and the other."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, ctx.stencil, *_ = inputs
        ctx.save_for_backward(first, second)


class _Gather(_Linear):
    """The result: at each output position the neighbours, each times its tap's weight, summed."""

    @staticmethod
    def forward(value: Tensor, weight: Tensor, stencil: _Stencil) -> Tensor:
        neighbours = stencil.views(stencil.pad(value), *weight.shape[5:7])
        out = neighbours[0][:, None] * weight[:, :, 0]
        for tap in range(1, len(neighbours)):
            out.addcmul_(neighbours[tap][:, None], weight[:, :, tap])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, weight = ctx.saved_tensors
        by_value, by_weight, _ = ctx.needs_input_grad
        return (
            _Scatter.apply(grads[0], weight, ctx.stencil, value.shape[3:5]) if by_value else None,
            _Correlate.apply(grads[0], value, ctx.stencil) if by_weight else None,
            None,
        )


class _Scatter(_Linear):
    """The gradient by the values: each output position hands its gradient back to its neighbours, times the weights."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, stencil: _Stencil, size: torch.Size) -> Tensor:
        height, width = (side + 2 * stencil.padding for side in size)
        padded = grad.new_zeros(len(grad), *grad.shape[2:4], height, width, grad.shape[6])
        for tap, neighbours in enumerate(stencil.views(padded, *grad.shape[4:6])):
            for head in range(weight.shape[1]):
                neighbours.addcmul_(grad[:, head], weight[:, head, tap])
        return stencil.crop(padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        by_grad, by_weight = ctx.needs_input_grad[:2]
        return (
            _Gather.apply(grads[0], weight, ctx.stencil) if by_grad else None,
            _Correlate.apply(grad, grads[0], ctx.stencil) if by_weight else None,
            None,
            None,
        )


class _Correlate(_Linear):
    """The gradient by the weights: gradient times neighbour, summed over the channels that share the weight."""

    @staticmethod
    def forward(grad: Tensor, value: Tensor, stencil: _Stencil) -> Tensor:
        neighbours = stencil.views(stencil.pad(value), *grad.shape[4:6])
        return torch.stack([(grad * view[:, None]).sum(3, keepdim=True) for view in neighbours], dim=2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, value = ctx.saved_tensors
        by_grad, by_value, _ = ctx.needs_input_grad
        return (
            _Gather.apply(value, grads[0], ctx.stencil) if by_grad else None,
            _Scatter.apply(grad, grads[0], ctx.stencil, value.shape[3:5]) if by_value else None,
            None,
        )


def _with_groups(value: Tensor, weight: Tensor, stencil: _Stencil, groups: int) -> Tensor:
    """The weights with their groups apart, (B, heads, taps, groups, Q, H', W'), once everything fits."""
    if value.ndim != 4 or weight.ndim not in (6, 7):
        raise ValueError(
            f"value of shape {tuple(value.shape)} and weight of shape {tuple(weight.shape)}: expected (B, C, H, W) and "
            "(B, heads, taps, channels of weights, H', W')"
        )
    kernel_size, stride, _ = stencil
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size} must be odd, so that the neighbourhood has a centre")
    if weight.shape[2] != kernel_size**2:
        raise ValueError(f"weight has {weight.shape[2]} taps; a neighbourhood of {kernel_size} has {kernel_size**2}")
    channels, num_weights = value.shape[1], weight.shape[3:-2].numel()
    if channels % num_weights or num_weights % groups:
        raise ValueError(
            f"{num_weights} channels of weights must divide the {channels} channels of values and be a multiple of "
            f"the {groups} groups"
        )
    size = tuple((side - 1) // stride + 1 for side in value.shape[2:])
    if tuple(weight.shape[-2:]) != size:
        raise ValueError(f"weight is for {tuple(weight.shape[-2:])} positions; the output has {size}")
    return weight.unflatten(3, (groups, -1)) if weight.ndim == 6 else weight
