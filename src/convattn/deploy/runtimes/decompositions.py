"""Operators of ours that mobile runtimes lack, in terms of those that they have."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["decompositions"]


def decompositions() -> dict[Callable, Callable]:
    """For `ExportedProgram.run_decompositions`.

    PyTorch's own for `addcmul` and `lerp` cast, compare and select, none of which is needed here; for `var_mean` it has
    none that stays within ATen. Padding by a negative number, which crops, is known to PyTorch only, and Core ML
    takes a group norm with a fixed batch only.
    """
    aten = torch.ops.aten
    return {
        aten.addcmul.default: _addcmul,
        aten.group_norm.default: _group_norm,
        aten.lerp.Tensor: _lerp,
        aten.pad.default: _pad,
        aten.var_mean.correction: _var_mean,
    }


def _addcmul(x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    product = first * second
    return x + (product if value == 1 else product * value)


def _lerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    return start + (end - start) * weight


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    parts = x.unflatten(1, (groups, -1))
    axes = list(range(2, parts.ndim))
    centred = parts - parts.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    normal = (centred * (variance + eps).rsqrt()).flatten(1, 2)
    of_channels = (-1, *(1,) * (x.ndim - 2))
    if weight is not None:
        normal = normal * weight.view(of_channels)
    return normal if bias is None else normal + bias.view(of_channels)


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    if mode != "constant":
        return NotImplemented
    for index, side in enumerate(pad):
        dim = x.ndim - 1 - index // 2
        if side < 0:
            x = x.narrow(dim, -side if index % 2 == 0 else 0, x.shape[dim] + side)
    added = [max(side, 0) for side in pad]
    return torch.ops.aten.constant_pad_nd(x, added, value or 0) if any(added) else x


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    axes = list(range(x.ndim)) if dim is None else list(dim)
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    variance = (centred * centred).mean(axes, keepdim=keepdim)
    removed = 1 if correction is None else correction
    if removed:
        count = x.numel() // mean.numel()
        variance = variance * (count / (count - removed))
    return variance, mean if keepdim else mean.squeeze(axes)
