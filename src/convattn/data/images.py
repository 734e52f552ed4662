"""Reading one image file, whatever is in it, as 8-bit RGB."""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

__all__ = ["MAX_BYTES", "MAX_PIXELS", "ImageError", "decode_image", "read_bytes", "read_image"]

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB, Pillow's own line of suspicion
MAX_BYTES = 2**28  # no photograph has more; an archive or a disk image by a wrong name does
_ORIENTATION = ExifTags.Base.Orientation


class ImageError(ValueError):
    """An image file that cannot be read."""


def read_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """The image in a file, as it is meant to be seen: RGB, 8 bit, turned by its EXIF orientation.

    16-bit grey is scaled to 8 bit (65535 becomes 255), palettes are resolved, CMYK is converted, transparent pixels are
    laid on white, and of an animation the first frame is taken.

    Args:
        source: a file of any format that Pillow reads, or the content of one.
        name: what errors call it; the path by default.

    Returns:
        A PIL image in mode RGB.

    Raises:
        ImageError: in one line naming the file, if it is missing, empty, damaged, cut short, no image, larger than
            `MAX_BYTES`, or larger than `MAX_PIXELS` (found out before any pixel is decoded).
    """
    if isinstance(source, bytes):
        name = name or f"{len(source):,} bytes"
    else:
        name = name or str(source)
        source = read_bytes(source, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters raises
        return decode_image(source, name)


def read_bytes(path: str | Path, name: str | None = None) -> bytes:
    """The content of an image file; `name` is what errors call it.

    Raises:
        ImageError: in one line, if the file is missing, no file, larger than `MAX_BYTES`, or the system refuses it.
    """
    name = name or str(path)
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ImageError(f"{name}: {size:,} bytes, more than the limit of {MAX_BYTES:,} for an image")
            return file.readall()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"{name}: could not be read ({error.strerror or error})") from None


def decode_image(content: bytes, name: str) -> Image.Image:
    """`read_image` for threads: Pillow's warnings of odd metadata are left to the caller, whose filter all share."""
    if not content:
        raise ImageError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            _check_size(name, image.width * image.height)
            if image.getexif().get(_ORIENTATION, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return _to_rgb(name, image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise ImageError(_too_large(name, int(pixels[1]) if pixels else None)) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a known format") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumbled on
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{name}: damaged or cut short ({reason})") from None


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(name, np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    # `convert` copies what is RGB already: a tenth of the time it takes to read a photograph.
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(name: str, pixels: np.ndarray) -> Image.Image:
    """Grey of more than 8 bits: integers of 16 bits (Pillow may hold them in 32), or floats in 0..1."""
    full = 65535 if np.issubdtype(pixels.dtype, np.integer) else 1.0
    if pixels.min() < 0 or pixels.max() > full:
        raise ImageError(
            f"{name}: pixels from {pixels.min()} to {pixels.max()} do not fit the range 0 to {full}; rescale the image"
        )
    return Image.fromarray(np.rint(pixels.astype(np.float64) * (255 / full)).astype(np.uint8))


def _check_size(name: str, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise ImageError(_too_large(name, pixels))


def _too_large(name: str, pixels: int | None) -> str:
    size = "too many" if pixels is None else f"{pixels:,}"
    return f"{name}: {size} pixels, more than the limit of {MAX_PIXELS:,}; make a smaller copy"
