"""A segmenter that gives classes instead of logits."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ArgMax"]


class ArgMax(nn.Module):
    """The most probable class of each pixel: what is exported where nobody needs the logits.

    Args:
        segmenter: images (B, 3, H, W) -> logits (B, classes, H, W), of 255 classes at most.
    """

    task_kind = "segmentation"

    def __init__(self, segmenter: nn.Module):
        super().__init__()
        found: Any = segmenter
        self.segmenter = segmenter
        self.num_classes: int = found.num_classes
        self.fixed_size: tuple[int, int] | None = found.fixed_size
        self.pretrained_cfg: dict[str, Any] = found.pretrained_cfg
        self.train(segmenter.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> classes (B, H, W) uint8."""
        return self.segmenter(images).argmax(1).to(torch.uint8)
