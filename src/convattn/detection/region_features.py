"""What lies in a box, read from the level of a neck that suits its size.

Source: "Feature Pyramid Networks", Lin et al., CVPR 2017, arXiv 1612.03144, equation 1; "Mask R-CNN", He et al.,
ICCV 2017, arXiv 1703.06870, section 3 (RoIAlign).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["STRIDES", "levels_of", "region_features", "regions_of_all_levels", "with_images"]

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


def regions_of_all_levels(
    levels: Sequence[Tensor],
    boxes_xyxy: Tensor,
    side: int,
    *,
    samples: int = 0,
    eps: float = 1e-6,
    there: Tensor | None = None,
) -> Tensor:
    """What `region_features` gives, in steps that do not depend on the numbers: for exported files.

    Every level is asked for all regions, since how many are a level's is not known; of those that are another's it
    reads one pixel.

    Args:
        levels, side, samples, eps: as in `region_features`.
        boxes_xyxy: of each image as many, (B, n, 4), in pixels.
        there: which of these are regions, (B, n); of the others zeros are read. All by default.

    Returns:
        (B · n, C, side, side).
    """
    exact = torch.promote_types(levels[0].dtype, torch.float32)
    table = boxes_xyxy.flatten(0, 1).to(exact)
    images = torch.arange(boxes_xyxy.shape[0], device=table.device)[:, None].expand(-1, boxes_xyxy.shape[1]).flatten()
    level = levels_of(table, eps)
    level = level if there is None else level.where(there.flatten(), -1)
    small = table.new_tensor([0.0, 0.0, 1.0, 1.0])
    parts = []
    for number, (one, stride) in enumerate(zip(levels, STRIDES, strict=False)):
        own = level == number
        rois = torch.cat([images[:, None].to(table), table.where(own[:, None], small)], 1)
        part = roi_align(one.to(exact), rois, side, 1 / stride, samples, aligned=True)
        parts.append(part.where(own[:, None, None, None], 0.0))
    return sum(parts[1:], parts[0]).to(levels[0].dtype)


def levels_of(boxes_xyxy: Tensor, eps: float = 1e-6) -> Tensor:
    """The number of the level that each box (n, 4) is read from, (n,).

    Of a box without a size, such as a learnt one whose corners have crossed, that is the first.
    """
    sides = ((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])).sqrt()
    return (sides / _SMALLEST + eps).log2().floor().nan_to_num(0.0).clamp(0, len(STRIDES) - 1).long()


def with_images(boxes_xyxy: Sequence[Tensor]) -> Tensor:
    """Boxes of several images (n, 4) each as one table (Σ n, 5), the number of the image in front."""
    numbers = [torch.full_like(boxes[:, :1], at) for at, boxes in enumerate(boxes_xyxy)]
    return torch.cat([torch.cat(pair, 1) for pair in zip(numbers, boxes_xyxy, strict=True)])
