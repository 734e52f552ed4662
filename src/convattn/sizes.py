"""The size of images in one convention: a side, (height, width) or (channels, height, width), wherever one is taken."""

from collections.abc import Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # words of a command are read without torch
    from torch import nn

__all__ = ["Size", "image_shape", "input_shape", "likely_shapes", "size_of_words"]

Size = int | Sequence[int]  # a side, (height, width) or (channels, height, width)

# For a model that does not say what it takes; the heads of small networks often fit one size alone.
_USUAL_SIDES = (224, 256, 64, 32, 28)
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
    """The size written as "64", "64 96" or "64x96", and with the channels in front; ValueError if it is none."""
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
    if size is None:
        told = _told(model)
        if told is None:
            raise ValueError(f"{type(model).__name__} does not say what input it expects; give {called}: {_FORMS}")
        size = told[1:]
    return image_shape(size, _channels(model), called)


def likely_shapes(model: "nn.Module") -> Iterator[tuple[int, int, int]]:
    """(channels, height, width) of images that `model` may take, the likeliest first: what it says, then usual ones."""
    told, channels = _told(model), _channels(model)
    if told:
        yield channels, told[1], told[2]
    for side in _USUAL_SIDES:
        yield channels, side, side


def _told(model: "nn.Module") -> tuple[int, int, int] | None:
    """What the weights of a model expect, where that is known."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("input_size") if isinstance(cfg, dict) else getattr(cfg, "input_size", None)


def _channels(model: "nn.Module") -> int:
    """Of the images for a model: what it says itself, else what its first convolution reads."""
    from torch import nn

    told, own = _told(model), getattr(model, "in_chans", None)
    first = next((part.in_channels for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return own or first or (told[0] if told else 3)
