"""Geometry of the curves: lines and ticks in percent of the plotting area."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from convattn.page import Axis, Epoch, Plot, RunCurves
from convattn.task import Metric

__all__ = ["Chart", "Line", "comparison_curves", "learning_curves", "plotted", "run_style", "ticks"]

VALIDATION_LOSS = "val_loss"  # the metric that is drawn beside the training loss
_PART = "train_loss_"  # begins the name of one of several losses
_LEAST = 0.02  # of what a metric can range over, or of the largest value of another: an axis spans no less
_READINGS = 100  # of a chart; of more epochs as many in even steps
_COLOURS = 8  # of runs, in report.css; more runs repeat them with dashes


@dataclass(frozen=True)
class Series:
    """What a curve is drawn from."""

    name: str
    style: str  # class in report.css
    points: Sequence[tuple[int, float | None]]  # epoch or update, value


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
class Reading:
    """What is shown while the pointer is near a place: a strip of the plot, and the values of its lines there."""

    at: str  # epoch, update or share
    place: float  # percent from the left
    width: float  # of its strip, percent
    values: tuple[tuple[Line, str], ...]  # of the lines that have one


@dataclass(frozen=True)
class Chart:
    """One plot with its axes. Ticks are (percent from the left or the bottom, label)."""

    title: str
    axis: str  # what it goes over
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    readings: tuple[Reading, ...]  # from left to right, the whole width
    description: str  # the chart in words, for those who cannot see it


def learning_curves(epochs: Sequence[Epoch], metrics: Sequence[Metric] = (), axis: Axis = "epoch") -> list[Chart]:
    """The charts of losses, metrics, learning rate and speed, each only if there is something to show.

    Losses of one run share a chart, the training loss's parts too; so do metrics of one unit.
    """

    def series(name: str, key: str, style: str) -> Series:
        return Series(name, style, [(epoch.place(axis), epoch.get(key)) for epoch in epochs])

    parts = dict.fromkeys(key for epoch in epochs for key in epoch.values if key.startswith(_PART))
    losses = [series("training", "train_loss", "training"), series("validation", VALIDATION_LOSS, "validation")]
    losses += [series(key.removeprefix(_PART), key, run_style(index + 2)) for index, key in enumerate(parts)]
    charts = [_chart("Loss", losses, min, "{:.3f}", axis, floor=0.0)]
    for group in _of_one_unit(metrics):
        first = group[0]
        styles = ("validation", *(run_style(index + 2) for index in range(len(group))))
        lines = [series(each.title, each.name, style) for each, style in zip(group, styles, strict=False)]
        further = dict.fromkeys(key for epoch in epochs for key in epoch.values if key.endswith(f"/{first.name}"))
        lines += [series(key.partition("/")[0], key, run_style(len(group) + at + 1)) for at, key in enumerate(further)]
        charts.append(_metric_chart(first, lines, axis))
    rate = [series("of the last update", "lr", "training")]
    charts.append(_chart("Learning rate", rate, max, "{:.3g}", axis, floor=0.0))
    speed = [series("training", "images_per_second", "training")]
    charts.append(_chart("Images per second", speed, max, "{:,.0f}", axis, floor=0.0))
    return [chart for chart in charts if chart is not None]


def comparison_curves(runs: Sequence[RunCurves]) -> list[Chart]:
    """The first metric, validation loss and training loss of several runs, each chart only if there is one to show.

    Runs on different data share no chart, and runs of different tasks none of a metric.
    """
    axis: Axis = "update" if any(run.axis == "update" for run in runs) else "epoch"
    groups: dict[str, list[tuple[int, RunCurves]]] = {}
    for index, run in enumerate(runs):
        groups.setdefault(run.data, []).append((index, run))
    return [
        chart if len(groups) == 1 else replace(chart, title=f"{chart.title} on {data}")
        for data, those in groups.items()
        for chart in _curves_of(those, axis)
    ]


def plotted(plot: Plot) -> Chart | None:
    """The chart of a plot, of the whole of both shares; None without a point."""
    series = [Series(curve.name, run_style(at), curve.points) for at, curve in enumerate(plot.curves)]
    chart = _chart(
        plot.title,
        series,
        max,
        "{:.1f} %",
        plot.across,
        unit=" %",
        floor=0.0,
        ceiling=100.0,
        limits=(0.0, 100.0),
        ends=(0, 100),
        place=(lambda percent: f"{percent / 100:g}") if plot.is_score else "{} %".format,
    )
    if chart is None:
        return None
    figures = [curve.figure for curve in plot.curves if curve.points]
    lines = tuple(replace(line, last=figure) for line, figure in zip(chart.lines, figures, strict=True))
    told = ", ".join(f"{line.name} {line.last}".strip() for line in lines)
    return replace(chart, lines=lines, description=f"{plot.title}, over the {plot.across}: {told}.")


def _curves_of(runs: Sequence[tuple[int, RunCurves]], axis: Axis) -> list[Chart]:
    """The charts of runs on the same data, each with its place among all."""

    def of_each(key: str, metric: Metric | None = None) -> list[Series]:
        return [
            Series(run.name, run_style(index), [(epoch.place(axis), epoch.get(key)) for epoch in run.epochs])
            for index, run in runs
            if metric is None or metric.name in [first.name for first in run.metrics[:1]]
        ]

    firsts = {run.metrics[0].name: run.metrics[0] for _, run in runs if run.metrics}
    charts = [_metric_chart(metric, of_each(name, metric), axis, bounded=False) for name, metric in firsts.items()]
    charts += [
        _chart("Validation loss", of_each(VALIDATION_LOSS), min, "{:.3f}", axis),
        _chart("Training loss", of_each("train_loss"), min, "{:.3f}", axis),
    ]
    return [chart for chart in charts if chart is not None]


def _of_one_unit(metrics: Sequence[Metric]) -> list[list[Metric]]:
    groups: dict[tuple, list[Metric]] = {}
    for metric in metrics:
        if metric.name != VALIDATION_LOSS:
            groups.setdefault((metric.unit, metric.lowest, metric.highest, metric.greater_is_better), []).append(metric)
    return list(groups.values())


def _metric_chart(metric: Metric, series: Sequence[Series], axis: Axis, *, bounded: bool = True) -> Chart | None:
    """A chart of a metric; its axis reaches the best that it can be where it is `bounded`."""
    unit = f" {metric.unit}" if metric.unit else ""
    return _chart(
        metric.title,
        series,
        max if metric.greater_is_better else min,
        f"{{:.{metric.digits}f}}{unit}",
        axis,
        unit=unit,
        floor=metric.lowest if bounded and not metric.greater_is_better else None,
        ceiling=metric.highest if bounded and metric.greater_is_better else None,
        limits=(metric.lowest, metric.highest),
    )


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
    axis: str,
    unit: str = "",
    floor: float | None = None,
    ceiling: float | None = None,
    limits: tuple[float | None, float | None] = (0.0, None),
    ends: tuple[int, int] | None = None,
    place: Callable[[int], str] = str,
) -> Chart | None:
    """A chart of what was measured; None if nothing was.

    Args:
        floor, ceiling: values that the axis reaches in any case.
        limits: the lowest and the highest value that there can be.
        ends: of the axis from left to right; the first and the last point by default.
        place: a place of the axis as text.
    """
    measured = [
        replace(one, points=[(x, y) for x, y in one.points if y is not None and math.isfinite(y)]) for one in series
    ]
    measured = [one for one in measured if one.points]
    if not measured:
        return None
    values = [y for one in measured for _, y in one.points if y is not None]
    low = min(values) if floor is None else min(*values, floor)
    high = max(values) if ceiling is None else max(*values, ceiling)
    y_ticks = ticks(*_wide_enough(low, high, *limits))
    x_values = [x for one in measured for x, _ in one.points]
    first, last = ends or (min(x_values), max(x_values))
    x_ticks = [x for x in ticks(first, last, 8) if first <= x <= last and x == int(x)]
    x_ticks = [first, *(x for x in x_ticks if x - first > (last - first) / 12)]  # the first epoch, and round ones

    def across(x: float) -> float:
        return round(100 * (x - first) / (last - first), 2) if last > first else 50.0

    def up(y: float) -> float:
        return round(100 * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 2)

    lines = tuple(_line(one, across, up, choose_best, form, axis) for one in measured)
    return Chart(
        title,
        axis,
        lines,
        tuple((across(x), place(int(x))) for x in x_ticks),
        tuple((up(y), f"{y:g}{unit}") for y in y_ticks),
        tuple(_readings(lines, [dict(one.points) for one in measured], across, form, place)),
        f"{title} over {axis}s. " + " ".join(f"{one.name}: last {one.last}, best {one.best}." for one in lines),
    )


def _wide_enough(low: float, high: float, lowest: float | None, highest: float | None) -> tuple[float, float]:
    """An axis on which a small difference looks small: 2 points for percentages."""
    largest = max(abs(low), abs(high))
    least = _LEAST * (largest if lowest is None or highest is None else highest - lowest)
    if high - low >= least:
        return low, high
    top = (low + high + least) / 2
    if highest is not None:
        top = min(top, max(highest, high))
    if lowest is not None:
        top = max(top, min(lowest, low) + least)
    return top - least, top


def _readings(
    lines: Sequence[Line],
    values: Sequence[Mapping[int, float | None]],
    across: Callable[[float], float],
    form: str,
    place: Callable[[int], str],
) -> Iterator[Reading]:
    places = sorted({x for one in values for x in one})
    steps = min(len(places), _READINGS)
    shown = [places[step * (len(places) - 1) // max(steps - 1, 1)] for step in range(steps)]
    edges = [0.0, *((across(x) + across(after)) / 2 for x, after in pairwise(shown)), 100.0]
    for x, left, right in zip(shown, edges, edges[1:], strict=False):
        there = [(line, one[x]) for line, one in zip(lines, values, strict=True) if x in one]
        texts = tuple((line, form.format(value)) for line, value in there)
        yield Reading(place(x), across(x), round(right - left, 3), texts)


def _line(
    series: Series,
    across: Callable[[float], float],
    up: Callable[[float], float],
    choose_best: Callable[[Sequence[float]], float],
    form: str,
    axis: str,
) -> Line:
    points = [(x, y) for x, y in series.points if y is not None]
    # A zero-length start makes a lone point visible as a dot under a round line cap.
    places = [(across(x), round(100 - up(y), 2)) for x, y in points]
    path = f"M{places[0][0]} {places[0][1]}h0" + "".join(f"L{x} {y}" for x, y in places[1:])
    best = choose_best([y for _, y in points])
    when = next(x for x, y in points if y == best)
    last = form.format(points[-1][1])
    return Line(series.name, series.style, path, places[-1], last, f"{form.format(best)} in {axis} {when}")
