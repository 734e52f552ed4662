"""The sizes to which pictures are brought, and which pixels are seen then."""

import numpy as np

__all__ = ["Scale", "nearest_places", "size_within"]

Scale = tuple[int, int]  # the longest and the shortest side that an image may have, in any order


def size_within(height: int, width: int, scale: Scale) -> tuple[int, int]:
    """Height and width of an image resized with its aspect kept: as large as both sides of `scale` allow.

    Its longer side is at most the greater number, its shorter side at most the smaller one; no side falls below 1.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def nearest_places(old: int, new: int) -> np.ndarray:
    """Which of `old` pixels each of `new` shows, (new,) int64: floor(i · 1 / (new / old)) in double precision."""
    places = np.floor(np.arange(new) * (1 / (new / old))).astype(np.int64)
    return np.minimum(places, old - 1)
