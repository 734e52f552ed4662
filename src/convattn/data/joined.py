"""Two data sets as one: labelled images, and others that come without labels."""

from PIL import Image

from convattn.data.dataset import ImageDataset

__all__ = ["JoinedDataset"]


class JoinedDataset:
    """The images of `first`, then those of `second`, under the classes of `first`.

    Args:
        first: with classes.
        second: its labels are of the same classes, or -1.
    """

    def __init__(self, first: ImageDataset, second: ImageDataset):
        self._parts = first, second
        self.classes = first.classes
        self.paths = [*first.paths, *second.paths]
        self.labels = [*first.labels, *second.labels]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        first, second = self._parts
        return first.read(index) if index < len(first) else second.read(index - len(first))
