"""Weights laid out once for the CPU's kernels, instead of at every call.

PyTorch's eager mode hands oneDNN a weight in its ordinary layout, to be reordered each time it is used, and runs the
activation behind it as a pass of its own. A prepacked layer keeps the reordered weight and lets the kernel apply the
activation as it writes. It is the last step before running on a CPU; saving and exporting start from the fused model.
"""

from copy import deepcopy
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from convattn.ops.linear import Linear2d

__all__ = ["prepack"]

_ACTIVATIONS = {nn.ReLU: ("relu", None), nn.GELU: ("gelu", "none")}  # oneDNN's names: operation, algorithm


def prepack(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `model` for running on this CPU: every linear layer and convolution holds its weight reordered.

    Same values but for rounding. Where a ReLU or GELU follows directly in an `nn.Sequential`, it becomes part of the
    kernel. The copy runs only: it has no state dict of the packed weights, is not trained and not exported.

    Args:
        model: usually `fuse(model)`; evaluated, on the CPU, float32 or bfloat16. It is left as it is.
        images: an input like those to come (B, C, H, W): oneDNN chooses the layout by the shapes it sees. Other shapes
            work too, at the price of a reordering.

    Raises:
        RuntimeError: if this build of PyTorch has no oneDNN.
        ValueError: if a weight is not on the CPU, or neither float32 nor bfloat16, or the model is prepacked already.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("this build of PyTorch has no oneDNN, so there is nothing to pack for; use the fused model")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(
                f"{name} is {parameter.dtype} on {parameter.device}; prepack takes float32 or bfloat16 on the CPU"
            )
    packed = nn.Sequential(deepcopy(model).eval().requires_grad_(False))
    _pack_children(packed, _input_shapes(packed, images))
    return packed[0]


def _input_shapes(model: nn.Module, images: Tensor) -> dict[nn.Module, torch.Size]:
    """The shape that each packable layer sees when `model` runs on `images`; layers that do not run are left out."""
    shapes: dict[nn.Module, torch.Size] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = inputs[0].shape

    hooks = [module.register_forward_pre_hook(record) for module in model.modules() if _is_packable(module)]
    with torch.inference_mode():
        model(images)
    for hook in hooks:
        hook.remove()
    return shapes


def _pack_children(parent: nn.Module, shapes: dict[nn.Module, torch.Size]) -> None:
    children = list(parent.named_children())
    for index, (name, child) in enumerate(children):
        follower = children[index + 1] if isinstance(parent, nn.Sequential) and index + 1 < len(children) else None
        if child in shapes:
            activation = _activation(follower[1]) if follower else None
            setattr(parent, name, _pack(child, shapes[child], activation or ("none", None)))
            if follower and activation:
                setattr(parent, follower[0], nn.Identity())
        else:
            _pack_children(child, shapes)


def _is_packable(module: nn.Module) -> bool:
    if module._forward_hooks:  # what hangs on a layer is part of what it computes
        return False
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in (nn.Linear, Linear2d)


def _activation(module: nn.Module) -> tuple[str, str | None] | None:
    exact = type(module) is not nn.GELU or module.approximate == "none"
    return _ACTIVATIONS.get(type(module)) if exact and not module._forward_hooks else None


def _pack(module: nn.Module, shape: torch.Size, activation: tuple[str, str | None]) -> nn.Module:
    if isinstance(module, nn.Conv2d):
        return PackedConv2d(module, shape, *activation)
    assert isinstance(module, nn.Linear)
    if isinstance(module, Linear2d):
        return PackedLinear2d(module, shape, *activation)
    return PackedLinear(module, shape[:-1].numel(), *activation)


class _Packed(nn.Module):
    """What holds a weight that only oneDNN can read."""

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise ValueError(
            "a prepacked model runs only; to copy, fuse, prepack or export, take the model that it was made from"
        )


class PackedLinear(_Packed):
    """activation(x Wᵀ + b) over the last dimension, by oneDNN with the weight reordered once for this many rows."""

    def __init__(self, linear: nn.Linear, rows: int, activation: str = "none", algorithm: str | None = None):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.activation, self.algorithm = activation, algorithm

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # what lies in front may have computed in another type, under autocast
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], self.algorithm)


class PackedLinear2d(PackedLinear):
    """The same over the channels of a map (B, C, H, W)."""

    def __init__(self, linear: Linear2d, shape: torch.Size, activation: str = "none", algorithm: str | None = None):
        batch, _, height, width = shape
        positions = batch * -(-height // linear.stride) * -(-width // linear.stride)
        super().__init__(linear, positions, activation, algorithm)
        self.rows = linear.rows

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rows(x)).permute(0, 3, 1, 2)


class PackedConv2d(_Packed):
    """activation(convolution), by oneDNN with the weight reordered once."""

    def __init__(self, conv: nn.Conv2d, shape: torch.Size, activation: str = "none", algorithm: str | None = None):
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            conv.weight.detach().to_mkldnn(), *self.geometry, list(shape)
        )
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.activation, self.algorithm = activation, algorithm

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.geometry, self.activation, [], self.algorithm
        )
