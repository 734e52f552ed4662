"""SMT: scale-aware modulation in the early stages, self-attention in the late ones, both by turns between.

Paper: "Scale-Aware Modulation Meet Transformer", Lin, Wu, Chen, Huang, Jin, ICCV 2023, arXiv 2307.08579.
Reference code: github.com/AFeng-x/SMT (MIT); written from a description of it.

    stage i: (B, C_in, H, W)
      3x3 convolution /2 -> norm -> [ mixer -> channel MLP with a depthwise 3x3 ] x depth -> norm
    out: (B, C_out, ceil(H/2), ceil(W/2))          mixer: modulation | by turns | attention

What is unusual: the norm at the end of a stage is part of the path to the next stage, so a level of the pyramid and
what the classifier sees are the same tensor. There is no position code and nothing depends on the image size. Norms
behind a convolution have eps 1e-5, all others 1e-6.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale2d, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.backbones.pyramid import Pyramid, Stage, TimmOptions, check_stages
from convattn.backbones.registry import register_family
from convattn.mixers.scale_aware_modulation import AGGREGATIONS, ScaleAwareModulation
from convattn.ops.attention import map_attention, map_tokens
from convattn.ops.fold import add_identity_tap, rows_of_conv
from convattn.ops.linear import Linear2d

__all__ = ["SMT", "SMTConfig"]

# Modulation and attention by turns, half and half, or one alone.
STACKINGS = ("alternate", "half", "modulation", "attention")


@dataclass(frozen=True)
class SMTConfig:
    """What a variant of SMT is made of; every field is also a keyword of `create_model`."""

    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 8, 1)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 2)
    num_heads: int = 4  # of the mixed convolution
    kernel_growth: int = 2  # head h has a kernel of 3 + growth·h
    aggregation: bool | str = True  # the paper's, none, or a name of `AGGREGATIONS`
    expansion_ratio: int = 2  # inside the aggregation
    attention_heads: tuple[int, ...] = (8, 16)  # stages 3 and 4; or four, of every stage
    stacking: str | tuple[str, ...] = "alternate"  # mixers of stage 3, one of `STACKINGS`; or four, of every stage
    stem_kernel: int = 3
    stem_stride: int = 4  # 4, or 2 for small images
    layer_scale_init: float = 0.0  # initial value of the scales; 0: no layer scale (timm drops a None on its way here)

    def __post_init__(self) -> None:
        check_stages(self, "dims", "depths", "mlp_ratios")
        for stacking in (self.stacking,) if isinstance(self.stacking, str) else self.stacking:
            if stacking not in STACKINGS:
                raise ValueError(f"stacking {stacking!r} is unknown; choose one of {', '.join(STACKINGS)}")
        if not isinstance(self.stacking, str) and len(self.stacking) != 4:
            raise ValueError(f"stacking {self.stacking} must be one word, of stage 3, or four, of every stage")
        if self.aggregation not in (True, False, *AGGREGATIONS):
            names = ", ".join(AGGREGATIONS)
            raise ValueError(f"aggregation {self.aggregation!r} must be True, False or one of {names}")
        if self.expansion_ratio != int(self.expansion_ratio):
            raise ValueError(f"expansion_ratio {self.expansion_ratio} must be a whole number")
        if len(self.attention_heads) not in (2, 4):
            raise ValueError(f"attention_heads {self.attention_heads} must be two, of stages 3 and 4, or four")
        for stage in range(4):
            if "attention" in self.mixers(stage) and self.dims[stage] % self.heads(stage):
                raise ValueError(
                    f"attention_heads {self.heads(stage)} does not divide the stage's dim {self.dims[stage]}"
                )

    def mixers(self, stage: int) -> list[str]:
        """The mixer of each block of `stage` (0 to 3): "modulation" or "attention"."""
        depth, stackings = self.depths[stage], self.stacking
        if isinstance(stackings, str):
            stackings = ("modulation", "modulation", stackings, "attention")
        if stackings[stage] == "alternate":
            return ["attention" if block % 2 else "modulation" for block in range(depth)]
        if stackings[stage] == "half":
            return ["modulation" if block < (depth + 1) // 2 else "attention" for block in range(depth)]
        return [stackings[stage]] * depth

    def heads(self, stage: int) -> int:
        """Heads of the attention in `stage` (0 to 3); ValueError where none are given."""
        given = dict(zip(range(4 - len(self.attention_heads), 4), self.attention_heads, strict=True))
        if stage not in given:
            raise ValueError(f"attention in stage {stage + 1} needs four attention_heads, not {self.attention_heads}")
        return given[stage]


class EntryNorm(LayerNorm2d):
    """The layer norm through which a map enters a stage, eps 1e-5; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-5)

    @torch.no_grad()
    def graph_form(self) -> nn.Module:
        """For graph runtimes: scale and shift as a depthwise convolution, which puts the stage in their layout."""
        dim = len(self.weight)
        scale = nn.Conv2d(dim, dim, 1, groups=dim)
        scale.weight, scale.bias = nn.Parameter(self.weight.view(-1, 1, 1, 1)), self.bias
        return nn.Sequential(LayerNorm2d(dim, eps=self.eps, affine=False), scale)


class Stem(nn.Module):
    """Two convolutions with a ReLU between: (B, in_chans, H, W) -> (B, C, floor(ceil(H/2)/2), floor(ceil(W/2)/2)).

    With `stride` 2 the first convolution keeps the size: (B, C, floor(H/2), floor(W/2)).
    """

    def __init__(self, in_chans: int, dim: int, kernel_size: int = 3, stride: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim, kernel_size, stride // 2, kernel_size // 2, bias=False)
        self.norm1 = nn.BatchNorm2d(dim)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(dim, dim, 2, 2)
        self.norm2 = EntryNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the first convolution."""
        conv1 = fuse_conv_bn_eval(self.conv1, self.norm1)
        return nn.Sequential(conv1, deepcopy(self.act), deepcopy(self.conv2), deepcopy(self.norm2))


class Downsample(nn.Module):
    """3×3 convolution of stride 2 and a norm: (B, C, H, W) -> (B, C', ceil(H/2), ceil(W/2))."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, 2, 1)
        self.norm = EntryNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class LocalSelfAttention(nn.Module):
    """Self-attention over all positions, with a depthwise 3×3 convolution of the values added to its result.

    out = proj(softmax(q kᵀ / √head_dim) v + conv(v)); (B, C, H, W) -> (B, C, H, W).

    Source: section 3.2 of the paper and its code.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear2d(dim, dim)
        self.key_value = Linear2d(dim, 2 * dim)
        self.local_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = Linear2d(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.key_value(x).chunk(2, 1)
        mixed = map_attention(self.query(x), map_tokens(key), map_tokens(value), self.num_heads)
        return self.proj(mixed + self.local_conv(value))

    def fused(self) -> nn.Module:
        """The inference form: queries, keys and values from one product."""
        return FusedLocalSelfAttention(self)


class FusedLocalSelfAttention(nn.Module):
    """Inference form of `LocalSelfAttention`: one linear layer gives queries, keys and values."""

    @torch.no_grad()
    def __init__(self, block: LocalSelfAttention):
        super().__init__()
        dim = block.proj.in_channels
        self.num_heads = block.num_heads
        self.query_key_value = Linear2d(dim, 3 * dim).to(block.proj.weight)
        self.query_key_value.weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        self.query_key_value.bias.copy_(torch.cat([block.query.bias, block.key_value.bias]))
        self.local_conv = deepcopy(block.local_conv)
        self.proj = deepcopy(block.proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        query, key, value = self.query_key_value(x).chunk(3, 1)
        mixed = map_attention(query, map_tokens(key), map_tokens(value), self.num_heads)
        return self.proj(mixed + self.local_conv(value))

    def graph_form(self) -> nn.Module:
        """For graph runtimes: 1×1 convolutions, one each for queries, keys and values, so that no map is cut."""
        return GraphLocalSelfAttention(self)


class GraphLocalSelfAttention(nn.Module):
    """Form of `FusedLocalSelfAttention` for graph runtimes, of convolutions."""

    def __init__(self, block: FusedLocalSelfAttention):
        super().__init__()
        self.num_heads, self.local_conv, self.proj = block.num_heads, block.local_conv, block.proj.graph_form()
        dim, dense = block.proj.in_channels, block.query_key_value.graph_form()
        self.query, self.key, self.value = (rows_of_conv(dense, slice(i * dim, (i + 1) * dim)) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        value = self.value(x)
        mixed = map_attention(self.query(x), map_tokens(self.key(x)), map_tokens(value), self.num_heads)
        return self.proj(mixed + self.local_conv(value))


class ConvMlp(nn.Module):
    """fc2(GELU(h + conv(h))), h = fc1(x), conv a depthwise 3×3; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear2d(dim, hidden_dim)
        self.conv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear2d(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(self.act(x + self.conv(x)))

    def fused(self) -> nn.Module:
        """The inference form: the addition becomes a 1 in the centre tap of the convolution."""
        return nn.Sequential(deepcopy(self.fc1), add_identity_tap(self.conv), deepcopy(self.act), deepcopy(self.fc2))


class Block(nn.Module):
    """x + scale1·mixer(norm1(x)), then x + scale2·mlp(norm2(x)), each branch under its own drop path."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float, *, layer_scale_init: float, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.token_mixer = mixer
        self.layer_scale1 = LayerScale2d(dim, layer_scale_init) if layer_scale_init else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.channel_mixer = ConvMlp(dim, int(dim * mlp_ratio))
        self.layer_scale2 = LayerScale2d(dim, layer_scale_init) if layer_scale_init else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.layer_scale1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path2(self.layer_scale2(self.channel_mixer(self.norm2(x))))


class SMT(Pyramid):
    """The SMT backbone: a variant, and what every network takes."""

    family = "smt"
    min_input_size = 4

    def __init__(self, cfg: SMTConfig, options: TimmOptions):
        last = max(1, sum(cfg.depths) - 1)
        rates = (options.drop_path_rate * block / last for block in range(sum(cfg.depths)))
        super().__init__(
            *stem_and_stages(cfg, options.in_chans, partial(_mixer, cfg), rates),
            options,
            dims=cfg.dims,
            reductions=[cfg.stem_stride * 2**index for index in range(4)],
        )
        self.cfg = cfg
        self.apply(init_weights)

    def infer_options(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a checkpoint under our names says about layer scale, where it differs from this model."""
        has_scale = any(name.endswith(".layer_scale1.gamma") for name in state)
        if has_scale == bool(self.cfg.layer_scale_init):
            return {}
        return {"layer_scale_init": 1e-4 if has_scale else 0.0}


def stem_and_stages(
    cfg: Any, in_chans: int, mixer: Callable[[int, int], nn.Module], rates: Iterator[float]
) -> tuple[Stem, list[Stage]]:
    """The skeleton of a configuration around mixers (stage, block); each block takes the next drop path rate."""
    stages = []
    for index, dim in enumerate(cfg.dims):
        blocks = [
            Block(
                mixer(index, block),
                dim,
                cfg.mlp_ratios[index],
                layer_scale_init=cfg.layer_scale_init,
                drop_path=next(rates),
            )
            for block in range(cfg.depths[index])
        ]
        downsample = Downsample(cfg.dims[index - 1], dim) if index else nn.Identity()
        stages.append(Stage(downsample, blocks, LayerNorm2d(dim, eps=1e-6)))
    return Stem(in_chans, cfg.dims[0], cfg.stem_kernel, cfg.stem_stride), stages


def _mixer(cfg: SMTConfig, stage: int, block: int) -> nn.Module:
    if cfg.mixers(stage)[block] == "attention":
        return LocalSelfAttention(cfg.dims[stage], cfg.heads(stage))
    return ScaleAwareModulation(
        cfg.dims[stage],
        num_heads=cfg.num_heads,
        kernel_growth=cfg.kernel_growth,
        aggregation=cfg.aggregation,
        expansion_ratio=cfg.expansion_ratio,
    )


def init_weights(module: nn.Module) -> None:
    """The authors' rule: truncated normal of 0.02 for linear layers, He by outputs per group for convolutions."""
    if isinstance(module, nn.Linear | Linear2d):
        trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


_LARGE_RATIOS = (8, 6, 4, 2)

register_family(
    __name__,
    SMT,
    {
        # For images of 32 to 64 pixels: levels at strides 2, 4, 8, 16. Not in the paper.
        "smt_nano": SMTConfig(dims=(24, 48, 96, 160), depths=(1, 1, 4, 1), attention_heads=(4, 8), stem_stride=2),
        # Table 1 of the paper.
        "smt_tiny": SMTConfig(),
        "smt_small": SMTConfig(depths=(3, 4, 18, 2)),
        "smt_base": SMTConfig(depths=(4, 6, 28, 2), mlp_ratios=_LARGE_RATIOS, stem_kernel=7),
        "smt_large": SMTConfig(
            dims=(96, 192, 384, 768),
            depths=(4, 6, 28, 4),
            mlp_ratios=_LARGE_RATIOS,
            stem_kernel=7,
            layer_scale_init=1e-4,
        ),
    },
    image_sizes={"smt_nano": 32},
    reductions={"smt_nano": 16},
    dense={"smt_nano": {"stem_stride": 4}},
)
