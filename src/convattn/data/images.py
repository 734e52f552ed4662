"""Reading one image file, whatever is in it, as 8-bit RGB."""

import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from convattn.data.png_chunks import without_texts
from convattn.data.silent_decoders import silence_decoders
from convattn.shown import reason, shown

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_DECODED",
    "MAX_PIXELS",
    "ImageError",
    "as_jpeg",
    "as_png",
    "as_rgb",
    "decode_as_stored",
    "decode_image",
    "decode_with_mode",
    "pieces",
    "read_bytes",
    "read_image",
    "size_of",
]

# What is read, by Pillow's names; MPO comes with JPEG. Its other formats start programs (EPS) or are hardly tested.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM")

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB, Pillow's own line of suspicion
MAX_BYTES = 2**28  # no photograph has more; an archive or a disk image by a wrong name does
MAX_DECODED = 2**29  # bytes that an image may take at the peak beside its file: a few kB can stand for gigabytes
_PIECE = 2**20  # pixels that are converted at a time, so that nothing is held twice
_MANY = 1000  # pieces of EXIF in a file; Pillow joins them one by one, in a time that grows with their square
_ORIENTATION = ExifTags.Base.Orientation
_TURNS = {  # what makes an image upright, by that entry
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[entry] for entry in (5, 6, 7, 8)}

# Bytes a pixel that decoders hold beside Pillow's image, measured on images of one colour; 0 for those that fill it row
# by row. Those of JPEG, JPEG 2000 and TIFF depend on the file.
_DECODER = {"WEBP": 12, "AVIF": 12}

_Decoded = TypeVar("_Decoded")


class ImageError(ValueError):
    """An image file that cannot be read."""


def read_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """The image in a file, as it is meant to be seen: RGB, 8 bit, turned by its EXIF orientation.

    16-bit grey is scaled to 8 bit (65535 becomes 255), palettes are resolved, CMYK is converted, transparent pixels are
    laid on white, and of an animation the first frame is taken.

    Args:
        source: a file of one of `FORMATS`, or the content of one.
        name: what errors call it; the path by default.

    Returns:
        A PIL image in mode RGB.

    Raises:
        ImageError: in one line naming the file, if it is missing, no regular file, empty, damaged, cut short, no image,
            larger than `MAX_BYTES`, or (found out before any pixel is decoded) larger than `MAX_PIXELS` or such that
            decoding would take more than `MAX_DECODED` bytes.
    """
    if isinstance(source, bytes):
        name = name or f"{len(source):,} bytes"
    else:
        name = name or str(source)
        source = read_bytes(source, name)
    with warnings.catch_warnings(action="ignore"):  # Pillow warns of odd metadata; what matters raises
        return decode_image(source, name)


def read_bytes(path: str | Path, name: str | None = None) -> bytes:
    """The content of an image file; `name` is what errors call it.

    Raises:
        ImageError: in one line, if the file is missing, no regular file (a pipe or a device could be read for ever),
            larger than `MAX_BYTES`, or the system refuses it.
    """
    name = shown(name or path)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{name}: {_kind(status.st_mode)}, not an image")
            if status.st_size > MAX_BYTES:
                raise ImageError(f"{name}: {status.st_size:,} bytes, more than the limit of {MAX_BYTES:,} for an image")
            return file.read(status.st_size)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{name}: could not be read ({error.strerror or error})") from None
    except (ValueError, MemoryError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: could not be read ({error or 'not enough memory'})") from None


def _without_waiting(path: str, flags: int) -> int:
    """`open` would wait for somebody to write into a pipe; opening a device may already set it in motion."""
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise ImageError(f"{shown(path)}: {_kind(mode)}, not an image")
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
    return "a " + next((word for test, word in kinds if test(mode)), "device")


def decode_image(content: bytes, name: str) -> Image.Image:
    """`read_image` for threads: Pillow's warnings of odd metadata are left to the caller, whose filter all share."""
    return decode_with_mode(content, name)[0]


def decode_with_mode(content: bytes, name: str) -> tuple[Image.Image, str]:
    """`decode_image`, and Pillow's name of the mode that the file has: RGB, L, CMYK, I;16, …"""
    return _guarded(_decode_rgb, content, name)


def decode_as_stored(content: bytes, name: str) -> Image.Image:
    """The image in the content of a file, upright, its pixels as they are: numbers in a palette stay numbers.

    Raises:
        ImageError: as `read_image`.
    """
    return _guarded(_decode_stored, content, name)


def size_of(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of the upright image in a file, by its header alone where that tells; errors of `read_image`."""
    return _guarded(_size, content, name)


def _guarded(decode: Callable[[bytes, str], _Decoded], content: bytes, name: str) -> _Decoded:
    """What `decode` makes of the content of a file, whatever is wrong with it as an ImageError."""
    name = shown(name)
    if not content:
        raise ImageError(f"{name}: the file is empty")
    silence_decoders()
    try:
        return _without_long_texts(decode, content, name)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise ImageError(_too_large(name, int(pixels[1]) if pixels else None)) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a known format") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it; make a smaller copy") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumbled on
        raise ImageError(f"{name}: damaged or cut short ({shown(reason(error, 200))})") from None


def _without_long_texts(decode: Callable[[bytes, str], _Decoded], content: bytes, name: str) -> _Decoded:
    if content.count(b"Exif\0\0") > _MANY:
        raise ImageError(f"{name}: damaged or cut short (more than {_MANY:,} pieces of EXIF)")
    try:
        return decode(content, name)
    except ValueError:
        # Pillow refuses a PNG for a long text or colour profile, which tell nothing of its pixels.
        shorter = without_texts(content)
        if shorter is None:
            raise
        return decode(shorter, name)


def _decode_rgb(content: bytes, name: str) -> tuple[Image.Image, str]:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        turn = _load(image, name)
        mode = image.mode
        rgb = as_rgb(name, image)
    return (rgb if turn is None else rgb.transpose(turn)), mode


def _decode_stored(content: bytes, name: str) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        turn = _load(image, name)
        return image if turn is None else image.transpose(turn)


def _size(content: bytes, name: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return image.size[::-1] if _turn_of(image, name) in _SIDEWAYS else image.size


def _load(image: Image.Image, name: str) -> Image.Transpose | None:
    """Decode the pixels of an opened image; gives what makes it upright."""
    turn = _turn_of(image, name)
    _check_memory(name, image, is_turned=turn is not None)
    image.load()
    return turn


def _turn_of(image: Image.Image, name: str) -> Image.Transpose | None:
    """What makes an opened image upright; of a PNG that may stand behind the pixels, which are decoded for it."""
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(_too_large(name, image.width * image.height))
    _check_memory(name, image, is_turned=False)
    return _TURNS.get(image.getexif().get(_ORIENTATION, 1))


def _check_memory(name: str, image: Image.Image, *, is_turned: bool) -> None:
    """Refuse, by its header, an image of which decoding, conversion or turning would hold too much at a time."""
    held = _bytes_of(image.mode)
    decoding = held + _DECODER.get(image.format or "", 0)
    if image.info.get("progressive"):
        decoding += 2 * len(image.getbands())  # all coefficients until the last scan
    if image.format == "JPEG2000":
        decoding += 6 * len(image.getbands())
    beyond = 0  # bytes for what lies outside the image
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        stored = sum(tags.get(258, (1,))) // 8  # all may be one strip
        decoding += stored
        beyond = max(0, tags.get(322, 0) * tags.get(323, 0) - image.width * image.height) * stored  # of one tile
    converting = held + 4 if image.mode != "RGB" or is_turned else held
    needed = image.height * (image.width * max(decoding, converting) + 2 * 8) + beyond  # Pillow has a pointer a row
    if needed > MAX_DECODED:
        raise ImageError(
            f"{name}: {image.width} × {image.height} pixels of {image.format} in mode {image.mode} would take "
            f"{needed:,} bytes to decode, more than the limit of {MAX_DECODED:,}; make a smaller copy"
        )


def _bytes_of(mode: str) -> int:
    """What a pixel takes in Pillow's memory."""
    if mode.startswith("I;16"):
        return 2
    return 1 if mode in ("1", "L", "P") else 4


def as_rgb(name: str, image: Image.Image) -> Image.Image:
    """A decoded image in mode RGB, as `read_image` makes it; `name` is what errors call it."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(name, image)
    if image.has_transparency_data:
        rgb = Image.new("RGB", image.size)
        for corner, piece in pieces(image):
            piece = piece.convert("RGBA")
            rgb.paste(Image.alpha_composite(Image.new("RGBA", piece.size, "white"), piece).convert("RGB"), corner)
        return rgb
    # `convert` copies what is RGB already: a tenth of the time it takes to read a photograph.
    return image if image.mode == "RGB" else image.convert("RGB")


def as_jpeg(image: Image.Image, quality: int = 85) -> bytes:
    """A picture to be shown as a JPEG file, without what is transparent in it."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def as_png(image: Image.Image) -> bytes:
    """A picture to be shown as a PNG file, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _from_deep_grey(name: str, image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits: integers of 16 bits (Pillow may hold them in 32), or floats in 0..1."""
    extremes = [(pixels.min(), pixels.max()) for pixels in (np.asarray(piece) for _, piece in pieces(image))]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    full = 65535 if np.issubdtype(low.dtype, np.integer) else 1.0
    if not (low >= 0 and high <= full):  # so that it holds for what is no number
        raise ImageError(f"{name}: pixels from {low} to {high} do not fit the range 0 to {full}; rescale the image")
    grey = Image.new("L", image.size)
    for corner, piece in pieces(image):
        scaled = np.rint(np.asarray(piece).astype(np.float64) * (255 / full)).astype(np.uint8)
        grey.paste(Image.fromarray(scaled), corner)
    image.close()  # its pixels
    return grey.convert("RGB")


def pieces(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """An image cut up, each piece with its upper left corner."""
    columns = min(image.width, _PIECE)
    rows = _PIECE // columns
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            right, bottom = min(left + columns, image.width), min(top + rows, image.height)
            yield (left, top), image.crop((left, top, right, bottom))


def _too_large(name: str, pixels: int | None) -> str:
    size = "too many" if pixels is None else f"{pixels:,}"
    return f"{name}: {size} pixels, more than the limit of {MAX_PIXELS:,}; make a smaller copy"
