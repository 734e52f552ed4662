"""Geometry of the learning curves: lines and ticks in percent of the plotting area."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from convattn.report.content import Epoch

__all__ = ["Chart", "Line", "learning_curves", "ticks"]


@dataclass(frozen=True)
class Line:
    """A curve; `path` is SVG path data in a box of 100 × 100 with y downwards."""

    name: str
    path: str
    end: tuple[float, float]  # where the last point is, same units
    last: str  # its value
    best: str  # the best value and when


@dataclass(frozen=True)
class Chart:
    """One plot with its axes. Ticks are (percent from the left or the bottom, label)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def description(self) -> str:
        """The chart in words, for those who cannot see it."""
        return f"{self.title} over epochs. " + " ".join(f"{n.name}: last {n.last}, best {n.best}." for n in self.lines)


def learning_curves(epochs: Sequence[Epoch]) -> list[Chart]:
    """The chart of losses and the one of accuracy, each only if there is something to show."""
    loss = {
        "training": [(e.epoch, e.train_loss) for e in epochs],
        "validation": [(e.epoch, e.val_loss) for e in epochs],
    }
    accuracy = {"validation": [(e.epoch, e.top1) for e in epochs]}
    charts = [
        _chart("Loss", loss, min, lambda value: f"{value:.3f}", floor=0.0),
        _chart("Accuracy", accuracy, max, lambda value: f"{value:.2f} %", unit=" %", ceiling=100.0),
    ]
    return [chart for chart in charts if chart is not None]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high, about `most` of them."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _chart(
    title: str,
    series: dict[str, list[tuple[int, float | None]]],
    choose_best: Callable[[Sequence[float]], float],
    write: Callable[[float], str],
    unit: str = "",
    floor: float | None = None,
    ceiling: float | None = None,
) -> Chart | None:
    measured = {
        name: [(x, y) for x, y in points if y is not None and math.isfinite(y)] for name, points in series.items()
    }
    measured = {name: points for name, points in measured.items() if points}
    if not measured:
        return None
    values = [y for points in measured.values() for _, y in points]
    y_ticks = ticks(min([*values, *_given(floor)]), max([*values, *_given(ceiling)]))
    x_values = [x for points in measured.values() for x, _ in points]
    first, last = min(x_values), max(x_values)
    x_ticks = [x for x in ticks(first, last, 8) if first <= x <= last and x == int(x)]
    x_ticks = [first, *(x for x in x_ticks if x - first > (last - first) / 12)]  # the first epoch, and round ones

    def across(x: float) -> float:
        return round(100 * (x - first) / (last - first), 2) if last > first else 50.0

    def up(y: float) -> float:
        return round(100 * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 2)

    lines = []
    for name, points in measured.items():
        # A zero-length start makes a lone point visible as a dot under a round line cap.
        places = [(across(x), round(100 - up(y), 2)) for x, y in points]
        path = f"M{places[0][0]} {places[0][1]}h0" + "".join(f"L{x} {y}" for x, y in places[1:])
        best = choose_best([y for _, y in points])
        when = next(x for x, y in points if y == best)
        lines.append(Line(name, path, places[-1], write(points[-1][1]), f"{write(best)} in epoch {when}"))
    return Chart(
        title,
        tuple(lines),
        tuple((across(x), f"{x:g}") for x in x_ticks),
        tuple((up(y), f"{y:g}{unit}") for y in y_ticks),
    )


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]
