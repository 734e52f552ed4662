"""Timing several things so that they can be compared: interleaved, warmed up, with the spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Latency", "measure_latency"]


@dataclass(frozen=True)
class Latency:
    """Times of one candidate."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


def measure_latency(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 30, warmup: int = 3
) -> list[Latency]:
    """Time each candidate `repeats` times, in turn, so that a drift of the machine meets all of them alike.

    Args:
        candidates: name -> a call without arguments; work queued on a GPU is waited for.
        repeats: timed calls of each.
        warmup: untimed calls of each before.

    Returns:
        One row per candidate, in the order given.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats {repeats} must be 1 or more and warmup {warmup} not negative")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warmup:
                times[name].append(1000 * (time.perf_counter() - start))
    return [_summary(name, measured) for name, measured in times.items()]


def _summary(name: str, times_ms: list[float]) -> Latency:
    ordered = sorted(times_ms)
    last = len(ordered) - 1
    return Latency(
        name,
        median_ms=statistics.median(ordered),
        p10_ms=ordered[round(0.1 * last)],
        p90_ms=ordered[round(0.9 * last)],
        repeats=len(ordered),
    )
