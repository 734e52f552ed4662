"""Figures of matplotlib without its global state, and maps as pictures."""

import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from convattn.extras import require

__all__ = ["as_picture", "axes_of", "figure_of", "map_picture"]

_INCH = 100  # pixels
_GREATEST = 16  # of enlarging by bilinear steps


def figure_of(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure` of so many inches, that no window manager knows of."""
    return require("matplotlib.figure", "explain").Figure((width, height), layout="constrained", dpi=_INCH)


def axes_of(figure: Any, rows: int = 1, columns: int = 1) -> list[Any]:
    """Its plots row by row, without the two lines of the frame that say nothing."""
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return axes


def as_picture(figure: Any) -> Image.Image:
    """A figure as an RGB image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return Image.open(buffer).convert("RGB")


def map_picture(
    values: Tensor,
    *,
    lowest: float | None = None,
    highest: float | None = None,
    colours: str = "viridis",
    times: int = 1,
) -> Image.Image:
    """A map as an RGB image.

    Args:
        values: (H, W).
        lowest, highest: what the first and the last colour stand for; by default the map's own extremes.
        colours: a colour map of matplotlib.
        times: how much larger the picture is than the map, bilinear.

    Raises:
        ValueError: if it is no single map. MissingExtra: without matplotlib.
    """
    if values.ndim != 2:
        raise ValueError(f"values have shape {tuple(values.shape)}; expected one map (H, W)")
    if not 1 <= times <= _GREATEST:
        raise ValueError(f"times {times} must be 1 to {_GREATEST}")
    colour_map = require("matplotlib", "explain").colormaps[colours]
    numbers = values.detach().float().cpu().numpy()
    small = Image.fromarray(numbers).resize(
        (values.shape[1] * times, values.shape[0] * times), Image.Resampling.BILINEAR
    )
    low = float(numbers.min()) if lowest is None else lowest
    high = float(numbers.max()) if highest is None else highest
    level = (np.asarray(small) - low) / ((high - low) or 1.0)
    return Image.fromarray((colour_map(level.clip(0, 1))[..., :3] * 255).round().astype(np.uint8))
