"""Exact folding of an evaluating batch norm that stands in front of a linear layer, or alone."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.ops.fold import batch_norm_to_depthwise
from convattn.ops.linear import Linear2d

__all__ = ["TrunkBatchNorm2d", "fold_conv_norm", "fold_norms_linear"]


@register_notrace_module
class TrunkBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with no layer beside it that could take it in: its output is a level, or what the head pools."""

    def fused(self) -> nn.Module:
        """The inference form: one multiplication and addition a channel."""
        return batch_norm_to_depthwise(self)


def fold_conv_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Sequential:
    """norm(conv(x)) in new modules: one convolution if `norm` is an (evaluating) batch norm, else both as they are.

    A 1×1 convolution becomes a linear layer.
    """
    conv = deepcopy(conv)
    rest = [] if isinstance(norm, nn.BatchNorm2d) else [deepcopy(norm)]
    if isinstance(norm, nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, norm)
    return nn.Sequential(Linear2d.from_conv1x1(conv) if conv.kernel_size == (1, 1) else conv, *rest)


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
