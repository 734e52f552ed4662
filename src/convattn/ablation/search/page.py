"""The search as a page: the front of value over latency, then the comparison as every other, then all networks."""

from dataclasses import dataclass
from pathlib import Path

from convattn.ablation.page import axis, page_values
from convattn.ablation.search.results import SearchResults
from convattn.atomic import write_atomically
from convattn.report.charts import run_style
from convattn.report.templates import render_page

__all__ = ["write_search_page"]


@dataclass(frozen=True)
class _Mark:
    """A design in the plot; places in percent from the left and the bottom."""

    number: int
    name: str
    style: str  # class in report.css
    left: float
    bottom: float
    is_front: bool
    said: str


def write_search_page(path: Path, found: SearchResults) -> None:
    """Write the page in one step; it needs nothing else, no script and no network.

    Raises:
        OSError: if it cannot be written.
    """
    values = page_values(found.retrained)
    front, networks = found.tables()
    values["tables"] = [table for table in (front, *values["tables"], networks) if table.rows]
    write_atomically(path, render_page("search.html", **values, front=_front(found)).encode())


def _front(found: SearchResults) -> dict[str, object]:
    placed, on_front, metric = found.placed(), found.front(), found.metric
    given: dict[str, object] = {
        "title": f"Within {found.limit_ms:g} ms in {found.runtime}",
        "sentences": list(found.sentences()),
        "points": [],
    }
    if not placed:
        return given
    latencies, means = [ms for _, ms, _ in placed], [mean for _, _, mean in placed]
    across, across_marks = axis(min([found.limit_ms, *latencies]), max([found.limit_ms, *latencies]), "ms")
    up, up_marks = axis(min(means), max(means), metric.unit)
    points = [
        _Mark(
            number,
            row.design.name,
            run_style(number - 1),
            across(ms),
            up(mean),
            row.design.name in on_front,
            f"{row.design.name}: {metric.text(mean)}, {ms:.2f} ms",
        )
        for number, (row, ms, mean) in enumerate(placed, start=1)
    ]
    return given | {
        "points": points,
        "value": metric.title,
        "across": across_marks,
        "up": up_marks,
        "limit": across(found.limit_ms),
    }
