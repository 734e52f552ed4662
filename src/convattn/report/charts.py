"""Geometry of the curves: lines and ticks in percent of the plotting area."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from convattn.report.content import Epoch, RunCurves

__all__ = ["Chart", "Line", "comparison_curves", "learning_curves", "run_style", "ticks"]

_COLOURS = 8  # of runs, in report.css; more runs repeat them with dashes


@dataclass(frozen=True)
class Series:
    """What a curve is drawn from."""

    name: str
    style: str  # class in report.css
    points: Sequence[tuple[int, float | None]]  # epoch, value


@dataclass(frozen=True)
class Line:
    """A curve; `path` is SVG path data in a box of 100 × 100 with y downwards."""

    name: str
    style: str  # class in report.css
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
    """The charts of losses, accuracy, learning rate and speed, each only if there is something to show."""
    losses = [
        Series("training", "training", [(e.epoch, e.train_loss) for e in epochs]),
        Series("validation", "validation", [(e.epoch, e.val_loss) for e in epochs]),
    ]
    accuracy = [Series("validation", "validation", [(e.epoch, e.top1) for e in epochs])]
    rate = [Series("of the last update", "training", [(e.epoch, e.lr) for e in epochs])]
    speed = [Series("training", "training", [(e.epoch, e.images_per_second) for e in epochs])]
    charts = [
        _chart("Loss", losses, min, "{:.3f}", floor=0.0),
        _chart("Accuracy", accuracy, max, "{:.2f} %", unit=" %", ceiling=100.0),
        _chart("Learning rate", rate, max, "{:.3g}", floor=0.0),
        _chart("Images per second", speed, max, "{:,.0f}", floor=0.0),
    ]
    return [chart for chart in charts if chart is not None]


def comparison_curves(runs: Sequence[RunCurves]) -> list[Chart]:
    """Accuracy, validation loss and training loss of several runs, each chart only if there is something to show."""

    def of_each(key: str) -> list[Series]:
        return [
            Series(run.name, run_style(index), [(e.epoch, getattr(e, key)) for e in run.epochs])
            for index, run in enumerate(runs)
        ]

    charts = [
        _chart("Accuracy", of_each("top1"), max, "{:.2f} %", unit=" %"),
        _chart("Validation loss", of_each("val_loss"), min, "{:.3f}"),
        _chart("Training loss", of_each("train_loss"), min, "{:.3f}"),
    ]
    return [chart for chart in charts if chart is not None]


def run_style(index: int) -> str:
    """The class in report.css of a run's lines: a colour of its own, with dashes from the ninth run on."""
    dashes = ("", " dashed", " dotted")[index // _COLOURS % 3]
    return f"run{index % _COLOURS}{dashes}"


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low..high, about `most` of them."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _chart(
    title: str,
    series: Sequence[Series],
    choose_best: Callable[[Sequence[float]], float],
    form: str,
    unit: str = "",
    floor: float | None = None,
    ceiling: float | None = None,
) -> Chart | None:
    measured = [
        replace(one, points=[(x, y) for x, y in one.points if y is not None and math.isfinite(y)]) for one in series
    ]
    measured = [one for one in measured if one.points]
    if not measured:
        return None
    values = [y for one in measured for _, y in one.points if y is not None]
    y_ticks = ticks(min([*values, *_given(floor)]), max([*values, *_given(ceiling)]))
    x_values = [x for one in measured for x, _ in one.points]
    first, last = min(x_values), max(x_values)
    x_ticks = [x for x in ticks(first, last, 8) if first <= x <= last and x == int(x)]
    x_ticks = [first, *(x for x in x_ticks if x - first > (last - first) / 12)]  # the first epoch, and round ones

    def across(x: float) -> float:
        return round(100 * (x - first) / (last - first), 2) if last > first else 50.0

    def up(y: float) -> float:
        return round(100 * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 2)

    return Chart(
        title,
        tuple(_line(one, across, up, choose_best, form) for one in measured),
        tuple((across(x), f"{x:g}") for x in x_ticks),
        tuple((up(y), f"{y:g}{unit}") for y in y_ticks),
    )


def _line(
    series: Series,
    across: Callable[[float], float],
    up: Callable[[float], float],
    choose_best: Callable[[Sequence[float]], float],
    form: str,
) -> Line:
    points = [(x, y) for x, y in series.points if y is not None]
    # A zero-length start makes a lone point visible as a dot under a round line cap.
    places = [(across(x), round(100 - up(y), 2)) for x, y in points]
    path = f"M{places[0][0]} {places[0][1]}h0" + "".join(f"L{x} {y}" for x, y in places[1:])
    best = choose_best([y for _, y in points])
    when = next(x for x, y in points if y == best)
    last = form.format(points[-1][1])
    return Line(series.name, series.style, path, places[-1], last, f"{form.format(best)} in epoch {when}")


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]
