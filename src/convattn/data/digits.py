"""The 1,797 handwritten digits that come with scikit-learn: real data without a download.

Images are 8×8, 17 levels of grey. Alpaydin and Kaynak, UCI machine learning repository, 1998.
"""

import numpy as np
from PIL import Image

from convattn.data.dataset import DataError
from convattn.data.labelled import Labelled
from convattn.extras import require
from convattn.sizes import Size, image_shape

__all__ = ["DIGIT_SPLITS", "DigitsDataset", "open_digits"]

DIGIT_SPLITS = {"train": 0.70, "val": 0.10, "test": 0.20}  # shares, each stratified by class
_SEED = 0


class DigitsDataset(Labelled):
    """Digits held in memory, as RGB images.

    Args:
        pixels: (N, 8, 8) uint8, ink bright on black.
        labels: (N,), the digit.
        indices: (N,), position in scikit-learn's data set, for names.
        image_size: of the images, in pixels; enlarged once, bicubic.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray, image_size: Size):
        self.classes = [str(digit) for digit in range(10)]
        self.labels = [int(label) for label in labels]
        self.paths = [f"digits/{label}/{index:04d}" for label, index in zip(labels, indices, strict=True)]
        _, height, width = image_shape(image_size, called="image_size")
        self._images = [
            Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for image in pixels
        ]

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB."""
        return self._images[index].copy()


def open_digits(split: str, image_size: Size = 32) -> DigitsDataset:
    """One split of the digits; the splits are the same in every run and do not overlap.

    Args:
        split: "train" (1,257 images), "val" (180) or "test" (360).
        image_size: of the images, in pixels.

    Raises:
        DataError: for another split. MissingExtra: if scikit-learn is not installed.
    """
    if split not in DIGIT_SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(DIGIT_SPLITS)}")
    digits = require("sklearn.datasets", "demo").load_digits()
    divide = require("sklearn.model_selection", "demo").train_test_split
    everything = np.arange(len(digits.target))
    rest, test = divide(everything, test_size=DIGIT_SPLITS["test"], stratify=digits.target, random_state=_SEED)
    share = DIGIT_SPLITS["val"] / (1 - DIGIT_SPLITS["test"])
    train, val = divide(rest, test_size=share, stratify=digits.target[rest], random_state=_SEED)
    chosen = np.sort({"train": train, "val": val, "test": test}[split])
    pixels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return DigitsDataset(pixels, digits.target[chosen], chosen, image_size)
