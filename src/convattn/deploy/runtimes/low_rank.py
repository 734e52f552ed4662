"""The same computation in tensors of few dimensions, for runtimes that allow no more.

Blocks name groups, heads and taps as dimensions of their own, many of them of length 1. Those are left out of every
tensor that would have too many, so the numbers stay as they are, bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

__all__ = ["LowRank"]


class LowRank(nn.Module):
    """`program` as a module of one input, without the dimensions of length 1 in tensors of more than `most` dimensions.

    What has more dimensions than `most` even so is left to the runtime to refuse.

    Raises:
        NotImplementedError: when run, for an operator on such a tensor that this module does not know.
    """

    def __init__(self, program: ExportedProgram, most: int):
        super().__init__()
        self.program, self.most = program.module(check_guards=False), most

    def forward(self, images: Tensor) -> Any:
        """What the program returns for `images`."""
        return _Squeezing(self.program, self.most).run(images)


@dataclass(frozen=True)
class _Squeezed:
    """A tensor of too many dimensions, held without those of length 1."""

    tensor: Tensor
    shape: tuple[int, ...]  # with them


class _Squeezing(Interpreter):
    def __init__(self, graph: Any, most: int):
        super().__init__(graph)
        self.most = most

    def run_node(self, n: Node) -> Any:
        if n.op != "call_function" or not isinstance(n.target, torch._ops.OpOverload):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = n.meta.get("val")
        is_large = isinstance(value, Tensor) and value.ndim > self.most
        if not is_large and not any(isinstance(arg, _Squeezed) for arg in _flat(args)):
            return super().run_node(n)
        return self.squeezed(n.target, args, kwargs)

    def squeezed(self, target: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Any:
        if torch.Tag.pointwise in target.tags:
            return self.pointwise(lambda *given: target(*given, **kwargs), args)
        name = target.name().removeprefix("aten::").partition(".")[0]
        x = args[0]
        if name in ("cat", "stack"):
            return self.cat(x, args[1] if len(args) > 1 else 0, new=name == "stack")
        if name in ("view", "_unsafe_view", "reshape"):
            return self.hold(x, _resolved(args[1], _shape(x)))
        if name == "unsqueeze":
            shape = list(_shape(x))
            shape.insert(args[1] % (len(shape) + 1), 1)
            return self.hold(x, shape)
        if name in ("clone", "contiguous"):
            return self.hold(x, _shape(x))
        if name == "expand":
            return self.expand(x, args[1])
        if name == "permute":
            return self.permute(x, args[1])
        if name == "unbind":
            dim = args[1] if len(args) > 1 else 0
            return [
                self.along(x, [dim], lambda y, dims, i=i: y.narrow(dims[0], i, 1), drop=dim)
                for i in range(_shape(x)[dim])
            ]
        if name == "select":
            return self.along(
                x, [args[1]], lambda y, dims: y.narrow(dims[0], args[2] % y.shape[dims[0]], 1), drop=args[1]
            )
        if name == "slice":
            bounds = args[2:]
            return self.along(x, [args[1]], lambda y, dims: torch.ops.aten.slice.Tensor(y, dims[0], *bounds))
        if name in ("pad", "constant_pad_nd") and args[2:3] in ((), ("constant",), (0,), (0.0,)):
            return self.pad(x, args[1])
        if name in ("sum", "mean") and len(args) > 1 and (args[2:3] == (True,)):
            return self.along(x, args[1], lambda y, dims: target(y, dims, True))
        raise NotImplementedError(f"{target} on a tensor of {len(_shape(x))} dimensions")

    def hold(self, x: Any, shape: Sequence[int]) -> Any:
        """`x` under a new shape of as many elements."""
        tensor = x.tensor if isinstance(x, _Squeezed) else x
        if len(shape) <= self.most:
            return tensor.reshape(tuple(shape))
        return _Squeezed(tensor.reshape([side for side in shape if not _is_one(side)]), tuple(shape))

    def pointwise(self, function: Callable, operands: Sequence[Any]) -> Any:
        """`function` of the operands, broadcast against one another."""
        ranks = [len(_shape(x)) for x in operands if isinstance(x, (Tensor, _Squeezed))]
        rows = [_aligned(x, max(ranks)) for x in operands if isinstance(x, (Tensor, _Squeezed))]
        full = [next((side for side in sides if not _is_one(side)), 1) for sides in zip(*rows, strict=True)]
        kept = [axis for axis, side in enumerate(full) if not _is_one(side)]

        def brought(x: Any) -> Any:
            if not isinstance(x, (Tensor, _Squeezed)):
                return x
            tensor = x.tensor if isinstance(x, _Squeezed) else x
            return tensor.reshape([_aligned(x, len(full))[axis] for axis in kept])

        return self.hold(function(*map(brought, operands)), full)

    def expand(self, x: Any, sides: Sequence[int]) -> Any:
        old = _aligned(x, len(sides))
        full = [was if isinstance(side, int) and side == -1 else side for side, was in zip(sides, old, strict=True)]
        kept = [axis for axis, side in enumerate(full) if not _is_one(side)]
        tensor = x.tensor if isinstance(x, _Squeezed) else x
        return self.hold(tensor.reshape([old[axis] for axis in kept]).expand([full[axis] for axis in kept]), full)

    def permute(self, x: Any, dims: Sequence[int]) -> Any:
        shape = _shape(x)
        dims = [dim % len(shape) for dim in dims]
        kept = [axis for axis, side in enumerate(shape) if not _is_one(side)]
        low = self.plain(x, kept).permute([kept.index(dim) for dim in dims if dim in kept])
        return self.hold(low, [shape[dim] for dim in dims])

    def pad(self, x: Any, sides: Sequence[int]) -> Any:
        rank = len(_shape(x))
        pairs = {rank - 1 - index: sides[2 * index : 2 * index + 2] for index in range(len(sides) // 2)}
        touched = [axis for axis, pair in pairs.items() if tuple(pair) != (0, 0)]

        def padded(y: Tensor, dims: list[int]) -> Tensor:
            of = {dim: pairs[axis] for dim, axis in zip(dims, touched, strict=True)}
            return nn.functional.pad(y, [side for dim in reversed(range(y.ndim)) for side in of.get(dim, (0, 0))])

        return self.along(x, touched, padded)

    def cat(self, parts: Sequence[Any], dim: int, *, new: bool) -> Any:
        shapes = [list(_shape(part)) for part in parts]
        dim %= len(shapes[0]) + new
        for shape in shapes if new else ():
            shape.insert(dim, 1)
        full = shapes[0]
        kept = [axis for axis, side in enumerate(full) if axis == dim or not _is_one(side)]
        rows = [
            (part.tensor if isinstance(part, _Squeezed) else part).reshape([shape[axis] for axis in kept])
            for part, shape in zip(parts, shapes, strict=True)
        ]
        low = torch.cat(rows, kept.index(dim))
        full[dim] = low.shape[kept.index(dim)]
        return self.hold(low, full)

    def along(self, x: Any, axes: Sequence[int], function: Callable, drop: int | None = None) -> Any:
        """`function(tensor, dims)`, with `dims` the places of `axes` in a tensor without the other ones of length 1."""
        shape = list(_shape(x))
        axes = [axis % len(shape) for axis in axes]
        kept = [axis for axis, side in enumerate(shape) if axis in axes or not _is_one(side)]
        dims = [kept.index(axis) for axis in axes]
        low = function(self.plain(x, kept), dims)
        for axis, dim in zip(axes, dims, strict=True):
            shape[axis] = low.shape[dim]
        if drop is not None:
            del shape[drop % len(shape)]
        return self.hold(low, shape)

    def plain(self, x: Any, kept: list[int]) -> Tensor:
        tensor = x.tensor if isinstance(x, _Squeezed) else x
        return tensor.reshape([_shape(x)[axis] for axis in kept])


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(x.shape)


def _aligned(x: Any, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(_shape(x))) + _shape(x)


def _is_one(side: int) -> bool:
    return isinstance(side, int) and side == 1  # not a symbol: that may become 1


def _resolved(shape: Sequence[int], of: Sequence[int]) -> list[int]:
    """A shape with the one side that -1 stands for."""
    known = math.prod(side for side in shape if not isinstance(side, int) or side != -1)
    return [math.prod(of) // known if isinstance(side, int) and side == -1 else side for side in shape]


def _flat(args: Any) -> list[Any]:
    return [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
