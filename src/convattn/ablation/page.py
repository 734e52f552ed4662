"""The comparison as a page: every seed a dot, intervals, costs, and what it means in a sentence."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from convattn.ablation.results import Results, Row
from convattn.ablation.scatter import Scatter, axis, scatter
from convattn.ablation.tables import BUDGETS, missing_table, results_tables
from convattn.atomic import write_atomically
from convattn.report.charts import run_style
from convattn.report.templates import render_page

__all__ = ["Panel", "Track", "page_values", "panels_of", "write_page"]

CAUTION = "Small images and small budgets say nothing of ImageNet."


@dataclass(frozen=True)
class Track:
    """A design's line in a panel; places in percent from the left."""

    name: str
    style: str  # class in report.css
    dots: tuple[tuple[float, str], ...]  # place, and what it says
    mean: float | None
    interval: tuple[float, float] | None  # from, to
    text: str  # the mean in words


@dataclass(frozen=True)
class Panel:
    """Designs under one another over one axis."""

    title: str
    ticks: tuple[tuple[float, str], ...]
    tracks: tuple[Track, ...]
    zero: float | None = None  # where no difference is


def write_page(path: Path, results: Results) -> None:
    """Write the page in one step; it needs nothing else, no script and no network."""
    plots = {BUDGETS[budget]: _over_latency(results, rows) for budget, rows in results.rows.items()}
    write_atomically(path, render_page("ablation.html", **page_values(results), plots=plots).encode())


def page_values(results: Results) -> dict[str, Any]:
    """What the page shows."""
    comparison = results.plan.comparison
    return dict(
        title=comparison.title,
        lead=" ".join(filter(None, [comparison.source and f"{comparison.source}.", comparison.note, CAUTION])),
        budgets=[
            (BUDGETS[budget], [row.sentence for row in rows if row.sentence], list(panels_of(results, rows)))
            for budget, rows in results.rows.items()
        ],
        tables=[table for table in (*results_tables(results), missing_table(results.plan)) if table.rows],
        notes=[(design.name, design.note) for design in comparison.buildable if design.note],
        environment=results.plan.environment,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def panels_of(results: Results, rows: Sequence[Row]) -> Iterator[Panel]:
    """The figures of all seeds, and the differences to the base with their intervals."""
    metric = results.metric
    figures = [value for row in rows for value in row.figures.values()]
    if not figures:
        return
    across, marks = axis(figures, metric.unit)
    yield Panel(
        metric.title,
        marks,
        tuple(
            Track(
                row.design.name,
                run_style(at),
                tuple((across(v), f"seed {seed}: {metric.text(v)}") for seed, v in row.figures.items()),
                None if row.mean is None else across(row.mean),
                None,
                metric.text(row.mean),
            )
            for at, row in enumerate(rows)
        ),
    )
    base = next(row for row in rows if row.design.role == "base")
    compared = [(at, row) for at, row in enumerate(rows) if row.interval is not None]
    if not compared:
        return
    paired = {
        row.design.name: {s: v - base.figures[s] for s, v in row.figures.items() if s in base.figures}
        for _, row in compared
    }
    ends = [end for _, row in compared if (one := row.interval) is not None for end in (one.low, one.high)]
    values = [value for those in paired.values() for value in those.values()]
    across, marks = axis([0.0, *ends, *values], "")
    tracks = []
    for at, row in compared:
        assert row.interval is not None
        tracks.append(
            Track(
                row.design.name,
                run_style(at),
                tuple(
                    (across(v), f"seed {seed}: {v:+.{metric.digits}f}") for seed, v in paired[row.design.name].items()
                ),
                across(row.interval.mean),
                (across(row.interval.low), across(row.interval.high)),
                f"{row.interval.mean:+.{metric.digits}f} ± {row.interval.half_width:.{metric.digits}f}",
            )
        )
    unit = "points" if metric.unit == "%" else metric.unit or metric.title
    yield Panel(f"Difference to {base.design.name}, {unit}", marks, tuple(tracks), across(0.0))


def _over_latency(results: Results, rows: Sequence[Row]) -> Scatter | None:
    """What each design reaches over what an image costs, with the colours of the panels; None before one is known."""
    designs = [(row.design.name, row.costs.median_ms, row.mean) for row in rows]
    return scatter(designs, results.metric, "Means of all seeds; latency as in the table of costs.")
