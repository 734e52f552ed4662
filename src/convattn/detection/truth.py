"""What is to be found in an image, in the words of the losses."""

from dataclasses import dataclass

from torch import Tensor
from torchvision.ops import box_convert

from convattn.detection.masks import Bitmaps, Polygons

__all__ = ["Truth"]


@dataclass(frozen=True)
class Truth:
    """The objects of an image."""

    boxes_xyxy: Tensor  # (n, 4) pixels
    labels: Tensor  # (n,) int64, from 0
    size: tuple[int, int]  # height and width of the image, without padding
    masks: Bitmaps | Polygons | None = None
    ignored_xyxy: Tensor | None = None  # (k, 4): areas of crowds
    padded: tuple[int, int] | None = None  # of the image with padding of its own, beyond which no anchor counts

    @property
    def scale(self) -> Tensor:
        """Width, height, width, height."""
        height, width = self.size
        return self.boxes_xyxy.new_tensor([width, height, width, height])

    @property
    def boxes_cxcywh(self) -> Tensor:
        """Centres and sizes from 0 to 1."""
        return box_convert(self.boxes_xyxy / self.scale, "xyxy", "cxcywh")

    def __len__(self) -> int:
        return len(self.labels)
