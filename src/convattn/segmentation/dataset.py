"""Images with masks, read one at a time."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from convattn.data.images import read_bytes, read_image, size_of
from convattn.segmentation.classes import Colour
from convattn.segmentation.masks import MaskCode, MissingMask, OtherSize, UnknownLabel
from convattn.segmentation.pairs import Pairs
from convattn.shown import shown

__all__ = ["MaskedImages"]


class MaskedImages:
    """Images of which every pixel has a class.

    Args:
        pairs: where they are.
        code: what their masks mean.
    """

    def __init__(self, pairs: Pairs, code: MaskCode):
        self.pairs, self.code = pairs, code
        self.paths, self.mask_paths = pairs.images, pairs.masks
        self._last: tuple[int, tuple[int, int]] = (-1, (0, 0))  # the image that was read, and its size

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the label maps' numbers."""
        return self.code.classes

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Red, green and blue of each, in which they are shown."""
        return self.code.colours

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        image = read_image(self.read_bytes(index), self.paths[index])
        self._last = index, image.size
        return image

    def read_bytes(self, index: int) -> bytes:
        """The content of the image's file; raises ImageError if it cannot be read."""
        return read_bytes(self.paths[index])

    def target(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of the image at `index`, 255 where pixels count for nothing.

        Raises:
            ImageError: if image or mask cannot be read. MaskError: if there is no mask, or it does not fit.
        """
        last, size = self._last
        labels, problem = self.known_labels(
            index, size if last == index else size_of(self.read_bytes(index), self.paths[index])
        )
        if problem:
            raise UnknownLabel(problem)
        return labels

    def known_labels(self, index: int, size: tuple[int, int]) -> tuple[np.ndarray, str]:
        """`target` of an image of this width and height; what is no class is ignored, and a line tells of it."""
        path, mask = self.paths[index], self.mask_paths[index]
        if not mask:
            raise MissingMask(f"{shown(path)}: no mask in {shown(self.pairs.masks_at)}")
        labels, problem = self.code.read_known(read_bytes(mask), mask)
        if labels.shape[::-1] != size:
            hint = "make them equal, without smoothing the mask"
            if labels.shape == size:
                hint = "is the photograph turned by its EXIF entry, and its mask is not?"
            raise OtherSize(
                f"{shown(mask)}: {labels.shape[1]} × {labels.shape[0]} pixels, and its image {shown(path)} has "
                f"{size[0]} × {size[1]}; {hint}"
            )
        return labels, problem

    def part(self, indices: Sequence[int]) -> "MaskedImages":
        """Some of the images."""
        return MaskedImages(self.pairs.part(indices), self.code)
