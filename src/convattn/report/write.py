"""The report as a file: one HTML page that needs nothing else, no script and no network."""

import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from convattn.atomic import write_atomically
from convattn.page import Confusion, Report
from convattn.report.charts import comparison_curves, learning_curves, plotted, run_style
from convattn.report.templates import render_page

__all__ = ["render", "write_report"]

_LARGEST_MATRIX = 20  # classes; above that only the confused pairs are readable


def write_report(path: str | Path, report: Report) -> Path:
    """Write `report` to `path`, replacing what is there in one step; returns the path.

    A reader never sees half a page, so a report may be rewritten while it is open.
    """
    path = Path(path)
    write_atomically(path, render(report).encode())
    return path


def render(report: Report, written: datetime | None = None) -> str:
    """The page as text. Everything from `report` is escaped; `written` is the date at its foot, now by default."""
    return render_page(
        "report.html",
        report=report,
        charts=learning_curves(report.epochs, report.metrics, report.axis),
        numbers=_numbers(report),
        comparison=comparison_curves(report.runs),
        legend=[(run.name, run_style(index)) for index, run in enumerate(report.runs) if run.epochs],
        plots_of_shares=[] if report.plots is None else [*filter(None, map(plotted, report.plots.plots))],
        confusion=None if report.confusion is None else _confusion_view(report.confusion),
        slowest_ms=max((row.p90_ms for row in report.latency), default=0.0),
        total_parameters=sum(row.parameters for row in report.stages),
        total_macs=sum(row.macs for row in report.stages),
        written=(written or datetime.now()).strftime("%Y-%m-%d %H:%M"),
    )


def _numbers(report: Report) -> dict[str, Any]:
    """Every validation as text: the losses, the metrics of the task, rate and speed."""
    losses = dict.fromkeys(name for epoch in report.epochs for name in epoch.values if name.startswith("train_loss"))
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        name: (f"Training {name.removeprefix('train_').replace('_', ' ')}", "{:.4f}".format) for name in losses
    }
    columns |= {metric.name: (metric.title, metric.text) for metric in report.metrics}
    columns["lr"] = ("Learning rate", "{:.2e}".format)
    columns["images_per_second"] = ("Images/s", "{:,.0f}".format)
    columns["seconds"] = ("Seconds", "{:.1f}".format)
    rows = []
    for epoch in report.epochs:
        figures = ((epoch.get(name), text) for name, (_, text) in columns.items())
        rows.append((epoch.place(report.axis), ["–" if value is None else text(value) for value, text in figures]))
    return {"columns": [title for title, _ in columns.values()], "rows": rows}


def _confusion_view(confusion: Confusion) -> dict[str, Any]:
    """The matrix with the heat of every cell, if it is small enough to read, and the confused pairs."""
    is_small = len(confusion.class_names) <= _LARGEST_MATRIX
    rows = []
    for index, counts in enumerate(confusion.counts if is_small else ()):
        total = max(sum(counts), 1)
        # The root lifts the rare mistakes, which are what one looks for.
        heats = [round(math.sqrt(count / total), 3) for count in counts]
        shown = [round(100 * count / total) for count in counts] if confusion.in_percent else counts
        cells = [(count, heat, column == index) for column, (count, heat) in enumerate(zip(shown, heats, strict=True))]
        is_class = not confusion.has_nothing or index < len(confusion.class_names) - 1
        rows.append((confusion.class_names[index], cells, counts[index] / total if is_class else None))
    pairs = confusion.confused_pairs()
    return dict(
        class_names=confusion.class_names,
        has_long_names=max(map(len, confusion.class_names), default=0) > 3,
        rows=rows,
        pairs=pairs[: 6 if is_small else 20],
        wrong=sum(pair[2] for pair in pairs),
        total=sum(map(sum, confusion.counts)),
        unit=confusion.unit,
        in_percent=confusion.in_percent,
        told=confusion.told,
    )
