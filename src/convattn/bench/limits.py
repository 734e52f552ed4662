"""What this machine can do at best: multiply-adds a second and bytes a second, probed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Limits", "probe_limits"]

_SHAPES = ((196, 1024, 1024), (784, 512, 2048), (1024, 1024, 1024), (3136, 256, 1024), (4096, 512, 512), (2048,) * 3)
_COPIED = 256 * 2**20  # bytes: more than any cache holds
_PASSES = 8


@dataclass(frozen=True)
class Limits:
    """The best of the probes."""

    macs_per_second: float  # of a matrix product
    product: tuple[int, int, int]  # rows, inputs and outputs of the one that reached it
    bytes_per_second: float  # read and written by a large copy

    def milliseconds(self, macs: int, moved_bytes: int) -> float:
        """The least time of an operation: its arithmetic or its memory traffic, whichever takes longer."""
        return 1000 * max(macs / self.macs_per_second, moved_bytes / self.bytes_per_second)

    def __str__(self) -> str:
        rows, inputs, outputs = self.product
        return (
            f"{self.macs_per_second / 1e9:.0f} GMAC/s ({rows} x {inputs} by {inputs} x {outputs}), "
            f"{self.bytes_per_second / 1e9:.1f} GB/s (copy of {_COPIED // 2**20} MiB)"
        )


def probe_limits(dtype: torch.dtype = torch.float32) -> Limits:
    """Multiply matrices of several shapes and copy a large block on the CPU, with PyTorch's threads; a few seconds."""
    with torch.inference_mode():
        rates = {shape: _product_rate(*shape, dtype) for shape in _SHAPES}
        source = torch.ones(_COPIED, dtype=torch.uint8)
        target = torch.empty_like(source)
        copied = 2 * _COPIED / _best_seconds(lambda: target.copy_(source))
    best = max(rates, key=lambda shape: rates[shape])
    return Limits(rates[best], best, copied)


def _product_rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Multiply-adds a second of the fastest way to multiply by a weight: reordered for oneDNN, or as it is."""
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    ways: list[Callable[[], Tensor]] = [lambda: F.linear(x, weight)]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], None))
    return rows * inputs * outputs / min(_best_seconds(way) for way in ways)


def _best_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
