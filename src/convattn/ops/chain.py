"""Folding a chain of layers for inference: what stands directly behind one another becomes one layer."""

from copy import deepcopy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.ops.linear import Linear2d

__all__ = ["as_linear", "fold_chain"]


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
