"""The size of images in one convention: a side, (height, width) or (channels, height, width), wherever one is taken."""

from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # words of a command are read without torch
    from torch import nn

__all__ = ["Size", "image_shape", "input_shape", "size_of_words"]

Size = int | Sequence[int]  # a side, (height, width) or (channels, height, width)

_FORMS = "a side, (height, width) or (channels, height, width)"


def image_shape(size: Size, channels: int = 3, called: str = "input_size") -> tuple[int, int, int]:
    """(channels, height, width) of images of such a size.

    Args:
        size: in any of the three forms.
        channels: where `size` does not say.
        called: what the user calls it, for the error.

    Raises:
        ValueError: if it is none of the three.
    """
    try:
        sides = [index(side) for side in (size if isinstance(size, Sequence) else [size])]
    except TypeError:  # no whole number
        sides = []
    if not 1 <= len(sides) <= 3 or min(sides) < 1:
        given = size[0] if isinstance(size, Sequence) and len(size) == 1 else size
        raise ValueError(f"{called} {given!r} must be {_FORMS}, each 1 or more")
    *first, height, width = sides * 2 if len(sides) == 1 else sides
    return (first[0] if first else channels), height, width


def size_of_words(words: Sequence[str]) -> Size:
    """The size that is written as "64", as "64 96" or as "64x96", and with the channels in front.

    Raises:
        ValueError: if it is none, or not one of the three forms.
    """
    text = " ".join(words)
    try:
        size = tuple(int(side) for side in text.replace(" ", "x").split("x"))
        image_shape(size)
    except ValueError:
        raise ValueError(f"{text!r} must be {_FORMS}, each 1 or more, such as 224 or 224x320") from None
    return size if len(size) > 1 else size[0]


def input_shape(model: "nn.Module", size: Size | None = None, called: str = "input_size") -> tuple[int, int, int]:
    """(channels, height, width) of images for `model`: of that size, by default what its weights expect.

    Where neither says how many channels, the first convolution does.

    Raises:
        ValueError: if it is no size, or the model does not say what it expects.
    """
    from torch import nn

    expected: Any = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None and expected is None:
        raise ValueError(f"{type(model).__name__} does not say what input it expects; give {called}: {_FORMS}")
    channels = getattr(model, "in_chans", expected[0] if expected else None)
    if channels is None:
        channels = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), 3)
    return image_shape(expected[1:] if size is None else size, channels, called)
