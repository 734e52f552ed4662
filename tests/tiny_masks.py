"""The smallest data sets of images with masks."""

from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("sky", "tree", "road")
COLOURS = ((70, 130, 180), (0, 120, 0), (128, 64, 128))


def write_pair(
    image: Path, mask: Path, *, seed: int = 0, size: tuple[int, int] = (8, 6), classes: int = 3
) -> np.ndarray:
    """An image of noise and a mask of class numbers, in which each class has some pixels; returns the numbers."""
    rng = np.random.default_rng(seed)
    width, height = size
    numbers = rng.integers(0, classes, (height, width), dtype=np.uint8)
    numbers.flat[:classes] = range(classes)
    write_image(image, seed=seed, size=size)
    write_mask(mask, numbers)
    return numbers


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, pixels: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def write_masked(folder: Path, *, train: int = 4, val: int = 2, masks: str = "masks", classes: int = 3) -> Path:
    """`images/{train,val}` and masks beside, with a file that names the classes."""
    for split, count in (("train", train), ("val", val)):
        for at in range(count):
            image, mask = folder / "images" / split / f"{at}.png", folder / masks / split / f"{at}.png"
            write_pair(image, mask, seed=1000 * (split == "val") + at, classes=classes)
    (folder / "classes.txt").write_text("\n".join(NAMES[:classes]) + "\n")
    return folder
