"""Label maps as pictures: in the colours of their classes, laid over a photograph, with a legend."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from convattn.segmentation.options import IGNORED

__all__ = ["coloured", "errors", "index_png", "overlaid", "with_legend"]

Colours = Sequence[Sequence[int]]  # (classes, 3) red, green and blue, 0 to 255

_NOTHING = (0, 0, 0)  # of pixels that count for nothing
_LEAST = 0.002  # share of the pixels from which on a class stands in the legend
_MOST = 20  # classes in it


def palette(colours: Colours) -> np.ndarray:
    """(256, 3) uint8: the classes' colours, black for every other number."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = np.asarray(colours, dtype=np.uint8)
    table[IGNORED] = _NOTHING
    return table


def coloured(labels: np.ndarray, colours: Colours) -> Image.Image:
    """A label map (H, W) uint8 as an RGB picture."""
    return index_image(labels, colours).convert("RGB")


def index_image(labels: np.ndarray, colours: Colours) -> Image.Image:
    """A label map (H, W) uint8 as a picture whose pixels are the classes' numbers, with their colours beside."""
    picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8)).convert("L")
    picture.putpalette(palette(colours).tobytes())
    return picture


def index_png(labels: np.ndarray, colours: Colours) -> bytes:
    """The same as a file."""
    buffer = io.BytesIO()
    index_image(labels, colours).save(buffer, "PNG")
    return buffer.getvalue()


def overlaid(picture: Image.Image, labels: np.ndarray, colours: Colours, strength: float = 0.55) -> Image.Image:
    """The classes' colours laid over a picture of the same size; pixels that count for nothing stay as they are."""
    base = picture.convert("RGB")
    mixed = Image.blend(base, coloured(labels, colours), strength)
    if (labels == IGNORED).any():
        mixed.paste(base, mask=Image.fromarray((labels == IGNORED).astype(np.uint8) * 255))
    return mixed


def errors(labels: np.ndarray, predicted: np.ndarray) -> Image.Image:
    """Where a prediction is wrong: red there, grey where it is right, black where nothing is known."""
    table = np.array([(225, 45, 45), (205, 205, 205), _NOTHING], dtype=np.uint8)
    kinds = np.where(labels == IGNORED, 2, (labels == predicted).astype(np.uint8))
    return Image.fromarray(table[kinds])


def with_legend(picture: Image.Image, shares: Sequence[tuple[str, Sequence[int], float]]) -> Image.Image:
    """A picture with a strip below that names the colours of the classes, the largest first.

    Args:
        picture: RGB.
        shares: name, colour and share of the pixels of each class, 0 to 1.
    """
    found = sorted((row for row in shares if row[2] >= _LEAST), key=lambda row: -row[2])
    more = len(found) - _MOST
    texts = [(f"{name} {100 * share:.0f} %", tuple(colour)) for name, colour, share in found[:_MOST]]
    texts += [(f"and {more} more", _NOTHING)] if more > 0 else []
    size = max(12, min(picture.size) // 36)
    font = ImageFont.load_default(size)
    rows: list[list[tuple[float, str, tuple[int, ...]]]] = []
    across = 0.0
    for text, colour in texts:
        width = font.getlength(text) + 3 * size
        if not rows or across + width > picture.width:
            rows, across = [*rows, []], 0.0
        rows[-1].append((across, text, colour))
        across += width
    sheet = Image.new("RGB", (picture.width, picture.height + (2 * len(rows) + (len(rows) > 0)) * size), "white")
    sheet.paste(picture)
    canvas = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = picture.height + size * (2 * number + 1) - size // 4
        for left, text, colour in row:
            canvas.rectangle((left + size // 2, top, left + 1.5 * size, top + size), fill=colour)
            canvas.text((left + 2 * size, top - size // 6), text, fill="black", font=font)
    return sheet
