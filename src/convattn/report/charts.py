"""Geometry of the curves: lines and ticks in percent of the plotting area."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from convattn.page import Axis, Epoch, RunCurves
from convattn.task import Metric

__all__ = ["Chart", "Line", "comparison_curves", "learning_curves", "run_style", "ticks"]

VALIDATION_LOSS = "val_loss"  # the metric that is drawn beside the training loss
_PART = "train_loss_"  # begins the name of one of several losses
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
class Chart:
    """One plot with its axes. Ticks are (percent from the left or the bottom, label)."""

    title: str
    axis: Axis  # what it goes over
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]

    @property
    def description(self) -> str:
        """The chart in words, for those who cannot see it."""
        return f"{self.title} over {self.axis}s. " + " ".join(
            f"{n.name}: last {n.last}, best {n.best}." for n in self.lines
        )


def learning_curves(epochs: Sequence[Epoch], metrics: Sequence[Metric] = (), axis: Axis = "epoch") -> list[Chart]:
    """The charts of losses, metrics, learning rate and speed, each only if there is something to show.

    Losses of one run share a chart, the training loss's parts too; so do metrics of one unit.
    """

    def series(name: str, key: str, style: str) -> Series:
        return Series(name, style, [(_place(epoch, axis), epoch.get(key)) for epoch in epochs])

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
    charts.append(
        _chart("Learning rate", [series("of the last update", "lr", "training")], max, "{:.3g}", axis, floor=0.0)
    )
    speed = [series("training", "images_per_second", "training")]
    charts.append(_chart("Images per second", speed, max, "{:,.0f}", axis, floor=0.0))
    return [chart for chart in charts if chart is not None]


def comparison_curves(runs: Sequence[RunCurves]) -> list[Chart]:
    """The first metric, validation loss and training loss of several runs, each chart only if there is one to show.

    Runs of different tasks share no chart of a metric.
    """
    axis: Axis = "update" if any(run.axis == "update" for run in runs) else "epoch"

    def of_each(key: str, those: Sequence[tuple[int, RunCurves]]) -> list[Series]:
        return [
            Series(run.name, run_style(index), [(_place(epoch, axis), epoch.get(key)) for epoch in run.epochs])
            for index, run in those
        ]

    everyone = list(enumerate(runs))
    firsts = {run.metrics[0].name: run.metrics[0] for run in runs if run.metrics}
    charts = [
        _metric_chart(
            metric,
            of_each(name, [(index, run) for index, run in everyone if run.metrics and run.metrics[0].name == name]),
            axis,
            bounded=False,
        )
        for name, metric in firsts.items()
    ]
    charts += [
        _chart("Validation loss", of_each(VALIDATION_LOSS, everyone), min, "{:.3f}", axis),
        _chart("Training loss", of_each("train_loss", everyone), min, "{:.3f}", axis),
    ]
    return [chart for chart in charts if chart is not None]


def _place(epoch: Epoch, axis: Axis) -> int:
    return epoch.epoch if axis == "epoch" or epoch.step is None else epoch.step


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
    axis: Axis,
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
        axis,
        tuple(_line(one, across, up, choose_best, form, axis) for one in measured),
        tuple((across(x), f"{x:g}") for x in x_ticks),
        tuple((up(y), f"{y:g}{unit}") for y in y_ticks),
    )


def _line(
    series: Series,
    across: Callable[[float], float],
    up: Callable[[float], float],
    choose_best: Callable[[Sequence[float]], float],
    form: str,
    axis: Axis,
) -> Line:
    points = [(x, y) for x, y in series.points if y is not None]
    # A zero-length start makes a lone point visible as a dot under a round line cap.
    places = [(across(x), round(100 - up(y), 2)) for x, y in points]
    path = f"M{places[0][0]} {places[0][1]}h0" + "".join(f"L{x} {y}" for x, y in places[1:])
    best = choose_best([y for _, y in points])
    when = next(x for x, y in points if y == best)
    last = form.format(points[-1][1])
    return Line(series.name, series.style, path, places[-1], last, f"{form.format(best)} in {axis} {when}")


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]
