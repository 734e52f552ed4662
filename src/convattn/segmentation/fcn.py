"""The head of fully convolutional networks: a few units on one level. It helps UperNet to learn.

Paper: "Fully Convolutional Networks for Semantic Segmentation", Long, Shelhamer, Darrell, CVPR 2015, arXiv 1411.4038.
Reference code: github.com/open-mmlab/mmsegmentation (Apache-2.0), `FCNHead`; written from a description.
"""

import torch
from torch import Tensor, nn

from convattn.segmentation.head import Head, Unit

__all__ = ["AuxiliaryHead", "FCNHead"]


class FCNHead(Head):
    """Logits from one level: [ 3×3 ] x num_convs -> (with `concat_input` beside the input -> 3×3) -> classes.

    Args:
        in_channels: of the level.
        width: channels inside.
        num_classes, dropout: as in `Head`.
        num_convs: how many units, 1 or more.
        concat_input: one more unit reads the input beside their result.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        num_classes: int,
        dropout: float,
        *,
        num_convs: int = 1,
        concat_input: bool = False,
    ):
        super().__init__(width, num_classes, dropout)
        if num_convs < 1:
            raise ValueError(f"num_convs {num_convs} must be 1 or more")
        widths = [in_channels, *[width] * num_convs]
        self.convs = nn.Sequential(*(Unit(widths[at], width, 3) for at in range(num_convs)))
        self.conv_cat = Unit(in_channels + width, width, 3) if concat_input else None

    def forward(self, level: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, n, H, W)."""
        x = self.convs(level)
        if self.conv_cat is not None:
            x = self.conv_cat(torch.cat([level, x], 1))
        return self.classify(x)


class AuxiliaryHead(FCNHead):
    """An FCN head whose loss helps the backbone to learn; nothing of what a network says comes from it."""

    def fused(self) -> nn.Module:
        """The inference form: nothing, as it does not run there."""
        return nn.Identity()
