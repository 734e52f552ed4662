"""The templates of pages: whatever is put into one is escaped, and takes one line."""

from __future__ import annotations

import base64
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convattn.shown import shown

if TYPE_CHECKING:
    import jinja2

__all__ = ["render_page", "short_count"]


def render_page(template: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    return _environment().get_template(template).render(**values)


def short_count(number: float) -> str:
    """Three significant digits and a letter: 654321 -> "654 k"."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:
            return f"{_three_digits(number / factor)} {letter}"
    return f"{number:g}"


@functools.cache
def _environment() -> jinja2.Environment:
    """The one of all pages, with the forms that they show figures and pictures in."""
    import jinja2  # most commands write no page

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(data_uri=_data_uri, short=short_count, shape=_shape, thousands="{:,}".format)
    return environment


def _shown(value: Any) -> Any:
    """Names and messages as a person sees them; what is markup already stays."""
    return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _three_digits(value: float) -> str:
    decimals = max(0, 2 - math.floor(math.log10(abs(value) * 1.0005)))
    return f"{value:.{decimals}f}"


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape)


def _data_uri(image: bytes) -> str:
    kinds = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
    kind = next((kind for start, kind in kinds.items() if image.startswith(start)), None)
    if kind is None:
        raise ValueError(f"an image that starts with {image[:8]!r} is neither PNG nor JPEG; encode it as one of them")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
