"""How cost grows with the size of the images and of the batch: exponents fitted to a benchmark's table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from convattn.bench.runtimes import Setting
from convattn.bench.table import BenchmarkRow, BenchmarkTable
from convattn.sizes import Size

__all__ = ["BATCHES", "SIZES", "Exponent", "Growth", "fit_exponent", "growth_of", "growth_settings"]

SIZES = (224, 384, 512, 768, 1024)
BATCHES = (1, 4, 16, 64)

_FEWEST = 3  # points: through two a line always goes
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Exponent:
    """p in cost = c · xᵖ."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Growth:
    """One model in one runtime over several sizes, or several batches."""

    model: str
    runtime: str
    precision: str
    over: Literal["pixels", "batch"]
    at: tuple[int | str, ...]  # sides in pixels or "224 x 320", or images
    median_ms: tuple[float, ...]
    peak_bytes: tuple[int | None, ...]
    time: Exponent
    memory: Exponent | None  # of what a call needs besides the weights
    macs: Exponent  # multiply-adds, counted


def growth_settings(
    sizes: Sequence[Size], batches: Sequence[int], precision: str, device: str = "cpu"
) -> list[Setting]:
    """Every size at the first batch, and every batch at the first size."""
    settings = [Setting(precision, batches[0], size, device) for size in sizes]
    return settings + [Setting(precision, batch, sizes[0], device) for batch in batches[1:]]


def fit_exponent(xs: Sequence[float], ys: Sequence[float]) -> Exponent:
    """Least squares of log y on log x: the slope and its standard error.

    ValueError for fewer than three points, or one that is not positive.
    """
    if len(xs) < _FEWEST or len(set(xs)) < 2:
        raise ValueError(f"{len(xs)} points; an exponent with an error needs {_FEWEST} or more at different places")
    if min(*xs, *ys) <= 0:
        raise ValueError(f"{min(*xs, *ys)} has no logarithm; a power law takes numbers above 0")
    (slope, _), covariance = np.polyfit(np.log(xs), np.log(ys), 1, cov=True)
    return Exponent(float(slope), math.sqrt(covariance[0, 0]))


def growth_of(table: BenchmarkTable) -> list[Growth]:
    """A fit for every model and runtime that was measured at three sizes of one batch, or three batches of one size."""
    found = []
    counted = [row for row in table.rows if row.macs is not None]
    keys = dict.fromkeys((row.model, row.runtime, row.setting.precision) for row in counted)
    for model, runtime, precision in keys:
        rows = [
            row for row in counted if (row.model, row.runtime, row.setting.precision) == (model, runtime, precision)
        ]
        first = rows[0].setting
        sizes = [row for row in rows if row.setting.batch_size == first.batch_size]
        batches = [row for row in rows if row.setting.image_size == first.image_size]
        if len(sizes) >= _FEWEST:
            found.append(_growth(sizes, "pixels"))
        if len(batches) >= _FEWEST:
            found.append(_growth(batches, "batch"))
    return found


def _growth(rows: Sequence[BenchmarkRow], over: Literal["pixels", "batch"]) -> Growth:
    is_size = over == "pixels"
    xs = [math.prod(row.setting.shape[1:]) if is_size else row.setting.batch_size for row in rows]
    first = rows[0]
    weights = _BYTES[first.setting.precision] * (first.parameters or 0)
    besides = [row.peak_bytes - weights for row in rows if row.peak_bytes is not None and row.peak_bytes > weights]
    return Growth(
        first.model,
        first.runtime,
        first.setting.precision,
        over,
        tuple(_side(row.setting) if is_size else row.setting.batch_size for row in rows),
        tuple(row.latency.median_ms for row in rows),
        tuple(row.peak_bytes for row in rows),
        time=fit_exponent(xs, [row.latency.median_ms for row in rows]),
        memory=fit_exponent(xs, besides) if len(besides) == len(xs) else None,
        macs=fit_exponent(xs, [(row.macs or 0) * row.setting.batch_size for row in rows]),
    )


def _side(setting: Setting) -> int | str:
    return setting.image_size if isinstance(setting.image_size, int) else setting.size_text
