"""Masks of objects: what a head is to learn of them within a box, and how its answer is put back into an image.

Source: "Mask R-CNN", He et al., ICCV 2017, arXiv 1703.06870, as mmdetection (bitmaps) and detectron2 (polygons) do it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from convattn.extras import require

__all__ = ["Bitmaps", "Polygons", "pasted", "shares_of_pixels"]

_AT_ONCE = 2**24  # pixels that are pasted together


@dataclass(frozen=True)
class Bitmaps:
    """A mask an object, (n, H, W), 0 or 1, as large as its image or its padded batch."""

    pixels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def within(self, index: Tensor, boxes_xyxy: Tensor, side: int) -> Tensor:
        """The masks of objects `index` (n,) within boxes (n, 4): (n, side, side) of 0 and 1, of the boxes' type."""
        height, width = self.pixels.shape[1:]
        most = boxes_xyxy.new_tensor([width, height, width, height])
        boxes = torch.minimum(boxes_xyxy.clamp(min=0), most)
        rois = torch.cat([index[:, None].to(boxes), boxes], 1)
        seen = roi_align(self.pixels[:, None].to(boxes), rois, side, 1.0, 0, aligned=True)[:, 0]
        return (seen >= 0.5).to(boxes)


@dataclass(frozen=True)
class Polygons:
    """The outlines of each object: flat lists of x, y in pixels, that together cover it."""

    outlines: Sequence[Sequence[np.ndarray]]

    def __len__(self) -> int:
        return len(self.outlines)

    def within(self, index: Tensor, boxes_xyxy: Tensor, side: int) -> Tensor:
        """The masks of objects `index` (n,) within boxes (n, 4): (n, side, side) of 0 and 1, of the boxes' type."""
        found = np.zeros((len(index), side, side))
        for row, (number, box) in enumerate(zip(index.tolist(), boxes_xyxy.tolist(), strict=True)):
            corner = np.array(box[:2])
            scale = side / np.maximum(np.array(box[2:]) - corner, 0.1)
            moved = [((part.reshape(-1, 2) - corner) * scale).reshape(-1) for part in self.outlines[number]]
            found[row] = _filled(moved, side, side)
        return torch.from_numpy(found).to(boxes_xyxy)

    def drawn(self, size: tuple[int, int]) -> Tensor:
        """As bitmaps of an image of that height and width, (n, H, W) uint8."""
        found = np.zeros((len(self), *size), dtype=np.uint8)
        for row, parts in enumerate(self.outlines):
            found[row] = _filled(parts, *size)
        return torch.from_numpy(found)


def _filled(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """All that any of the outlines encloses, as COCO's own tool fills them, (H, W) of 0 and 1."""
    if not outlines:  # of a crowd, which nobody looks at
        return np.zeros((height, width), dtype=np.uint8)
    coco = require("pycocotools.mask", "detection")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of pycocotools 2.0.11 about numpy 2
        merged = coco.merge(coco.frPyObjects([outline.tolist() for outline in outlines], height, width))
        return coco.decode(merged)


def pasted(shares: Tensor, boxes_xyxy: Tensor, size: tuple[int, int], least: float = 0.5) -> Tensor:
    """Masks within boxes put into an image, (n, H, W) bool.

    Args:
        shares: how sure a pixel of a box is of its object, (n, h, w) 0 to 1.
        boxes_xyxy: (n, 4) pixels of the image.
        size: its height and width.
        least: from which on a pixel is of the object.
    """
    height, width = size
    found = torch.zeros(len(shares), height, width, dtype=torch.bool, device=shares.device)
    step = max(1, _AT_ONCE // max(1, height * width))
    for start in range(0, len(shares), step):
        part = slice(start, start + step)
        found[part] = shares_of_pixels(shares[part], boxes_xyxy[part].to(shares), height, width) >= least
    return found


def shares_of_pixels(shares: Tensor, boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
    """As `pasted`, but as sure as their boxes are of the pixels, (n, H, W) 0 to 1; of no box 0."""
    rows = torch.arange(height, device=shares.device).to(shares.dtype) + 0.5
    columns = torch.arange(width, device=shares.device).to(shares.dtype) + 0.5
    x0, y0, x1, y1 = boxes_xyxy[:, :, None].unbind(1)
    down, right = (rows - y0) / (y1 - y0) * 2 - 1, (columns - x0) / (x1 - x0) * 2 - 1
    down, right = (torch.where(part.isinf(), 0.0, part) for part in (down, right))
    grid = torch.stack([right[:, None].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], -1)
    return F.grid_sample(shares[:, None], grid, align_corners=False)[:, 0]
