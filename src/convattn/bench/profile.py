"""Where the time of a forward pass goes, operation by operation, and how far each is from what the machine can do."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from convattn.bench.limits import Limits

__all__ = ["Operation", "Profile", "profile"]


@dataclass(frozen=True)
class Operation:
    """An operator in one place, on inputs of one kind."""

    module: str  # dotted name
    operator: str
    shapes: tuple[tuple[int, ...], ...]  # of its tensors
    calls: int  # in a forward pass
    milliseconds: float  # of them all, the median over the passes
    macs: int
    moved_bytes: int  # tensors read and written, each once
    limit_ms: float  # the least time by arithmetic or memory traffic

    @property
    def times_limit(self) -> float:
        """Measured over least time; below 1 where the tensors come from a cache."""
        return self.milliseconds / self.limit_ms if self.limit_ms else float("inf")


@dataclass(frozen=True)
class Profile:
    """All operations of a forward pass, the dearest first."""

    operations: tuple[Operation, ...]
    forward_ms: float  # a pass that nobody watches, the median
    limits: Limits

    @property
    def operations_ms(self) -> float:
        """What the operations take together; the rest of the forward pass is Python and dispatch."""
        return sum(operation.milliseconds for operation in self.operations)

    def by_operator(self) -> list[tuple[str, int, float, float]]:
        """(operator, calls, milliseconds, least milliseconds), the dearest first."""
        groups: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            groups[operation.operator].append(operation)
        totals = [
            (name, sum(o.calls for o in group), sum(o.milliseconds for o in group), sum(o.limit_ms for o in group))
            for name, group in groups.items()
        ]
        return sorted(totals, key=lambda total: -total[2])


def profile(model: nn.Module, images: Tensor, limits: Limits, *, repeats: int = 10, warmup: int = 3) -> Profile:
    """Time every operator of a forward pass on the CPU, by the module that calls it.

    An operator is timed around its kernel, so that the watching counts little. Views take no time to speak of and stand
    at the end.

    Args:
        model: evaluated; any form that runs in eager mode.
        images: (B, C, H, W).
        limits: of this machine, from `probe_limits` in the same precision.
        repeats: watched passes.
        warmup: passes before.

    Raises:
        ValueError: if model or images are not on the CPU.
    """
    if images.device.type != "cpu":
        raise ValueError(f"images are on {images.device}; operators are profiled on the CPU")
    with torch.no_grad():  # inference mode would show composite operators whole
        for _ in range(warmup):
            model(images)
        plain = [_seconds(lambda: model(images)) for _ in range(repeats)]
        with _named_modules(model) as path:
            passes = []
            for _ in range(repeats):
                with _Watch(path) as watch:
                    model(images)
                passes.append(watch.seen)
    return Profile(_operations(passes, limits), 1000 * statistics.median(plain), limits)


@dataclass
class _Seen:
    """One kind of operation in one pass."""

    calls: int = 0
    seconds: float = 0.0
    macs: int = 0
    moved_bytes: int = 0


_Key = tuple[str, str, tuple[tuple[int, ...], ...]]  # module, operator, shapes


class _Watch(TorchDispatchMode):
    """Times every operator that reaches the backend."""

    def __init__(self, path: Sequence[str]):
        super().__init__()
        self.path = path
        self.seen: dict[_Key, _Seen] = defaultdict(_Seen)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter()
        output = func(*args, **kwargs)
        seconds = time.perf_counter() - start
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        seen = self.seen[self.path[-1], str(func).removesuffix(".default"), shapes]
        seen.calls += 1
        seen.seconds += seconds
        seen.macs += _macs(func, args, kwargs, output)
        results = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not func.is_view:
            seen.moved_bytes += sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *results])
        return output


def _macs(func: Any, args: Any, kwargs: Any, output: Any) -> int:
    name = str(func)
    if name.startswith("mkldnn._linear_pointwise"):
        return output.numel() * args[0].shape[-1]
    if name.startswith("mkldnn._convolution_pointwise"):
        return output.numel() * args[1].shape[1:].numel()
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=output) // 2 if formula else 0


@contextmanager
def _named_modules(model: nn.Module) -> Iterator[list[str]]:
    """A list whose last entry is the name of the module that runs."""
    path = [""]

    def entering(name: str) -> Callable[..., None]:
        return lambda module, inputs: path.append(name)

    def leaving(module: nn.Module, inputs: Any, output: Any) -> None:
        path.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks += [module.register_forward_pre_hook(entering(name)), module.register_forward_hook(leaving)]
    try:
        yield path
    finally:
        for hook in hooks:
            hook.remove()


def _operations(passes: Sequence[dict[_Key, _Seen]], limits: Limits) -> tuple[Operation, ...]:
    found = []
    for key, first in passes[0].items():
        milliseconds = 1000 * statistics.median(seen[key].seconds for seen in passes)
        least = limits.milliseconds(first.macs, first.moved_bytes)
        found.append(Operation(*key, first.calls, milliseconds, first.macs, first.moved_bytes, least))
    return tuple(sorted(found, key=lambda operation: -operation.milliseconds))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
