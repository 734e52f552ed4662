"""Maps brought to another size, the one way that segmentation does it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resized"]


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, H, W) bilinearly at `size` (height, width), by the centres of pixels, without antialiasing."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
