"""A linear layer over the channels of a map, without moving memory when the map is channels-last."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear2d"]

_VECTOR = 16  # float32 values in the widest register; oneDNN computes an incomplete last block of outputs whole
_WORTH_IT = 10_000_000  # multiply-adds from which oneDNN's faster kernel pays for its slower start


class Linear2d(nn.Linear):
    """`nn.Linear` over the channels of a map: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

    The value of a 1×1 convolution, as one matrix product. A channels-last map is read as it lies, and the result is
    channels-last whatever came in, so a network built from these settles in that layout by itself. Without gradients,
    in float32 on a CPU, larger products go to oneDNN, which is faster at the shapes of these networks.

    Args:
        in_features, out_features: channels C and C'.
        bias: as in `nn.Linear`.
        stride: distance between the positions that are read.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, stride: int = 1):
        super().__init__(in_features, out_features, bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        if self._goes_to_onednn(rows):
            product = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], None)
        else:
            product = F.linear(rows, self.weight, self.bias)
        return product.permute(0, 3, 1, 2)

    def _goes_to_onednn(self, rows: Tensor) -> bool:
        """Whether oneDNN, whose kernel has no gradient and is not exported, may do it and is faster than BLAS."""
        return bool(
            not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and type(rows) is Tensor
            and type(self.weight) is nn.Parameter  # not a class of somebody's that looks like one
            and rows.dtype is self.weight.dtype is torch.float32
            and rows.device.type == self.weight.device.type == "cpu"
            and self.out_features % _VECTOR == 0
            and rows.numel() * self.out_features >= _WORTH_IT
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
        )

    def rows(self, x: Tensor) -> Tensor:
        """What the product reads, channels last: (B, C, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        x = x.permute(0, 2, 3, 1)
        if self.stride == 1:
            return x
        return x[:, :: self.stride, :: self.stride].contiguous()  # otherwise torch takes a product for every row

    @torch.no_grad()
    def graph_form(self) -> nn.Conv2d:
        """For graph runtimes: the 1×1 convolution it is, which leaves the map in the layout of those around it."""
        conv = nn.Conv2d(self.in_features, self.out_features, 1, self.stride, bias=self.bias is not None)
        conv = conv.to(self.weight)
        conv.weight.copy_(self.weight[:, :, None, None])
        if conv.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.requires_grad_(False).eval()

    @classmethod
    @torch.no_grad()
    def from_conv1x1(cls, conv: nn.Conv2d) -> Self:
        """The linear layer equal to a 1×1 convolution (no padding, ungrouped, one stride); its weights are copied."""
        assert conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding == (0, 0), conv
        stride, across = conv.stride
        assert stride == across, conv
        linear = cls(conv.in_channels, conv.out_channels, conv.bias is not None, stride=stride).to(conv.weight)
        linear.weight.copy_(conv.weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
        return linear
