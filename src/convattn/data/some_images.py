"""A look at some images of a data set, where a look at all would take too long."""

from contextlib import suppress

from convattn.data.images import ImageError
from convattn.task import Dataset

__all__ = ["sizes_of_some", "usual_size"]

_LOOKED_AT = 9


def sizes_of_some(data: Dataset) -> list[tuple[int, int]]:
    """Width and height of some images, evenly chosen; those that cannot be read are passed over."""
    sizes = []
    for at in range(0, len(data), max(1, len(data) // _LOOKED_AT)):
        with suppress(ImageError):  # told where it matters
            sizes.append(data.read(at).size)
    return sizes


def usual_size(data: Dataset) -> tuple[int, int] | None:
    """Width and height of the middle one of them by the short side; None if none can be read."""
    sizes = sorted(sizes_of_some(data), key=min)
    return sizes[len(sizes) // 2] if sizes else None
