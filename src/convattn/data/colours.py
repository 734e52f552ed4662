"""Colours for classes that have none of their own."""

import colorsys

__all__ = ["Colour", "default_colours"]

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255

_GOLDEN = 0.618033988749895  # of the circle: hues in steps of it never come close to one another


def default_colours(classes: int) -> tuple[Colour, ...]:
    """One a class: always the same for a place, no two of 255 alike, none of them black."""
    colours = []
    for place in range(classes):
        hue, light = (place * _GOLDEN) % 1, place % 3
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 1.0)[light], (0.95, 0.75, 0.6)[light])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
