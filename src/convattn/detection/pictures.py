"""Objects drawn into a picture: boxes in the colours of their classes, names, masks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["DrawnObject", "with_masks", "with_objects"]

_STRENGTH = 110  # of 255: how much of a mask's colour lies over the picture
_LEAST_TEXT, _SMALL_TEXT = 10, 13  # pixels of a name's height in tiny and in small pictures
_TINY, _SIDES_A_TEXT = 15, 45  # the short side of a picture over that height: of tiny ones, of large ones


Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class DrawnObject:
    """A box with what is written at it."""

    box_xyxy: np.ndarray  # (4,) pixels of the picture
    colour: str | tuple[int, int, int]
    text: str = ""
    is_thin: bool = False


def with_objects(picture: Image.Image, objects: Iterable[DrawnObject]) -> Image.Image:
    """A copy of an RGB picture with boxes, the large below the small, and names that leave one another readable."""
    drawn = picture.copy()
    canvas = ImageDraw.Draw(drawn)
    side = min(picture.size)
    size = max(_LEAST_TEXT, min(_SMALL_TEXT, side // _TINY), side // _SIDES_A_TEXT)
    font, width = ImageFont.load_default(size), max(2, size // 6)
    largest_first = sorted(objects, key=lambda one: -_area(one.box_xyxy))
    shown = [one for one in largest_first if (one.box_xyxy[2:].round() >= one.box_xyxy[:2].round()).all()]
    for one in shown:
        box = tuple(one.box_xyxy.round().tolist())
        canvas.rectangle(box, outline=one.colour, width=1 if one.is_thin else width)
    taken: list[Rectangle] = []
    for one in reversed(shown):  # a small box has the least choice
        if one.text:
            right, bottom = canvas.textbbox((0, 0), one.text, font=font)[2:]
            x, y = _place(one.box_xyxy.round().tolist(), (right + 4, bottom + 2), picture.size, width, taken)
            taken.append((x, y, x + right + 4, y + bottom + 2))
            canvas.rectangle(taken[-1], fill=one.colour)
            canvas.text((x + 2, y + 1), one.text, fill=_readable_on(one.colour), font=font)
    return drawn


def with_masks(picture: Image.Image, masks: np.ndarray, colours: Iterable[tuple[int, int, int]]) -> Image.Image:
    """A copy of an RGB picture with masks (n, H, W) bool laid over it, each in its colour."""
    drawn = picture.copy()
    for mask, colour in zip(masks, colours, strict=True):
        drawn.paste(colour, mask=Image.fromarray(mask.astype(np.uint8) * _STRENGTH))
    return drawn


def _place(
    box: Sequence[float], size: tuple[float, float], picture: tuple[int, int], width: int, taken: Sequence[Rectangle]
) -> tuple[float, float]:
    """Where a name of a size goes: in the corner of its box, or around it, where it covers the least of others."""
    left, top, right, bottom = box
    (wide, high), inside = size, width + 1
    corners = [
        (left + inside, top + inside),
        (left, top - high),
        (left, bottom),
        (left + inside, bottom - inside - high),
        (right - inside - wide, top + inside),
        (right, top),
        (left - wide, top),
    ]
    # What stands out of the picture could not be read.
    places = [(max(0, min(x, picture[0] - wide)), max(0, min(y, picture[1] - high))) for x, y in corners]
    return min(places, key=lambda place: sum(_common((*place, place[0] + wide, place[1] + high), of) for of in taken))


def _common(a: Rectangle, b: Rectangle) -> float:
    """The area that two rectangles share."""
    sides = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return sides[0] * sides[1] if min(sides) > 0 else 0.0


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _readable_on(colour: str | tuple[int, int, int]) -> str:
    """Black or white, whichever stands out (by the luma of ITU-R BT.601)."""
    if isinstance(colour, str):
        return "black"
    return "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else "white"
