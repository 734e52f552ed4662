"""Pictures in the file system, read one at a time, each with something that is to be said of it."""

from collections.abc import Sequence

from PIL import Image

from convattn.data.images import read_bytes, read_image, size_of

__all__ = ["PictureFiles"]


class PictureFiles:
    """What data sets of pictures have in common whose targets have a place in the picture."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths
        self._last: tuple[int, tuple[int, int]] = (-1, (0, 0))  # the picture that was read, its width and height

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The picture at `index`, RGB; raises ImageError if it cannot be read."""
        image = read_image(self.read_bytes(index), self.paths[index])
        self._last = index, image.size
        return image

    def read_bytes(self, index: int) -> bytes:
        """The content of the picture's file; raises ImageError if it cannot be read."""
        return read_bytes(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the picture at `index`; of the one that was read last without reading it again."""
        last, size = self._last
        return size if last == index else size_of(self.read_bytes(index), self.paths[index])
