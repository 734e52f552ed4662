"""The search as a page: the front of value over latency, then the comparison as every other, then all networks."""

from pathlib import Path

from convattn.ablation.page import page_values
from convattn.ablation.scatter import scatter
from convattn.ablation.search.results import SearchResults
from convattn.atomic import write_atomically
from convattn.report.templates import render_page

__all__ = ["write_search_page"]


def write_search_page(path: Path, found: SearchResults) -> None:
    """Write the page in one step; it needs nothing else, no script and no network."""
    values = page_values(found.retrained)
    front, networks = found.tables()
    values["tables"] = [table for table in (front, *values["tables"], networks) if table.rows]
    write_atomically(path, render_page("search.html", **values, plots={}, front=_front(found)).encode())


def _front(found: SearchResults) -> dict[str, object]:
    plot = scatter(
        [(row.design.name, ms, mean) for row, ms, mean in found.placed()],
        found.metric,
        "Filled: no other is as fast and as good. Dashed: the latency asked for.",
        filled=found.front(),
        limit_ms=found.limit_ms,
    )
    title = f"Within {found.limit_ms:g} ms in {found.runtime}"
    return {"title": title, "sentences": found.sentences(), "plot": plot}
