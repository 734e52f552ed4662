"""A data set by its name on the command line: `digits`, or a folder."""

from pathlib import Path

from convattn.data.dataset import ImageDataset
from convattn.data.digits import open_digits
from convattn.data.folder import open_folder

__all__ = ["open_data"]


def open_data(source: str | Path, split: str, image_size: int = 32) -> ImageDataset:
    """One split of a data set.

    Args:
        source: "digits" for scikit-learn's handwritten digits, anything else is a folder (`open_folder`).
        split: "train", "val" or "test".
        image_size: side of the digits in pixels; images of a folder keep their size until they are transformed.

    Raises:
        DataError: if it is missing, empty or laid out in another way.
    """
    return open_digits(split, image_size) if str(source) == "digits" else open_folder(source, split)
