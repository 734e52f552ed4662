"""The page as a file: it needs nothing else, no script and no network."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from convattn.atomic import write_atomically
from convattn.report.environment import describe_environment
from convattn.report.explaining.section import Section
from convattn.report.templates import render_page

__all__ = ["write_explanation"]


def write_explanation(path: str | Path, sections: Sequence[Section], title: str) -> None:
    """Write the page in one step."""
    page = render_page(
        "explanation.html",
        title=title,
        sections=sections,
        environment=describe_environment(),
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    write_atomically(path, page.encode())
