"""What lies in a box, read from the level of a neck that suits its size.

Source: "Feature Pyramid Networks", Lin et al., CVPR 2017, arXiv 1612.03144, equation 1; "Mask R-CNN", He et al.,
ICCV 2017, arXiv 1703.06870, section 3 (RoIAlign).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["STRIDES", "levels_of", "region_features", "with_images"]

STRIDES = (4, 8, 16, 32)  # of the levels that regions are read from

_SMALLEST = 56  # pixels: the side from which boxes belong to the second level


def region_features(
    levels: Sequence[Tensor], rois: Tensor, side: int, *, samples: int = 0, eps: float = 1e-6
) -> Tensor:
    """Regions (n, C, side, side), in the order of the boxes.

    Args:
        levels: of a neck, of strides `STRIDES`; further ones are not read.
        rois: (n, 5): number of an image, then a box xyxy in pixels.
        side: pixels of a region at each side.
        samples: of each of these pixels at each side; as many as the box has pixels of the level by default.
        eps: added to the size of a box, over `_SMALLEST`.
    """
    exact = torch.promote_types(levels[0].dtype, torch.float32)  # in half precision pixels have no numbers of their own
    rois = rois.to(exact).nan_to_num(0.0)  # of a network that has overflowed; nobody knows where roi_align would read
    own, order = levels_of(rois[:, 1:], eps).sort(stable=True)
    counts = torch.bincount(own, minlength=len(STRIDES)).tolist()
    parts = [
        roi_align(level.to(exact), part, side, 1 / stride, samples, aligned=True)
        for level, stride, part in zip(levels, STRIDES, rois[order].split(counts), strict=False)
    ]
    return torch.cat(parts)[order.argsort()].to(levels[0].dtype)


def levels_of(boxes_xyxy: Tensor, eps: float = 1e-6) -> Tensor:
    """The number of the level that each box (n, 4) is read from, (n,)."""
    sides = ((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])).sqrt()
    return (sides / _SMALLEST + eps).log2().floor().clamp(0, len(STRIDES) - 1).long()


def with_images(boxes_xyxy: Sequence[Tensor]) -> Tensor:
    """Boxes of several images (n, 4) each as one table (Σ n, 5), the number of the image in front."""
    numbers = [torch.full_like(boxes[:, :1], at) for at, boxes in enumerate(boxes_xyxy)]
    return torch.cat([torch.cat(pair, 1) for pair in zip(numbers, boxes_xyxy, strict=True)])
