"""Scale-aware modulation (SAM), the convolutional mixer of SMT.

Paper: "Scale-Aware Modulation Meet Transformer", Lin, Wu, Chen, Huang, Jin, ICCV 2023, arXiv 2307.08579, section 3.1.

    x ─ value ────────────────────────────────────────────────┐
    x ─ context ─ mixed convolution ─ aggregation ─ modulator ─ × ─ proj ─ out
                  (one depthwise      (group g = channel g
                   kernel per head)    of every head)

It replaces the softmax of attention by an elementwise product with a map that convolutions of growing kernels wrote.
"""

from copy import deepcopy

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.mixers.heads import nearest_divisor
from convattn.ops.fold import fold_chain, merge_depthwise, widen_groups
from convattn.ops.linear import Linear2d

__all__ = ["AGGREGATIONS", "DenseAggregation", "MultiHeadMixedConv", "ScaleAwareAggregation", "ScaleAwareModulation"]

# What the paper sets beside its aggregation; `DenseAggregation` builds them.
AGGREGATIONS = ("one_1x1", "two_1x1", "ungrouped", "inverted_bottleneck")


@register_notrace_module
class MultiHeadMixedConv(nn.Module):
    """Depthwise convolutions whose kernel grows with the head, interleaved so that head h writes channels g·heads + h.

    Head h (from 0) reads channels [h·C/heads, (h+1)·C/heads) through a kernel of 3 + growth · h.

    Source: section 3.1, multi-head mixed convolution.

    Args:
        dim: channels C; a multiple of `num_heads`.
        num_heads: number of heads, 1 or more.
        kernel_growth: how much wider each head's kernel is than the one before; even, 0 gives 3×3 everywhere.

    Raises:
        ValueError: if `num_heads` does not divide `dim`, or `kernel_growth` is odd or negative.
    """

    def __init__(self, dim: int, num_heads: int = 4, kernel_growth: int = 2):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            nearest = nearest_divisor(dim, num_heads)
            raise ValueError(f"num_heads {num_heads} does not divide dim {dim}; the nearest that does is {nearest}")
        if kernel_growth < 0 or kernel_growth % 2:
            raise ValueError(f"kernel_growth {kernel_growth} must be even and not negative, so that kernels stay odd")
        self.num_heads = num_heads
        head_dim = dim // num_heads
        kernels = [3 + kernel_growth * head for head in range(num_heads)]
        self.heads = nn.ModuleList(nn.Conv2d(head_dim, head_dim, k, padding=k // 2, groups=head_dim) for k in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), channels interleaved."""
        heads = [conv(part) for conv, part in zip(self.heads, x.chunk(self.num_heads, 1), strict=True)]
        # Stacked behind the channels of a channels-last map, the interleave is the one copy that is needed.
        return torch.stack([head.permute(0, 2, 3, 1) for head in heads], dim=-1).flatten(3).permute(0, 3, 1, 2)


class ScaleAwareAggregation(nn.Module):
    """Joins the heads: a light 1×1 convolution inside each group of one channel per head, then a full one.

    Source: section 3.1, scale-aware aggregation.

    Args:
        dim: channels C of input and output.
        num_heads: channels in each group.
        expansion_ratio: width between the two convolutions over C.
    """

    def __init__(self, dim: int, num_heads: int = 4, expansion_ratio: int = 2):
        super().__init__()
        if expansion_ratio < 1:
            raise ValueError(f"expansion_ratio {expansion_ratio} must be 1 or more")
        hidden = dim * expansion_ratio
        self.group_mix = nn.Conv2d(dim, hidden, 1, groups=dim // num_heads)
        self.norm = nn.BatchNorm2d(hidden)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.proj(self.act(self.norm(self.group_mix(x))))

    def fused(self) -> nn.Module:
        """The inference form of an evaluating block: batch norm folded into the group convolution."""
        return FusedScaleAwareAggregation(
            fuse_conv_bn_eval(self.group_mix, self.norm), deepcopy(self.act), Linear2d.from_conv1x1(self.proj)
        )


class FusedScaleAwareAggregation(nn.Sequential):
    """Inference form of `ScaleAwareAggregation`: group convolution, activation, linear layer."""

    def graph_form(self) -> nn.Module:
        """For graph runtimes: groups as wide as a vector of channels, the linear layer as a 1×1 convolution."""
        group_mix, act, proj = self
        assert isinstance(group_mix, nn.Conv2d) and isinstance(proj, Linear2d)
        return nn.Sequential(widen_groups(group_mix, 16), act, proj.graph_form())


class DenseAggregation(nn.Sequential):
    """Joins the heads without regard to their scales: the controls of scale-aware aggregation.

        one_1x1               1×1 C -> C
        two_1x1               1×1 C -> C, norm, GELU, 1×1 C -> C
        ungrouped             1×1 C -> eC, norm, GELU, 1×1 eC -> C: the paper's with one group
        inverted_bottleneck   1×1 C -> eC, norm, GELU, depthwise 3×3, norm, GELU, 1×1 eC -> C

    Source: section 3.1 names them; norms and activations are ours, as in `ScaleAwareAggregation`.

    Args:
        kind: a name of `AGGREGATIONS`.
        dim: channels C of input and output.
        expansion_ratio: e.
    """

    def __init__(self, kind: str, dim: int, expansion_ratio: int = 2):
        if expansion_ratio < 1:
            raise ValueError(f"expansion_ratio {expansion_ratio} must be 1 or more")
        hidden = dim if kind == "two_1x1" else dim * expansion_ratio
        layers: list[nn.Module] = []
        if kind != "one_1x1":
            layers += [nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden), nn.GELU()]
        if kind == "inverted_bottleneck":
            layers += [nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden), nn.GELU()]
        super().__init__(*layers, nn.Conv2d(hidden if layers else dim, dim, 1))

    def fused(self) -> nn.Module:
        """The inference form of an evaluating block: batch norms folded into the convolutions."""
        return fold_chain(self)


class ScaleAwareModulation(nn.Module):
    """out = proj(modulator(x) · value(x)), the modulator written by mixed convolution and aggregation.

    Linear cost in the number of positions, any size, no position code.

    The inner tensors that explanations read: the output of `mixed_conv` (before aggregation) and of `aggregation` (the
    modulator).

    Args:
        dim: channels C; a multiple of `num_heads`.
        num_heads: heads of the mixed convolution (4 in every released model).
        kernel_growth: growth of the kernel from head to head (2: kernels 3, 5, 7, 9).
        aggregation: False leaves the interleaved heads as the modulator, without any parameter of the aggregation; a
            name of `AGGREGATIONS` takes that instead.
        expansion_ratio: width inside the aggregation over C.
        qkv_bias: bias of the `value` and `context` projections.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 4,
        kernel_growth: int = 2,
        aggregation: bool | str = True,
        expansion_ratio: int = 2,
        qkv_bias: bool = True,
    ):
        super().__init__()
        self.value = Linear2d(dim, dim, bias=qkv_bias)
        self.context = Linear2d(dim, dim, bias=qkv_bias)
        self.mixed_conv = MultiHeadMixedConv(dim, num_heads, kernel_growth)
        self.aggregation: nn.Module = nn.Identity()
        if isinstance(aggregation, str):
            self.aggregation = DenseAggregation(aggregation, dim, expansion_ratio)
        elif aggregation:
            self.aggregation = ScaleAwareAggregation(dim, num_heads, expansion_ratio)
        self.proj = Linear2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        modulator = self.aggregation(self.mixed_conv(self.context(x)))
        return self.proj(modulator * self.value(x))

    def fused(self) -> nn.Module:
        """The inference form: one depthwise kernel in interleaved order, batch norm folded, same values."""
        return FusedScaleAwareModulation(self)


class FusedScaleAwareModulation(nn.Module):
    """Inference form of `ScaleAwareModulation`.

    The rows of `context` are permuted once so that it emits interleaved channels; the heads' kernels, zero-padded to
    the largest, become one depthwise convolution in that order; batch norm folds into the group convolution. No stack,
    no slice, no norm is left.
    """

    @torch.no_grad()
    def __init__(self, block: ScaleAwareModulation):
        super().__init__()
        weight, bias = merge_depthwise(list(block.mixed_conv.heads))
        dim, _, kernel, _ = weight.shape
        heads = block.mixed_conv.num_heads
        interleaved = torch.arange(dim).view(heads, -1).T.flatten()  # at g·heads + h stands channel g of head h

        self.value = deepcopy(block.value)
        self.context = deepcopy(block.context)
        self.context.weight.copy_(block.context.weight[interleaved])
        if block.context.bias is not None:
            self.context.bias.copy_(block.context.bias[interleaved])
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.conv.weight = nn.Parameter(weight[interleaved])
        self.conv.bias = nn.Parameter(bias[interleaved])
        self.aggregation: nn.Module = nn.Identity()
        if isinstance(block.aggregation, ScaleAwareAggregation | DenseAggregation):
            self.aggregation = block.aggregation.fused()
        self.proj = deepcopy(block.proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.proj(self.aggregation(self.conv(self.context(x))) * self.value(x))
