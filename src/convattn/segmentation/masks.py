"""What the pixels of a mask mean: from a file to a label map whose numbers are classes, and `IGNORED`.

A mask of one channel holds numbers, whatever colours its palette has; one of three holds colours. What is no class is
an error of that one image, which is set aside like one that cannot be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from convattn.data.colours import Colour
from convattn.data.images import ImageError, decode_as_stored
from convattn.segmentation.options import IGNORED, LabelOptions
from convattn.shown import shown

__all__ = [
    "MaskCode",
    "MaskError",
    "MissingMask",
    "OtherKind",
    "OtherSize",
    "UnknownLabel",
    "numbers_in",
    "reduced",
]

_NAMED = 4  # numbers or colours in an error
_DEEP = ("I", "F")  # begin the modes of more than 8 bits
_COLOURED = ("RGB", "RGBA")
_JPEG = b"\xff\xd8\xff"


class MaskError(ImageError):
    """A mask that does not go with its image or its classes."""

    kind = "masks that cannot be used"  # what several of them are called


class MissingMask(MaskError):
    """An image without a mask."""

    kind = "no mask"


class OtherSize(MaskError):
    """A mask of another size than its image."""

    kind = "image and mask of different size"


class OtherKind(MaskError):
    """A mask whose pixels are neither numbers of 8 bits nor colours."""

    kind = "masks of another kind"


class UnknownLabel(MaskError):
    """A number or a colour that is no class."""

    kind = "labels that are no class"


@dataclass(frozen=True)
class MaskCode:
    """What the numbers and colours of masks mean.

    Args:
        classes: names, in the order of the label maps' numbers.
        colours: in which they are shown.
        meaning: (256,) int16, the class of each number in a mask, `IGNORED`, or -1 for a number that has none.
        palette: the colours of RGB masks; None where they are not known.
        palette_numbers: the number that each of them stands for.
        options: where that comes from, for errors.
        where: what names the classes, for errors.
    """

    classes: tuple[str, ...]
    colours: tuple[Colour, ...]
    meaning: np.ndarray
    palette: tuple[Colour, ...] | None
    palette_numbers: tuple[int, ...]
    options: LabelOptions
    where: str

    def read_known(self, content: bytes, name: str) -> tuple[np.ndarray, str]:
        """The label map (H, W) uint8 in the content of a mask's file, and a line about what in it is no class.

        That is ignored in the map; the line is empty where all is known.

        Raises:
            ImageError: naming the file, if it cannot be read. OtherKind: if it holds neither numbers nor known colours.
        """
        image = decode_as_stored(content, name)
        greys = self._greys_are_colours and image.mode in ("1", "L")
        if self.palette is not None and (greys or image.mode in _COLOURED):
            _check_lossless(content, name)
            labels, problem = self._of_colours(_opaque(image, name))
        else:
            numbers = numbers_in(image, content, name, self.where)
            if image.mode == "P" and self.palette is not None:
                self._check_palette(image, numbers, name)
            labels, problem = self._of_numbers(numbers)
        return labels, f"{shown(name)}: {problem}" if problem else ""

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables, which each process makes for itself."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @cached_property
    def _table(self) -> np.ndarray:
        return np.where(self.meaning < 0, IGNORED, self.meaning).astype(np.uint8)

    @cached_property
    def _greys_are_colours(self) -> bool:
        """Whether every class is a shade of grey, as where masks are black and white: then grey masks hold these."""
        return self.palette is not None and all(red == green == blue for red, green, blue in self.palette)

    @cached_property
    def _places(self) -> np.ndarray:
        """(2 ** 24,) uint8: the place of each colour in the palette, `IGNORED` for all others."""
        assert self.palette is not None
        places = np.full(2**24, IGNORED, dtype=np.uint8)
        places[[_code(colour) for colour in self.palette]] = range(len(self.palette))
        return places

    def _of_numbers(self, numbers: np.ndarray) -> tuple[np.ndarray, str]:
        counts = np.bincount(numbers.ravel(), minlength=256)
        unknown = np.flatnonzero((counts > 0) & (self.meaning < 0))
        return self._table.take(numbers), self._out_of_range(unknown.tolist(), counts) if len(unknown) else ""

    def _of_colours(self, image: Image.Image) -> tuple[np.ndarray, str]:
        assert self.palette is not None
        codes = _codes(image)
        places = self._places.take(codes)
        meaning = np.full(256, IGNORED, dtype=np.uint8)
        meaning[: len(self.palette)] = self._table[list(self.palette_numbers)]
        unknown = codes[places == IGNORED]
        return meaning.take(places), self._unknown_colour(unknown) if len(unknown) else ""

    def _check_palette(self, image: Image.Image, numbers: np.ndarray, name: str) -> None:
        """Refuse numbers whose colours are those of other classes: a program that made files smaller chose them."""
        assert self.palette is not None
        colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        meant = dict(zip(self.palette, self.palette_numbers, strict=True))
        used = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256)).tolist()
        drawn = {number: tuple(colours[number].tolist()) for number in used if number < len(colours)}
        if len(drawn) < len(used) or not {*drawn.values()} <= {*meant}:
            return  # colours of its own
        other = next((number for number in used if meant[drawn[number]] != number), None)
        if other is not None:
            raise OtherKind(
                f"{shown(name)}: number {other} has the colour {_spaced(drawn[other])} in its palette, that of number "
                f"{meant[drawn[other]]} in {shown(self.where)}; save masks as RGB if colours count, as one grey "
                "channel if numbers do"
            )

    def _out_of_range(self, unknown: Sequence[int], counts: np.ndarray) -> str:
        value, own = unknown[0], np.flatnonzero((self.meaning >= 0) & (self.meaning != IGNORED)).tolist()
        others = f" (and {_listed(unknown[1:])})" if len(unknown) > 1 else ""
        known = f"{own[0]} to {own[-1]}" if own == [*range(own[0], own[-1] + 1)] else _listed(own)
        fixes = [f"set labels.ignore_index {value} if it counts for nothing"]
        if not self.options.reduce_zero_label and (value == 0 or len(own) in unknown):
            fixes.append("labels.reduce_zero_label if 0 does and classes count from 1")
        fixes.append(f"or name its class in {shown(self.where) or 'classes.txt'}")
        pixels = f"{counts[value]:,} pixels{others}"
        return f"label {value} in {pixels}, and the {len(own)} classes are {known}; {', '.join(fixes)}"

    def _unknown_colour(self, codes: np.ndarray) -> str:
        assert self.palette is not None
        found, counts = np.unique(codes, return_counts=True)
        most = int(counts.argmax())
        colour = _colour(int(found[most]))
        gaps = [sum((a - b) ** 2 for a, b in zip(colour, each, strict=True)) for each in self.palette]
        near = gaps.index(min(gaps))
        place = int(self.meaning[self.palette_numbers[near]])
        name = self.classes[place] if place != IGNORED else "what counts for nothing"
        others = len(codes) - counts[most]
        hint = (
            f"name its class in {shown(self.where) or 'classes.txt'}, and set its number as labels.ignore_index "
            "if it counts for nothing"
        )
        return (
            f"colour {_spaced(colour)} in {counts[most]:,} pixels is no class; the nearest is {shown(name)!r}, "
            f"{_spaced(self.palette[near])}{f'; {others:,} pixels have others' if others else ''}; "
            f"{'masks must not be smoothed' if len(found) > 2 * len(self.palette) else hint}"
        )


def _opaque(image: Image.Image, name: str) -> Image.Image:
    """A mask of colours in mode RGB."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise OtherKind(f"{shown(name)}: a mask with transparent pixels; save it as PNG of class numbers")
    return image.convert("RGB")


def numbers_in(image: Image.Image, content: bytes, name: str, where: str = "") -> np.ndarray:
    """The numbers (H, W) uint8 in a decoded mask of one channel, as its file has them.

    Args:
        image: the decoded mask.
        content: its file.
        name: what errors call it.
        where: the file that names the classes, without their colours; for errors.

    Raises:
        OtherKind: if it has more channels or more than 8 bits.
    """
    _check_lossless(content, name)
    if image.mode in _COLOURED:
        raise OtherKind(f"{shown(name)}: {_without_palette(_codes(image.convert('RGB')), where)}")
    if image.mode.startswith(_DEEP):
        most = np.asarray(image).max()
        raise OtherKind(
            f"{shown(name)}: a mask of more than 8 bits (mode {image.mode}, numbers up to {most:g}); save its numbers "
            "of classes with 8 bits"
        )
    if image.mode not in ("1", "L", "P"):
        raise OtherKind(f"{shown(name)}: a mask in mode {image.mode}; save it as PNG with one channel of class numbers")
    numbers = np.asarray(image).astype(np.uint8)
    if image.mode == "L" and (most := _grey_maximum(content)) < 255:
        numbers //= 255 // most  # Pillow spreads greys of 2 and 4 bits over 0 to 255
    return numbers


def reduced(numbers: np.ndarray) -> np.ndarray:
    """`reduce_zero_label` of mmsegmentation on uint8: 0 becomes 255, all go down by 1, 254 becomes 255."""
    lower = np.where(numbers == 0, np.uint8(IGNORED), numbers) - np.uint8(1)
    return np.where(lower == IGNORED - 1, np.uint8(IGNORED), lower)


def _without_palette(codes: np.ndarray, where: str) -> str:
    """What is wrong with a mask of colours where none are known, and what to do."""
    found, counts = np.unique(codes, return_counts=True)
    colours = [_colour(int(found[at])) for at in np.argsort(-counts)[:_NAMED]]
    greys = [red for red, green, blue in map(_colour, found.tolist()) if red == green == blue]
    if len(greys) == len(found):
        return (
            "a mask of three equal channels, and no colours of classes are known; save it with one channel (mode L of "
            f"Pillow) if its greys ({_listed(greys)}) are the numbers of classes"
        )
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return (
        f"an RGB mask ({', '.join(map(_spaced, colours))}{more}), and no colours of classes "
        f"are known; write a line `NAME R G B` for each class into {shown(where) or 'classes.txt beside the data'}, or "
        "name such a file with labels.classes"
    )


def _codes(image: Image.Image) -> np.ndarray:
    """The colours of an RGB image as one number each, (H, W) uint32."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), "<u4").reshape(image.height, image.width) & 0xFFFFFF


def _check_lossless(content: bytes, name: str) -> None:
    if content.startswith(_JPEG):
        raise OtherKind(f"{shown(name)}: a JPEG, which changes the numbers and colours of pixels; save masks as PNG")


def _grey_maximum(content: bytes) -> int:
    """The greatest grey that a PNG file can have, by its header; 255 for other files."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return 255
    depth, kind = content[24], content[25]
    return 2**depth - 1 if kind == 0 and depth < 8 else 255


def _code(colour: Colour) -> int:
    return colour[0] | colour[1] << 8 | colour[2] << 16


def _colour(code: int) -> Colour:
    return code & 255, code >> 8 & 255, code >> 16 & 255


def _spaced(colour: Colour) -> str:
    return " ".join(map(str, colour))


def _listed(values: Sequence[int]) -> str:
    shortened = ", ".join(map(str, values[:_NAMED]))
    return shortened + (f" and {len(values) - _NAMED} more" if len(values) > _NAMED else "")
