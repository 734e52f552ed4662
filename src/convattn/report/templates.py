"""The templates of pages: whatever is put into one is escaped, and takes one line."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from convattn.shown import shown

__all__ = ["open_templates"]


def open_templates() -> jinja2.Environment:
    """The templates of this folder."""
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
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value
