"""What designs reach over what they cost, as a plot: a number in a circle for each."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from convattn.report.charts import run_style, ticks
from convattn.task import Metric

__all__ = ["Mark", "Scatter", "axis", "scatter"]


@dataclass(frozen=True)
class Mark:
    """A design in the plot; places in percent from the left and the bottom."""

    number: int
    name: str
    style: str  # class in report.css
    left: float
    bottom: float
    is_filled: bool
    said: str


@dataclass(frozen=True)
class Scatter:
    """The plot; ticks are (percent from the left or the bottom, label)."""

    title: str
    marks: tuple[Mark, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    limit: float | None  # a line from bottom to top
    note: str


def scatter(
    designs: Sequence[tuple[str, float | None, float | None]],
    metric: Metric,
    note: str,
    *,
    filled: Collection[str] = (),
    limit_ms: float | None = None,
) -> Scatter | None:
    """The plot of (name, milliseconds, value); None before one is known.

    Args:
        designs: in the order of their numbers and colours; None is not known yet.
        metric: of the values.
        note: below it.
        filled: names that stand out.
        limit_ms: where a line goes.
    """
    known = [
        (number, name, ms, value)
        for number, (name, ms, value) in enumerate(designs, start=1)
        if ms is not None and value is not None
    ]
    if not known:
        return None
    across, across_marks = axis([*(ms for _, _, ms, _ in known), *([] if limit_ms is None else [limit_ms])], "ms")
    up, up_marks = axis([value for *_, value in known], metric.unit)
    marks = []
    for number, name, ms, value in known:
        said = f"{name}: {metric.text(value)}, {ms:.2f} ms"
        marks.append(Mark(number, name, run_style(number - 1), across(ms), up(value), name in filled, said))
    limit = None if limit_ms is None else across(limit_ms)
    return Scatter(f"{metric.title} over latency", tuple(marks), across_marks, up_marks, limit, note)


def axis(values: Sequence[float], unit: str) -> tuple[Callable[[float], float], tuple[tuple[float, str], ...]]:
    """Where values lie between round ends around all of them, in percent, and the marks there."""
    marks = ticks(min(values), max(values))
    first, last = marks[0], marks[-1]

    def across(value: float) -> float:
        return round(100 * (value - first) / (last - first), 2)

    return across, tuple((across(mark), f"{mark:g}{f' {unit}' if unit else ''}") for mark in marks)
