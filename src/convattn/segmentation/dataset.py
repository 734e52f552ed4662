"""Images with masks, read one at a time."""

from collections.abc import Sequence

import numpy as np

from convattn.data.colours import Colour
from convattn.data.images import read_bytes
from convattn.data.picture_files import PictureFiles
from convattn.segmentation.masks import MaskCode, MissingMask, OtherSize, UnknownLabel
from convattn.segmentation.pairs import Pairs
from convattn.shown import shown

__all__ = ["MaskedImages"]


class MaskedImages(PictureFiles):
    """Images of which every pixel has a class.

    Args:
        pairs: where they are.
        code: what their masks mean.
    """

    def __init__(self, pairs: Pairs, code: MaskCode):
        super().__init__(pairs.images)
        self.pairs, self.code, self.mask_paths = pairs, code, pairs.masks

    @property
    def where(self) -> str:
        """The folder of the images, or the list, for messages."""
        return self.pairs.where

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the label maps' numbers."""
        return self.code.classes

    @property
    def colours(self) -> tuple[Colour, ...]:
        """Red, green and blue of each, in which they are shown."""
        return self.code.colours

    def target(self, index: int) -> np.ndarray:
        """The label map (H, W) uint8 of the image at `index`, 255 where pixels count for nothing.

        Raises:
            ImageError: if image or mask cannot be read. MaskError: if there is no mask, or it does not fit.
        """
        labels, problem = self.known_labels(index, self.size(index))
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
