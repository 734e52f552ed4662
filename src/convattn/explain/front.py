"""The front of accuracy and cost: what nothing else beats in both; measured and published figures in their own marks.

The papers' teasers are such plots: Next-ViT's of latency, CoTNet's of measured time, SMT's of FLOPs and parameters.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convattn.explain.figures import axes_of, figure_of
from convattn.nearest import nearest

__all__ = ["Point", "draw_front", "front_of", "points_of"]

_COSTS = {
    "latency": ("median ms", lambda row: row.latency.median_ms),
    "macs": ("G multiply-adds", lambda row: None if row.macs is None else row.macs / 1e9),
    "parameters": ("M parameters", lambda row: None if row.parameters is None else row.parameters / 1e6),
}


@dataclass(frozen=True)
class Point:
    """One model."""

    name: str
    cost: float  # less is better
    value: float  # more is better
    is_published: bool = False  # the value is from the paper, not measured here


def front_of(points: Iterable[Point]) -> list[Point]:
    """Those beside which no other is as good in both and better in one, the cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.cost, -one.value)):
        best = found[-1] if found else None
        if best is None or point.value > best.value or (point.value, point.cost) == (best.value, best.cost):
            found.append(point)
    return found


def points_of(table: Any, cost: str = "latency", measured: Mapping[str, float] | None = None) -> list[Point]:
    """The rows of a benchmark as points: its costs are measured, its accuracies the authors'.

    Args:
        table: as `convattn.benchmark` gives it.
        cost: "latency", "macs" or "parameters".
        measured: accuracies of one's own by the models' names, in the place of published ones.

    Raises:
        ValueError: for another cost, or where no row has an accuracy.
    """
    if cost not in _COSTS:
        raise ValueError(f"cost {cost!r} is unknown; {nearest(cost, _COSTS)}")
    own, reckon, points = measured or {}, _COSTS[cost][1], []
    runtimes = {row.runtime for row in table.rows}
    for row in table.rows:
        value, at = own.get(row.model, row.top1), reckon(row)
        if value is not None and at is not None:
            name = row.model if len(runtimes) == 1 else f"{row.model}, {row.runtime}"
            points.append(Point(name, at, value, row.model not in own))
    if not points:
        raise ValueError("no row has an accuracy, published or measured; give measured={model: percent}")
    return points


def draw_front(points: Sequence[Point], cost: str = "latency", value: str = "top-1 %") -> Any:
    """A `matplotlib` figure: value over cost, a line through the front; filled marks are measured, hollow published.

    Args:
        points: as `points_of` gives them, or one's own.
        cost: a key of the costs, or what the axis says.
        value: what the other axis says.
    """
    figure = figure_of(5.4, 3.8)
    (axes,) = axes_of(figure)
    for point in points:
        face = "white" if point.is_published else "C0"
        axes.plot(point.cost, point.value, "o", color="C0", markerfacecolor=face, markersize=7, zorder=3)
        axes.annotate(point.name, (point.cost, point.value), (6, 5), textcoords="offset points", fontsize=8)
    front = front_of(points)
    axes.plot([one.cost for one in front], [one.value for one in front], color="C0", linewidth=1, alpha=0.5)
    axes.set(xlabel=_COSTS[cost][0] if cost in _COSTS else cost, ylabel=value)
    axes.margins(0.15)
    axes.set_title("Front: filled measured here, hollow published", fontsize=10)
    return figure
