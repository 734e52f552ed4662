"""Timing several things so that they can be compared: interleaved, warmed up, with the spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Interrupted", "Latency", "check_calls", "measure_latency"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a measurement; `measured` is what there was until then, of the type that would have been returned."""

    def __init__(self, measured: Any):
        super().__init__("interrupted")
        self.measured = measured


@dataclass(frozen=True)
class Latency:
    """Times of one candidate."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    p95_ms: float
    repeats: int
    page_faults: float | None  # median per call; thousands mean that the allocator gives memory back and forth


def measure_latency(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int = 30, warmup: int = 3, rest: float = 0.0
) -> list[Latency]:
    """Time each candidate `repeats` times, in turn, so that a drift of the machine meets all of them alike.

    Args:
        candidates: name -> a call without arguments; work queued on a GPU is waited for.
        repeats: timed calls of each.
        warmup: untimed calls of each before.
        rest: seconds to wait before each timed call, with one untimed call behind the wait. Threads that belong to
            another candidate, and spin for a while when they have nothing to do, have gone to sleep by then, and what
            the candidate reads is back in the caches: its time is that of one call among many of its own.

    Returns:
        One row per candidate, in the order given.

    Raises:
        ValueError: for a number of calls out of range.
        Interrupted: at Ctrl-C, with the rows of the candidates that were timed at least once.
    """
    check_calls(repeats, warmup)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    faults: dict[str, list[int]] = {name: [] for name in candidates}
    try:
        for turn in range(warmup + repeats):
            for name, call in candidates.items():
                if rest and turn >= warmup:
                    time.sleep(rest)
                    call()
                milliseconds, faulted = _time(call)
                if turn >= warmup:
                    times[name].append(milliseconds)
                    faults[name].append(faulted)
    except KeyboardInterrupt:
        raise Interrupted([_summary(name, times[name], faults[name]) for name in times if times[name]]) from None
    return [_summary(name, measured, faults[name]) for name, measured in times.items()]


def check_calls(repeats: int, warmup: int) -> None:
    """Raise ValueError for a number of calls out of range."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats {repeats} must be 1 or more and warmup {warmup} not negative")


def _time(call: Callable[[], object]) -> tuple[float, int]:
    """Milliseconds and page faults of one call."""
    faults, start = _page_faults(), time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start), _page_faults() - faults


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def _summary(name: str, times_ms: list[float], faults: list[int]) -> Latency:
    ordered = sorted(times_ms)
    last = len(ordered) - 1
    return Latency(
        name,
        median_ms=statistics.median(ordered),
        p10_ms=ordered[round(0.1 * last)],
        p90_ms=ordered[round(0.9 * last)],
        p95_ms=ordered[round(0.95 * last)],
        repeats=len(ordered),
        page_faults=statistics.median(faults) if resource else None,
    )
