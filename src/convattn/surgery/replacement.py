"""A block in the place of a convolution: stride and widths are kept by a pool and a projection in front of it.

conv k×k, stride s, C -> C'     becomes     [average pool k×k, stride s] -> [1×1 convolution C -> C'] -> mixer(C')
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from convattn.mixers.registry import create_mixer
from convattn.surgery.places import is_part_of_surgery
from convattn.walk import hung_on, names_of, put

__all__ = ["Match", "Replacement", "find_convolutions", "replace_at"]

Match = str | Callable[[str, nn.Conv2d], bool]


class Replacement(nn.Module):
    """pool -> projection -> mixer, of the same input and output shapes as the convolution it stands for.

    Source: for strides CoTNet, arXiv 2107.12292: 3×3 average pool in front of the block, padding counted in the mean.

    The convolution is set aside, outside the module tree, for `detach`. A state dict that still has its weights loads:
    they go to the convolution set aside. ValueError if no pool gives the convolution's output size.
    """

    is_inserted = True

    def __init__(self, conv: nn.Conv2d, mixer: nn.Module):
        super().__init__()
        self.set_aside: tuple[nn.Conv2d, ...] = (conv,)  # in a tuple: not a child, so neither trained nor saved
        self.pool = _pool_like(conv)
        same_width = conv.in_channels == conv.out_channels
        self.project = nn.Identity() if same_width else nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=False)
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.mixer(self.project(self.pool(x)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *lists: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *lists)
        *_, unexpected_keys, _ = lists  # in front of the errors
        for conv in self.set_aside:
            for name, parameter in conv.named_parameters():
                key = prefix + name
                if key in state_dict and state_dict[key].shape == parameter.shape:
                    unexpected_keys[:] = [unexpected for unexpected in unexpected_keys if unexpected != key]
                    with torch.no_grad():
                        parameter.copy_(state_dict[key])


def find_convolutions(model: nn.Module, match: Match) -> list[str]:
    """Names of the convolutions that `match` means by any of their names, the first of each; ValueError if none."""
    if match != "conv3x3" and not callable(match):
        raise ValueError(f"match {match!r} is unknown; choose conv3x3 or a function (name, convolution) -> bool")
    chosen = _is_conv3x3 if isinstance(match, str) else match
    names = [
        names[0]
        for module, names in names_of(model).items()
        if isinstance(module, nn.Conv2d)
        and not is_part_of_surgery(model, names[0])
        and any(chosen(name, module) for name in names)
    ]
    if not names:
        meant = (
            "3×3 convolution that keeps its width and is not depthwise"
            if isinstance(match, str)
            else "convolution that the function given as match accepts"
        )
        raise ValueError(f"{type(model).__name__} has no {meant}; give match=function (name, convolution) -> bool")
    return names


def replace_at(model: nn.Module, name: str, mixer: str, options: dict[str, Any]) -> dict[str, Any]:
    """Swap the convolution `name` of `model` for a fresh block, in place; returns the entry for the table.

    Raises:
        ValueError: if the mixer cannot be made for this width, or something is hung on the convolution.
    """
    conv: Any = model.get_submodule(name)
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"{name} is a {type(conv).__name__}, not a convolution")
    if hung := hung_on(conv):
        raise ValueError(f"{name} {hung}, which would be lost with it; remove that first, or leave {name} out by match")
    try:
        replacement = Replacement(conv, create_mixer(mixer, conv.out_channels, **options))
    except (ValueError, TypeError) as error:  # a TypeError where an option has a value of another kind
        raise ValueError(f"{mixer} at {name} ({conv.out_channels} channels): {error}") from error
    replacement.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    put(model, conv, replacement)
    return {
        "kind": "replace",
        "place": name,
        "mixer": mixer,
        "options": options,
        "channels": conv.out_channels,
        "stride": max(conv.stride),
        "parameters": sum(p.numel() for p in replacement.parameters()) - sum(p.numel() for p in conv.parameters()),
    }


def _is_conv3x3(name: str, conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.in_channels == conv.out_channels and conv.groups < conv.in_channels


def _pool_like(conv: nn.Conv2d) -> nn.Module:
    """A pool whose output has the size of the convolution's; identity where that is the input's."""
    (kernel_h, stride_h, padding_h), (kernel_w, stride_w, padding_w) = (_pool_side(conv, axis) for axis in (0, 1))
    if (stride_h, stride_w) == (1, 1) and (2 * padding_h, 2 * padding_w) == (kernel_h - 1, kernel_w - 1):
        return nn.Identity()
    return nn.AvgPool2d((kernel_h, kernel_w), (stride_h, stride_w), (padding_h, padding_w))


def _pool_side(conv: nn.Conv2d, axis: int) -> tuple[int, int, int]:
    """(kernel, stride, padding) of the pool along one axis."""
    kernel, stride = conv.kernel_size[axis], conv.stride[axis]
    widening = (kernel - 1) * (conv.dilation[axis] - 1)  # of the span, by dilation; a pool has none
    is_same = conv.padding == "same" or isinstance(conv, Conv2dSame)  # timm's, of output size ceil(input / stride)
    if is_same:
        padding = (kernel - 1) // 2
    else:
        padding = (0 if isinstance(conv.padding, str) else int(conv.padding[axis])) - widening // 2
    is_lopsided = kernel % 2 == 0 if is_same else widening % 2 == 1  # more on one side than a pool can take away
    if is_lopsided or not 0 <= 2 * padding <= kernel:
        raise ValueError(
            f"no pool gives the output size of a convolution of kernel {kernel}, dilation {conv.dilation[axis]} and "
            f"padding {conv.padding}"
        )
    return kernel, stride, padding
