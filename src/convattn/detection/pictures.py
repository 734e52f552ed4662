"""Objects drawn into a picture: boxes in the colours of their classes, names, masks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["DrawnObject", "with_masks", "with_objects"]

_STRENGTH = 110  # of 255: how much of a mask's colour lies over the picture
_LEAST_TEXT, _SIDES_A_TEXT = 10, 45  # pixels of a name's height; the short side of a picture over it


@dataclass(frozen=True)
class DrawnObject:
    """A box with what is written at it."""

    box_xyxy: np.ndarray  # (4,) pixels of the picture
    colour: str | tuple[int, int, int]
    text: str = ""
    is_thin: bool = False


def with_objects(picture: Image.Image, objects: Iterable[DrawnObject]) -> Image.Image:
    """A copy of an RGB picture with boxes, the large below the small."""
    drawn = picture.copy()
    canvas = ImageDraw.Draw(drawn)
    size = max(_LEAST_TEXT, min(picture.size) // _SIDES_A_TEXT)
    font, width = ImageFont.load_default(size), max(2, size // 6)
    for one in sorted(objects, key=lambda one: -_area(one.box_xyxy)):
        left, top, right, bottom = one.box_xyxy.round().tolist()
        if right < left or bottom < top:
            continue
        canvas.rectangle((left, top, right, bottom), outline=one.colour, width=1 if one.is_thin else width)
        if one.text:
            # Inside the box, or what stands at the border of the picture could not be read.
            place = (max(0, left) + width + 1, max(0, top) + width)
            behind = canvas.textbbox(place, one.text, font=font)
            canvas.rectangle((behind[0] - 2, behind[1] - 1, behind[2] + 2, behind[3] + 1), fill=one.colour)
            canvas.text(place, one.text, fill=_readable_on(one.colour), font=font)
    return drawn


def with_masks(picture: Image.Image, masks: np.ndarray, colours: Iterable[tuple[int, int, int]]) -> Image.Image:
    """A copy of an RGB picture with masks (n, H, W) bool laid over it, each in its colour."""
    drawn = picture.copy()
    for mask, colour in zip(masks, colours, strict=True):
        drawn.paste(colour, mask=Image.fromarray(mask.astype(np.uint8) * _STRENGTH))
    return drawn


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _readable_on(colour: str | tuple[int, int, int]) -> str:
    """Black or white, whichever stands out (by the luma of ITU-R BT.601)."""
    if isinstance(colour, str):
        return "black"
    return "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 110 else "white"
