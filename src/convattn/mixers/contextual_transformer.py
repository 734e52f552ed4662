"""Contextual transformer (CoT), the mixer of CoTNet, and CoXt, its grouped form of CoTNeXt.

Paper: "Contextual Transformer Networks for Visual Recognition", Li, Yao, Pan, Mei, 2021, arXiv 2107.12292, section 3.
Reference code: github.com/JDAI-CV/CoTNet; written from a description of it.

    x ─ key: 3×3 in groups ─────────── k ──────────────────────┐      static context
    (x, k) ─ embed: 1×1, 1×1, group norm ─ weights             │
    x ─ value: 1×1 ─────────────────── local aggregation ─ y ──┴─ blend by channel ─ out
                                                           dynamic context

Each position sums its 3×3 neighbourhood of values with weights that a convolution wrote for it, seeing the
neighbourhood's static context. Unlike attention there is no softmax and no product of query and key; the weights are
normalised over the taps and the whole map, so that the result depends on all of it. Neither shows in the paper's
figure, nor do the norms of value and result.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.ops.fold import as_linear, fold_chain
from convattn.ops.linear import Linear2d
from convattn.ops.local_aggregation import LocalAggregation, aggregate_planes

__all__ = ["FUSIONS", "CoTAttention", "CoXtAttention"]

FUSIONS = ("attention", "sum", "dynamic", "static")

SHARERS = 8  # channels that share one kernel of weights


class CoTAttention(nn.Module):
    """Contextual transformer: static context of a group convolution, dynamic context of a local aggregation, blended.

    k = ReLU(norm(conv(x))), y = SiLU(norm(Σ weights(x, k) · value(x))), out = p · y + (1 - p) · k, p by channel from
    the means of y + k. (B, C, H, W) -> (B, C, H, W), linear cost in the positions, any size.

    The inner tensors that explanations read: the output of `key` (static context), of `embed` (the weights), of
    `aggregation`, and of `gate` (two numbers a channel, for y and k).

    In training the gate's batch norm sees one value an image: a batch of 2 is the least.

    Args:
        dim: channels C; a multiple of 8 (of 16 for `CoXtAttention`).
        kernel_size: odd side of the neighbourhood, of the key convolution and of the aggregation.
        fusion: "attention" blends the contexts by channel, "sum" adds them, "dynamic" and "static" give one alone
            (static is the key convolution and nothing else).

    Raises:
        ValueError: for another `fusion`, an even `kernel_size`, or a `dim` that does not divide.
    """

    key_groups = 4
    groups = 1  # of the 1×1 convolutions and of the aggregation

    def __init__(self, dim: int, *, kernel_size: int = 3, fusion: str = "attention"):
        super().__init__()
        unit = SHARERS * self.groups
        if dim < unit or dim % unit:
            nearest = max(1, round(dim / unit)) * unit
            raise ValueError(f"dim {dim} must be a multiple of {unit}; the nearest is {nearest}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} must be odd, so that the neighbourhood has a centre")
        if fusion not in FUSIONS:
            raise ValueError(f"fusion {fusion!r} is unknown; choose one of {', '.join(FUSIONS)}")
        self.fusion = fusion
        self.dim, self.taps, self.num_weights = dim, kernel_size**2, dim // SHARERS

        self.key = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=self.key_groups, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
        )
        if fusion == "static":
            return
        hidden = dim // 2
        self.embed = nn.Sequential(
            nn.Conv2d(2 * dim, hidden, 1, groups=self.groups, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, self.taps * self.num_weights, 1, groups=self.groups),
            nn.GroupNorm(self.num_weights, self.taps * self.num_weights),
        )
        self.value = nn.Sequential(nn.Conv2d(dim, dim, 1, groups=self.groups, bias=False), nn.BatchNorm2d(dim))
        self.aggregation = LocalAggregation(kernel_size, groups=self.groups)
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.SiLU(inplace=True)
        if fusion == "attention":
            squeezed = max(dim // 2, 32)
            self.gate = nn.Sequential(
                nn.Conv2d(dim, squeezed, 1),
                nn.BatchNorm2d(squeezed),
                nn.ReLU(inplace=True),
                nn.Conv2d(squeezed, 2 * dim, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        key = self.key(x)
        if self.fusion == "static":
            return key
        # The channels of the weights come kernel by kernel, taps inside; the aggregation takes them tap by tap.
        weights = self.embed(self._join(x, key)).unflatten(1, (1, self.num_weights, self.taps)).transpose(2, 3)
        out = self.act(self.norm(self.aggregation(self.value(x), weights)))
        if self.fusion == "dynamic":
            return out
        total = out + key
        if self.fusion == "sum":
            return total
        shares = self.gate(total.mean((2, 3), keepdim=True)).unflatten(1, (self.dim, 2)).softmax(2)
        return shares[:, :, 0] * out + shares[:, :, 1] * key

    def _join(self, x: Tensor, key: Tensor) -> Tensor:
        """(B, 2C, H, W), ordered so that each group of a convolution gets the same part of both."""
        return torch.cat([x, key], 1) if self.groups == 1 else torch.stack([x, key], 2).flatten(1, 2)

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded, one product on the input, weights tap by tap, no concatenation."""
        return fold_chain(self.key) if self.fusion == "static" else FusedCoTAttention(self)


class CoXtAttention(CoTAttention):
    """The grouped form of CoTNeXt: 1×1 convolutions and aggregation on two halves of the channels, the key in 8 groups.

    Everything else, and every argument, is as in `CoTAttention`.
    """

    key_groups = 8
    groups = 2


class FusedCoTAttention(nn.Module):
    """Inference form of `CoTAttention` and `CoXtAttention`.

    The convolution of (x, k) is one on x plus one on k, and that on x shares its product with the values. The scale of
    the norm behind the aggregation goes into the values, which it commutes with; its shift remains. The two shares of
    the gate sum to 1, so the difference of their logits is enough. Weights leave their product tap by tap.
    """

    @torch.no_grad()
    def __init__(self, block: CoTAttention):
        super().__init__()
        self.fusion, self.groups, self.taps = block.fusion, block.groups, block.taps
        self.key = fold_chain(block.key)

        layers: Any = block.embed
        value_layers: Any = block.value
        embed, value = fuse_conv_bn_eval(layers[0], layers[1]), fuse_conv_bn_eval(*value_layers)
        assert block.norm.running_mean is not None and block.norm.running_var is not None
        scale = block.norm.weight * (block.norm.running_var + block.norm.eps).rsqrt()
        self.shift = nn.Parameter((block.norm.bias - block.norm.running_mean * scale).view(-1, 1, 1))
        by_input, by_key = self._halves(embed.weight)
        assert embed.bias is not None and value.bias is not None
        rows = [self._by_group(by_input), self._by_group(value.weight * scale.view(-1, 1, 1, 1))]
        biases = [self._by_group(embed.bias), self._by_group(value.bias * scale)]
        self.input_proj = _pointwise(torch.cat(rows, 1).flatten(0, 1), torch.cat(biases, 1).flatten(), self.groups)
        self.key_proj = _pointwise(by_key, None, self.groups)
        self.hidden = len(by_input) // self.groups

        weights, norm = layers[3], layers[4]
        self.eps: float = norm.eps
        self.weights = _pointwise(self._tap_major(weights.weight), self._tap_major(weights.bias), self.groups)
        tap_shape = (1, self.groups, self.taps, 1, 1, -1)  # against (B, groups, taps, H, W, Q)
        self.tap_scale = nn.Parameter(self._tap_major(norm.weight).view(tap_shape))
        self.tap_shift = nn.Parameter(self._tap_major(norm.bias).view(tap_shape))
        self.aggregation = LocalAggregation(block.aggregation.kernel_size, groups=self.groups)
        if self.fusion == "attention":
            gate: Any = block.gate
            squeeze, expand = fuse_conv_bn_eval(gate[0], gate[1]), gate[3]
            difference = _pointwise(expand.weight[::2] - expand.weight[1::2], expand.bias[::2] - expand.bias[1::2], 1)
            self.gate = nn.Sequential(as_linear(squeeze), nn.ReLU(), difference)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        key = self.key(x)
        embedded, value = self.input_proj(x).unflatten(1, (self.groups, -1)).tensor_split([self.hidden], 2)
        hidden = (embedded.flatten(1, 2) + self.key_proj(key)).relu_()
        y = self.aggregation(value.flatten(1, 2), self._normalise(self.weights(hidden)))
        y = F.silu((y + self.shift).to(key.dtype), inplace=True)  # under autocast the shift is wider
        if self.fusion == "dynamic":
            return y
        if self.fusion == "sum":
            return y + key
        mean = y.mean((2, 3), keepdim=True) + key.mean((2, 3), keepdim=True)
        return torch.lerp(key, y, self.gate(mean).sigmoid())

    def graph_form(self) -> nn.Module:
        """For graph runtimes: everything as convolutions of channels-first maps."""
        return GraphCoTAttention(self)

    def _normalise(self, weights: Tensor) -> Tensor:
        """Group norm over taps and positions: (B, groups·taps·Q, H, W) -> (B, 1, taps, groups, Q, H, W), in float32."""
        wide = torch.promote_types(weights.dtype, torch.float32)
        taps = weights.unflatten(1, (self.groups, self.taps, -1)).permute(0, 1, 2, 4, 5, 3)
        taps = taps.to(wide, memory_format=torch.contiguous_format, copy=True)
        everywhere = (2, 3, 4)  # two passes by hand: torch.var_mean takes ten times as long over these dimensions
        taps -= taps.mean(everywhere, keepdim=True)
        variance = taps.square().mean(everywhere, keepdim=True)
        normalised = torch.addcmul(self.tap_shift, taps, self.tap_scale * (variance + self.eps).rsqrt())
        return normalised.permute(0, 2, 1, 5, 3, 4)[:, None]

    def _halves(self, weight: Tensor) -> tuple[Tensor, ...]:
        """A kernel on (x, k) as the kernels on x and on k."""
        return weight.chunk(2, 1) if self.groups == 1 else (weight[:, ::2], weight[:, 1::2])

    def _by_group(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.groups, -1))

    def _tap_major(self, rows: Tensor) -> Tensor:
        """Rows in the order (group, kernel, tap) in the order (group, tap, kernel)."""
        return rows.unflatten(0, (self.groups, -1, self.taps)).transpose(1, 2).flatten(0, 2)


class GraphCoTAttention(nn.Module):
    """Form of `FusedCoTAttention` for graph runtimes: 1×1 convolutions in place of linear layers, maps channels-first.

    Values and embedding come from a convolution each: the sum with the key's then happens as that one writes, and no
    map is cut in two. Weights leave their convolution kernel by kernel, as the group norm reads them.
    """

    @torch.no_grad()
    def __init__(self, block: FusedCoTAttention):
        super().__init__()
        self.fusion, self.groups, self.eps = block.fusion, block.groups, block.eps
        self.key, self.key_proj, self.shift = block.key, _as_conv(block.key_proj), block.shift
        both: Any = block.input_proj
        weight, bias = (rows.unflatten(0, (self.groups, -1)) for rows in (both.weight, both.bias))
        self.embed, self.value = (
            _as_conv(_pointwise(weight[:, part].flatten(0, 1), bias[:, part].flatten(), self.groups))
            for part in (slice(block.hidden), slice(block.hidden, None))
        )

        weights: Any = block.weights
        rows = (weights.weight, weights.bias, block.tap_scale.flatten(), block.tap_shift.flatten())
        by_tap = (self.groups, block.taps, -1)
        kernel, bias, scale, shift = (row.unflatten(0, by_tap).transpose(1, 2).flatten(0, 2) for row in rows)
        self.weights = _as_conv(_pointwise(kernel, bias, self.groups))
        self.num_weights = len(scale) // block.taps
        self.tap_scale, self.tap_shift = nn.Parameter(scale), nn.Parameter(shift)
        if self.fusion == "attention":
            self.gate = nn.Sequential(*map(_as_conv, block.gate))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        key = self.key(x)
        hidden = (self.key_proj(key) + self.embed(x)).relu()
        weights = F.group_norm(self.weights(hidden), self.num_weights, self.tap_scale, self.tap_shift, self.eps)
        y = aggregate_planes(self.value(x), weights.unflatten(1, (self.num_weights, -1)), groups=self.groups)
        y = F.silu(y + self.shift)
        if self.fusion == "dynamic":
            return y
        if self.fusion == "sum":
            return y + key
        mean = y.mean((2, 3), keepdim=True) + key.mean((2, 3), keepdim=True)
        return key + self.gate(mean).sigmoid() * (y - key)


def _as_conv(layer: nn.Module) -> nn.Module:
    return layer.graph_form() if isinstance(layer, Linear2d) else layer


def _pointwise(weight: Tensor, bias: Tensor | None, groups: int) -> nn.Module:
    """The 1×1 convolution of these weights, as a linear layer where it is dense."""
    out_channels, in_channels = weight.shape[0], weight.shape[1] * groups
    conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=bias is not None).to(weight)
    conv.weight.copy_(weight)
    if conv.bias is not None and bias is not None:
        conv.bias.copy_(bias)
    return as_linear(conv)
