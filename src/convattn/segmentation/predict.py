"""What a segmenter says of a picture: the class of each pixel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convattn.nearest import nearest
from convattn.segmentation.looking import look_of
from convattn.segmentation.options import PredictionOptions
from convattn.segmentation.pictures import index_png, overlaid, with_legend
from convattn.task import Prediction

__all__ = ["MaskPrediction", "segment"]

_NAMED = 5  # classes in a line


@dataclass(frozen=True)
class MaskPrediction(Prediction):
    """The class of each pixel of a picture."""

    labels: np.ndarray  # (H, W) uint8: numbers of classes
    names: tuple[str, ...]  # of the classes
    colours: tuple[tuple[int, int, int], ...]  # red, green and blue, one a class

    @property
    def shares(self) -> np.ndarray:
        """The share of the pixels of each class, (classes,) 0 to 1."""
        return np.bincount(self.labels.ravel(), minlength=len(self.names)) / self.labels.size

    def mask(self, name: str) -> np.ndarray:
        """Where a class is, (H, W) bool; ValueError for a name that is none."""
        if name not in self.names:
            raise ValueError(f"class {name!r} is unknown; {nearest(name, self.names)}")
        return self.labels == self.names.index(name)

    def as_json(self) -> dict[str, Any]:
        """`{"size": [height, width], "classes": [{"class": …, "index": …, "share": …}, …]}`, the largest first."""
        return {"size": list(self.labels.shape), "classes": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """A class that was found each, the largest first."""
        shares = self.shares
        found = sorted(np.flatnonzero(shares).tolist(), key=lambda index: -shares[index])
        return [{"class": self.names[index], "index": index, "share": float(shares[index])} for index in found]

    def line(self) -> str:
        """The largest classes with their shares in percent."""
        rows = self.rows()
        more = f", and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        return ", ".join(f"{row['class']} {100 * row['share']:.1f} %" for row in rows[:_NAMED]) + more

    def draw(self, picture: Image.Image) -> Image.Image:
        """The picture with the classes' colours laid over it, and a legend below."""
        shown = overlaid(picture, self.labels, self.colours)
        return with_legend(shown, [*zip(self.names, self.colours, self.shares.tolist(), strict=True)])

    def files(self) -> dict[str, bytes]:
        """The mask as a PNG file: pixels are the classes' numbers, their colours stand beside."""
        return {"_mask.png": index_png(self.labels, self.colours)}


@torch.inference_mode()
def segment(
    model: nn.Module,
    pictures: Sequence[Image.Image],
    options: PredictionOptions,
    transform: Callable[[Image.Image], Tensor],
    names: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    on_part: Callable[[float], None] = lambda pictures: None,
) -> list[MaskPrediction]:
    """The classes of the pixels of RGB pictures of any sizes, one picture after the other.

    Args:
        model: a segmenter.
        pictures: of any sizes.
        options: how they are looked at.
        transform: from a picture to the model's input (3, H, W).
        names, colours: of the classes.
        on_part: called with how much of a picture is done.
    """
    look, device = look_of(model, options), next((p.device for p in model.parameters()), torch.device("cpu"))
    said = []
    for picture in pictures:
        image = transform(picture)[None].to(device)
        labels = np.empty((picture.height, picture.width), dtype=np.uint8)
        top = 0
        for band in look.labels(image, labels.shape):
            labels[top : top + band.shape[1]] = band[0].cpu().numpy()
            top += band.shape[1]
            on_part(band.shape[1] / picture.height)
        said.append(MaskPrediction(labels, tuple(names), tuple(colours)))
    return said
