"""Where the objects of pictures are: masks of any folder, or COCO's annotations."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convattn.data.dataset import DataError
from convattn.data.images import decode_as_stored, read_image
from convattn.detection.rasterise import InvalidAnnotation, as_polygons, as_runs, bitmap
from convattn.nearest import nearest

__all__ = ["open_regions"]

_MASKS = (".png", ".bmp", ".tif", ".tiff", ".gif")  # formats that keep numbers as they are


def open_regions(source: Path, classes: Sequence[str] = ()) -> Callable[[str], Image.Image]:
    """A function from a picture's file to its mask, mode L of 0 and 255, at the picture's own size.

    Args:
        source: a folder with a mask of the picture's name for each (its pixels numbers of classes, or colours; all
            but 0 is object), or a file of COCO's annotations.
        classes: these alone: numbers in a mask; names or ids of COCO's categories.

    Raises:
        DataError: when called, for a picture without a mask, or a mask of another size.
    """
    if source.is_dir():
        numbers = [_number(word) for word in classes]
        return lambda picture: _sized(picture, _from_folder(source, picture, numbers), source)
    if source.suffix != ".json":
        raise DataError(f"{source}: neither a folder of masks nor COCO's annotations (.json)")
    find = _coco(source, classes)
    return lambda picture: _sized(picture, find(picture), source)


def _sized(picture: str, mask: np.ndarray, source: Path) -> Image.Image:
    size = read_image(picture).size
    if mask.shape[::-1] != size:
        raise DataError(
            f"{picture}: {size[0]} x {size[1]} pixels, and its mask in {source} has {mask.shape[1]} x {mask.shape[0]}; "
            "give masks of the pictures' own size"
        )
    return Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))


def _from_folder(folder: Path, picture: str, numbers: Sequence[int]) -> np.ndarray:
    stem = Path(picture).stem
    found = [path for path in sorted(folder.glob("*")) if path.stem == stem and path.suffix.lower() in _MASKS]
    if len(found) != 1:
        many = f"{len(found)} files" if found else "no file"
        raise DataError(f"{picture}: {many} {stem}{{{','.join(_MASKS)}}} in {folder}; one mask a picture is needed")
    image = decode_as_stored(found[0].read_bytes(), str(found[0]))
    pixels = np.asarray(image if image.mode in ("L", "P", "1") else image.convert("RGB"))
    if numbers:
        if pixels.ndim != 2:
            raise DataError(f"{found[0]}: a mask of colours has no numbers of classes; leave out the classes")
        return np.isin(pixels, numbers)
    return np.any(pixels, 2) if pixels.ndim == 3 else np.not_equal(pixels, 0)


def _number(word: str) -> int:
    if not word.isdecimal():
        raise DataError(f"mask class {word!r} must be a number, as it stands in the masks")
    return int(word)


def _coco(source: Path, classes: Sequence[str]) -> Callable[[str], np.ndarray]:
    try:
        content: Any = json.loads(source.read_bytes())
        images = {Path(str(row["file_name"])).name: row for row in content["images"]}
        categories = {str(row["id"]): str(row["name"]) for row in content["categories"]}
        annotations = content["annotations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: no annotations of COCO ({type(error).__name__}: {error})") from None
    chosen = {number for number, name in categories.items() if not classes or number in classes or name in classes}
    for word in classes:
        if word not in categories and word not in categories.values():
            raise DataError(f"{source}: no category {word!r}; {nearest(word, categories.values())}")

    def find(picture: str) -> np.ndarray:
        row = images.get(Path(picture).name)
        if row is None:
            raise DataError(f"{picture}: no image of that name in {source}")
        size = (int(row["height"]), int(row["width"]))
        mask = np.zeros(size, dtype=bool)
        for annotation in annotations:
            if annotation.get("image_id") == row["id"] and str(annotation.get("category_id")) in chosen:
                outline = annotation.get("segmentation")
                try:
                    shape = as_runs(outline, size) if isinstance(outline, dict) else as_polygons(outline, size)
                except InvalidAnnotation as error:
                    raise DataError(f"{source}: annotation {annotation.get('id')}: {error}") from None
                mask |= bitmap(shape, size).astype(bool)
        return mask

    return find
