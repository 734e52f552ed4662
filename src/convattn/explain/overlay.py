"""A heat map laid over its image."""

import numpy as np
from PIL import Image
from torch import Tensor

from convattn.extras import require

__all__ = ["overlay"]

_STRONGEST = 0.72  # opacity at heat 1: the image still shows through


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """Tint an image where it is hot and leave it as it is where it is cold.

    The colours are matplotlib's `inferno`, whose lightness rises evenly with the heat; opacity rises with it too.

    Args:
        image: any mode; of the same framing as the heat map, of any size.
        heat: (H, W) in 0..1, resized to the image.

    Returns:
        An RGB image of the size of `image`.

    Raises:
        ValueError: if `heat` is not a single map.
        MissingExtra: without matplotlib.
    """
    if heat.ndim != 2:
        raise ValueError(f"heat has shape {tuple(heat.shape)}; expected one map (H, W)")
    colour_map = require("matplotlib", "explain").colormaps["inferno"]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    small = Image.fromarray(heat.detach().float().cpu().numpy())
    level = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    opacity = _STRONGEST * level
    mixed = pixels * (1 - opacity) + colour_map(level[..., 0])[..., :3] * opacity
    return Image.fromarray((mixed * 255).round().astype(np.uint8))
