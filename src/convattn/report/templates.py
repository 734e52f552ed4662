"""The templates of pages: whatever is put into one is escaped, and takes one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convattn.shown import shown

if TYPE_CHECKING:
    import jinja2

__all__ = ["open_templates"]


def open_templates() -> jinja2.Environment:
    """The templates of this folder."""
    import jinja2  # most commands write no page

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """Names and messages as a person sees them; what is markup already stays."""
    return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
