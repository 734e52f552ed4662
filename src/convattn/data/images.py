"""Reading one image file, whatever is in it, as 8-bit RGB."""

import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["MAX_PIXELS", "ImageError", "read_image"]

MAX_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB, Pillow's own line of suspicion


class ImageError(ValueError):
    """An image file that cannot be read."""


def read_image(path: str | Path) -> Image.Image:
    """The image in a file, as it is meant to be seen: RGB, 8 bit, turned by its EXIF orientation.

    16-bit grey is scaled to 8 bit (65535 becomes 255), palettes are resolved, CMYK is converted, transparent pixels are
    laid on white, and of an animation the first frame is taken.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        A PIL image in mode RGB.

    Raises:
        ImageError: in one line naming the file, if it is missing, empty, damaged, cut short, no image, or larger than
            `MAX_PIXELS` (found out before any pixel is decoded).
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: {'a folder, not an image' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what matters raises
        try:
            with Image.open(path) as image:
                _check_size(path, image.width * image.height)
                return _to_rgb(path, ImageOps.exif_transpose(image))
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            pixels = re.search(r"\((\d+) pixels\)", str(error))
            raise ImageError(_too_large(path, int(pixels[1]) if pixels else None)) from None
        except UnidentifiedImageError:
            raise ImageError(f"{path}: not an image of a known format") from None
        except OSError as error:
            if error.strerror:  # of the system; Pillow's own have none
                raise ImageError(f"{path}: could not be read ({error.strerror})") from None
            raise ImageError(f"{path}: damaged or cut short ({error})") from None
        except Exception as error:  # decoders of damaged files raise whatever they stumbled on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ImageError(f"{path}: damaged or cut short ({reason})") from None


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(path, np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(path: Path, pixels: np.ndarray) -> Image.Image:
    """Grey of more than 8 bits: integers of 16 bits (Pillow may hold them in 32), or floats in 0..1."""
    full = 65535 if np.issubdtype(pixels.dtype, np.integer) else 1.0
    if pixels.min() < 0 or pixels.max() > full:
        raise ImageError(
            f"{path}: pixels from {pixels.min()} to {pixels.max()} do not fit the range 0 to {full}; rescale the image"
        )
    return Image.fromarray(np.rint(pixels.astype(np.float64) * (255 / full)).astype(np.uint8))


def _check_size(path: Path, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise ImageError(_too_large(path, pixels))


def _too_large(path: Path, pixels: int | None) -> str:
    size = "too many" if pixels is None else f"{pixels:,}"
    return f"{path}: {size} pixels, more than the limit of {MAX_PIXELS:,}; make a smaller copy"
