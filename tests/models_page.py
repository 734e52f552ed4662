"""The table of docs/models.md. `python tests/models_page.py` writes it anew."""

import re
from pathlib import Path

from convattn.cli.model_list import Row, rows_of

__all__ = ["PAGE", "table", "table_of"]

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_TABLE = re.compile(r"^\| model \|.*?\n(?=\n)", flags=re.MULTILINE | re.DOTALL)


def table() -> str:
    """What `convattn models` lists, as Markdown."""
    head = "| model | weights | pixels | parameters | multiply-adds | top-1 / top-5 | published in |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---|", *map(_line, rows_of("*")), ""])


def table_of(page: str) -> str:
    """The table that a page has."""
    found = _TABLE.search(page)
    assert found, "the page has no table of models"
    return found[0]


def _line(row: Row) -> str:
    weights = "" if row.weights is None else f"`{row.weights.tag}`" + (", by hand" if row.weights.by_hand else "")
    record, cost = row.record, row.cost
    scores = f"{record.top1 or '-'} / {record.top5 or '-'}" if record and record.top1 else ""
    cells = (f"{cost.parameters / 1e6:.1f} M", f"{cost.macs / 1e9:.3g} G", scores, record.source if record else "")
    return f"| {' | '.join((f'`{row.name}`', weights, str(row.image_size), *cells))} |"


if __name__ == "__main__":
    PAGE.write_text(_TABLE.sub(table(), PAGE.read_text()))
