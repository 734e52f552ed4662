"""What heads are made of: a unit of convolution, norm and ReLU, and the layer that tells the classes."""

import torch
from torch import Tensor, nn

from convattn.ops.fold import fold_chain

__all__ = ["Head", "Unit"]


class Unit(nn.Module):
    """ReLU(norm(convolution(x))): (B, C, H, W) -> (B, C', H, W).

    Args:
        in_channels, out_channels: C and C'.
        kernel_size: odd.

    Raises:
        ValueError: in training on one position of one image, of which a norm measures nothing.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.bn.training and x.numel() == x.shape[1] and not _measures_elsewhere(self.bn):
            raise ValueError(
                "a head cannot learn from one image at a time where its map is a single position, as that of UperNet's "
                "mean is and the coarsest level of a small image: its batch norm would measure one number a channel; "
                "give 2 images or more a process, or synchronise the norms of several processes (sync_batch_norm), or "
                "take the head semantic_fpn and larger crops"
            )
        return self.act(self.bn(x))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the convolution."""
        return fold_chain(nn.Sequential(self.conv, self.bn, self.act))


class Head(nn.Module):
    """What every head ends with: whole channels dropped at random, then a 1×1 convolution to the classes.

    Args:
        channels: of the map that a head has made of its levels.
        num_classes: n.
        dropout: share of the channels that are dropped in training.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(dropout)
        _start(self.conv_seg)

    def classify(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> logits (B, n, H, W)."""
        return self.conv_seg(self.dropout(x))

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a fresh one."""
        old = self.conv_seg
        with old.weight.device:
            self.conv_seg = nn.Conv2d(old.in_channels, num_classes, 1, dtype=old.weight.dtype)
        _start(self.conv_seg)


def _measures_elsewhere(norm: nn.Module) -> bool:
    """Whether a norm measures the images of other processes, too."""
    is_shared = isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized()
    return is_shared and torch.distributed.get_world_size() > 1


def _start(classifier: nn.Conv2d) -> None:
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
