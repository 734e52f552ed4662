"""A 1×1 convolution as a linear layer over the channels of a map, without moving memory when it is channels-last."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Size, Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["Linear2d", "LinearConv2d", "is_of_linear"]

_VECTOR = 16  # float32 values in the widest register; oneDNN computes an incomplete last block of outputs whole
_WORTH_IT = 10_000_000  # multiply-adds from which oneDNN's faster kernel pays for its slower start


@register_notrace_module
class LinearConv2d(nn.Conv2d):  # some counters (torchinfo) take for a convolution what has "Conv" in its name
    """A 1×1 convolution as one matrix product: (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride)).

    A channels-last map is read as it lies, and the result is channels-last whatever came in, so a network built from
    these settles in that layout by itself. Without gradients, in float32 on a CPU, larger products go to oneDNN, which
    is faster at the shapes of these networks.

    To whoever looks it is a convolution, for it takes maps. The authors' code has an `nn.Linear` in its place: a state
    dict may hold the weight as (C', C) instead of (C', C, 1, 1).

    Args:
        in_channels, out_channels: channels C and C'.
        kernel_size, padding, groups: 1, 0 and 1.
        stride: distance between the positions that are read.
        dilation: of no effect.
        bias: as in `nn.Conv2d`.

    Raises:
        ValueError: for another `kernel_size`, `padding` or `groups`.
    """

    bias: Any  # a parameter, or None

    # The order of `nn.Conv2d`, by which others (adapters) make another layer of a layer's kind.
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 1,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        if kernel_size not in (1, (1, 1)) or padding not in (0, (0, 0)) or groups != 1:
            raise ValueError(f"kernel_size {kernel_size}, padding {padding} and groups {groups} must be 1, 0 and 1")
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, matrix = self.rows(x), self.weight.flatten(1)
        if self._goes_to_onednn(rows):
            product = torch.ops.mkldnn._linear_pointwise(rows, matrix, self.bias, "none", [], None)
        else:
            product = F.linear(rows, matrix, self.bias)
        return product.permute(0, 3, 1, 2)

    def _goes_to_onednn(self, rows: Tensor) -> bool:
        """Whether oneDNN may do it and is faster than BLAS.

        Its kernel has no gradient, is not exported, and no counter or tracer of operators knows it: where one listens,
        torch's own product is what it gets to see.
        """
        return bool(
            not torch.compiler.is_compiling()
            and not torch.is_grad_enabled()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]
            and type(rows) is Tensor
            and type(self.weight) is nn.Parameter  # not a class of somebody's that looks like one
            and rows.dtype is self.weight.dtype is torch.float32
            and rows.device.type == self.weight.device.type == "cpu"
            and self.out_channels % _VECTOR == 0
            and rows.numel() * self.out_channels >= _WORTH_IT
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and not torch.is_autocast_enabled("cpu")
            and not is_in_torch_dispatch_mode()
            and not torch._C._functorch.is_functorch_wrapped_tensor(rows)
        )

    def rows(self, x: Tensor) -> Tensor:
        """What the product reads, channels last: (B, C, H, W) -> (B, ceil(H / stride), ceil(W / stride), C)."""
        x = x.permute(0, 2, 3, 1)
        if self.stride == (1, 1):
            return x
        down, across = self.stride
        return x[:, ::down, ::across].contiguous()  # otherwise torch takes a product for every row

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.ndim == 2:
            state_dict[f"{prefix}weight"] = weight[:, :, None, None]
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def graph_form(self) -> nn.Conv2d:
        """For graph runtimes: an ordinary convolution, which leaves the map in the layout of those around it."""
        conv = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=self.bias is not None)
        return _filled(conv, self).requires_grad_(False).eval()

    @classmethod
    @torch.no_grad()
    def from_conv1x1(cls, conv: nn.Conv2d) -> Self:
        """The same of an ordinary 1×1 convolution (no padding, ungrouped); its weights are copied."""
        assert conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding == (0, 0), conv
        return _filled(cls(conv.in_channels, conv.out_channels, bias=conv.bias is not None), conv)


Linear2d = LinearConv2d


def is_of_linear(shape: Size, convolution: Size) -> bool:
    """Whether the weight of a linear layer has this shape where that of a 1×1 convolution has the other."""
    return len(shape) == 2 and convolution == (*shape, 1, 1)


def _filled(conv: Any, other: nn.Conv2d) -> Any:
    """`conv` with the stride, the weights and their type and device of another."""
    conv = conv.to(other.weight)
    conv.stride = other.stride
    conv.weight.copy_(other.weight)
    if conv.bias is not None:
        conv.bias.copy_(other.bias)
    return conv
