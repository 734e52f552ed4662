"""Exact folding at inference: batch norms into the layers beside them, grouped convolutions into fewer."""

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.ops.linear import Linear2d

__all__ = [
    "TrunkBatchNorm2d",
    "add_identity_tap",
    "as_linear",
    "batch_norm_to_depthwise",
    "fold_chain",
    "fold_norms_linear",
    "merge_depthwise",
    "rows_of_conv",
    "widen_groups",
]


# Grouped convolutions


@torch.no_grad()
def add_identity_tap(conv: nn.Conv2d) -> nn.Conv2d:
    """A new convolution equal to `x + conv(x)`, for a depthwise `conv` that keeps the size."""
    _check_depthwise(conv)
    conv = deepcopy(conv)
    conv.weight[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] += 1
    return conv


@torch.no_grad()
def merge_depthwise(convs: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """Several depthwise convolutions of different channels as the weights of one, kernels zero-padded to the largest.

    Args:
        convs: depthwise convolutions that keep the size, with square kernels; the channels of each follow the last's.

    Returns:
        weight (C, 1, K, K) and bias (C,), C the sum of the channels and K the largest kernel.
    """
    depthwise = [_check_depthwise(conv) for conv in convs]
    largest = max(conv.kernel_size[0] for conv in depthwise)
    weights, biases = [], []
    for conv in depthwise:
        weights.append(F.pad(conv.weight, ((largest - conv.kernel_size[0]) // 2,) * 4))
        biases.append(conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias)
    return torch.cat(weights), torch.cat(biases)


@torch.no_grad()
def rows_of_conv(conv: nn.Conv2d, rows: slice) -> nn.Conv2d:
    """The convolution that gives these channels of those that `conv` gives; `conv` is dense, or depthwise."""
    part = deepcopy(conv)
    part.weight = nn.Parameter(conv.weight[rows].clone())
    part.bias = None if conv.bias is None else nn.Parameter(conv.bias[rows].clone())
    part.out_channels = len(part.weight)
    if conv.groups > 1:
        part.in_channels = part.groups = part.out_channels
    return part


@torch.no_grad()
def widen_groups(conv: nn.Conv2d, multiple: int) -> nn.Conv2d:
    """The same convolution with neighbouring groups joined, zeros between what they were.

    Args:
        conv: a grouped convolution.
        multiple: a group of the result has a multiple of so many channels at either end.

    Returns:
        The convolution with as many groups as that allows; `conv` itself if the channels do not divide so.
    """
    groups, inputs, outputs = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    joined = math.lcm(math.lcm(inputs, multiple) // inputs, math.lcm(outputs, multiple) // outputs)
    if joined == 1 or groups % joined:
        return conv
    blocks = conv.weight.new_zeros(groups // joined, joined, outputs, joined, inputs, *conv.kernel_size)
    for index in range(joined):
        blocks[:, index, :, index] = conv.weight.view(-1, joined, outputs, inputs, *conv.kernel_size)[:, index]
    wide = deepcopy(conv)
    wide.groups = groups // joined
    wide.weight = nn.Parameter(blocks.reshape(conv.out_channels, joined * inputs, *conv.kernel_size))
    return wide


def _check_depthwise(conv: nn.Module) -> nn.Conv2d:
    assert isinstance(conv, nn.Conv2d)
    kernel = conv.kernel_size
    assert conv.groups == conv.in_channels == conv.out_channels, f"not depthwise: {conv}"
    assert kernel[0] % 2 == kernel[1] % 2 == 1 and conv.padding == (kernel[0] // 2, kernel[1] // 2), f"size: {conv}"
    assert conv.stride == conv.dilation == (1, 1), f"stride or dilation: {conv}"
    return conv


# Batch norms


@torch.no_grad()
def batch_norm_to_depthwise(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """An evaluating batch norm that has no layer to fold into, as a depthwise 1×1 convolution."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features).to(scale)
    conv.weight.copy_(scale.view(-1, 1, 1, 1))
    assert conv.bias is not None
    conv.bias.copy_(shift)
    return conv


@register_notrace_module
class TrunkBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with no layer beside it that could take it in: its output is a level, or what the head pools."""

    def fused(self) -> nn.Module:
        """The inference form: one multiplication and addition a channel."""
        return batch_norm_to_depthwise(self)


@torch.no_grad()
def fold_norms_linear(norms: Sequence[nn.Module], layers: Sequence[nn.Linear | nn.Conv2d]) -> Linear2d:
    """One layer equal to `layers` side by side, each behind all of `norms` in their order.

    Exact at every position: a layer of one position sees no padding.

    Args:
        norms: evaluating batch norms over the same channels; none is allowed.
        layers: linear layers or 1×1 convolutions that read those channels; their outputs are concatenated.
    """
    weight = torch.cat([layer.weight.flatten(1) for layer in layers])
    bias = torch.cat([_bias(layer) for layer in layers])
    for norm in reversed(norms):
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        bias = bias + weight @ shift
        weight = weight * scale
    linear = Linear2d(weight.shape[1], weight.shape[0]).to(weight)
    linear.weight.copy_(weight[:, :, None, None])
    linear.bias.copy_(bias)
    return linear


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias


# Chains


def fold_chain(chain: nn.Sequential) -> nn.Sequential:
    """A copy of an evaluating chain with the same values and fewer layers.

    A batch norm behind a convolution is folded into it, exactly. A dense 1×1 convolution then becomes a linear layer
    over the channels, which reads a channels-last map as it lies. Other layers are copied.
    """
    layers: list[nn.Module] = []
    for layer in chain:
        if isinstance(layer, nn.BatchNorm2d) and layers and type(layers[-1]) is nn.Conv2d:
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(deepcopy(layer))
    return nn.Sequential(*map(as_linear, layers))


def as_linear(layer: nn.Module) -> nn.Module:
    """A dense 1×1 convolution as a `Linear2d`; any other layer itself."""
    if type(layer) is not nn.Conv2d or layer.groups > 1 or layer.padding != (0, 0):
        return layer
    return Linear2d.from_conv1x1(layer) if layer.kernel_size == (1, 1) else layer
