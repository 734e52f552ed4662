"""Next-ViT: convolution blocks, and at the end of the later stages a block of attention beside convolution.

Paper: "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios", Li et
al., 2022, arXiv 2207.05501. Reference code: github.com/bytedance/Next-ViT (Apache-2.0); written from a description.

    stage i: (B, C_in, H, W)
      average 2×2 -> [ [ convolution block ] x N -> transformer block ] x L
    out: (B, C_out, ceil(H/2), ceil(W/2))

    convolution block:  x + mhca(x), then x + mlp(norm(x))
    transformer block:  x + e_mhsa(norm(x)) on 3/4 of the width; z + mhca(z), z = projection(x), on 1/4;
                        then y + mlp(norm(y)), y = [x, z]

What is unusual: batch norm and ReLU only, no position code. A stage's blocks have two widths, so a block behind a
transformer block narrows the map again. Keys and values are averages of positions along the flattened map, whose last
few are left out (see `EfficientAttention`). The final norm comes before the mean over positions.

Modules are named as in timm's Next-ViT, so weights go from one to the other as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
from timm.layers import ConvMlp, DropPath, LayerNorm2d, make_divisible, register_notrace_function, trunc_normal_
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from convattn.backbones.pyramid import Pyramid, Stage, TimmOptions, check_choices, check_stages
from convattn.backbones.registry import register_family
from convattn.mixers.efficient_attention import TOKEN_POOLS, EfficientAttention
from convattn.mixers.multi_head_convolutional_attention import MultiHeadConvolutionalAttention
from convattn.ops.fold import TrunkBatchNorm2d, fold_chain, fold_norms_linear
from convattn.ops.linear import Linear2d

__all__ = ["NextViT", "NextViTConfig"]

torch.fx.wrap("check_pools")  # it asks for sizes, which a symbolic trace has not

NORMS: dict[str, type[nn.Module]] = {"bn": nn.BatchNorm2d, "ln": LayerNorm2d}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class NextViTConfig:
    """What a variant of Next-ViT is made of; every field is also a keyword of `create_model`."""

    stem_dims: tuple[int, int, int] = (64, 32, 64)  # the fourth convolution keeps the third's
    stem_stride: int = 4  # 4, or 2 for small images
    conv_dims: tuple[int, ...] = (96, 192, 384, 768)  # widths of the convolution blocks
    transformer_dims: tuple[int, ...] = (128, 256, 512, 1024)  # widths of the transformer blocks
    depths: tuple[int, ...] = (3, 4, 10, 3)
    stage_pattern: str = "CHHH"  # a stage of convolution blocks, of transformer blocks (T), or hybrid: N and 1 by turns
    convs_per_transformer: tuple[int, ...] = (3, 3, 4, 2)  # N of each hybrid stage; its depth is a multiple of N + 1
    conv_block: str = "next"  # what stands where the convolution blocks are
    mix_ratio: float = 0.75  # r: part of a transformer block's width that attends; 1: all of it, 0: none
    head_dim: int = 32  # of attention, and of the groups of the convolutions
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)  # a key stands for sr² positions
    token_pool: str = "1d"  # the authors'; "1d_full" and "2d" leave no position out
    conv_mlp_ratio: float = 3  # of the paper's convolution block; the others have their own
    transformer_mlp_ratio: float = 2
    norm: str = "bn"  # or "ln"
    act: str = "relu"  # or "gelu"
    extra_norm: bool = False  # a norm behind every stage, on the path to the next: the authors' form for segmentation
    final_norm: bool = True  # False: none in front of the head; the authors' form for detection

    def __post_init__(self) -> None:
        dims = ("conv_dims", "transformer_dims")
        check_stages(self, *dims, "depths", "stage_pattern", "convs_per_transformer", "sr_ratios")
        if set(self.stage_pattern) - set("CHT"):
            raise ValueError(f"stage_pattern {self.stage_pattern!r} must be made of C, H and T, one a stage")
        check_choices(self, conv_block=("next", *OTHER_BLOCKS), token_pool=TOKEN_POOLS, norm=NORMS, act=ACTIVATIONS)
        if not 0 <= self.mix_ratio <= 1:
            raise ValueError(f"mix_ratio {self.mix_ratio} must be from 0 to 1")
        if min(self.convs_per_transformer) < 0:
            raise ValueError(f"convs_per_transformer {self.convs_per_transformer} must be 0 or more")
        if self.head_dim < 1 or min(self.sr_ratios) < 1:
            name = "head_dim" if self.head_dim < 1 else "sr_ratios"
            raise ValueError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.conv_block != "next" and self.conv_mlp_ratio != NextViTConfig.conv_mlp_ratio:
            raise ValueError(f"conv_mlp_ratio {self.conv_mlp_ratio} is of conv_block 'next', not {self.conv_block!r}")
        if self.extra_norm and not self.final_norm:
            raise ValueError(
                "final_norm False contradicts extra_norm, whose last norm is the final one; give one of them"
            )
        for stage in range(4):
            self._check_stage(stage)

    def _check_stage(self, stage: int) -> None:
        depth, group = self.depths[stage], self.convs_per_transformer[stage] + 1
        if self.stage_pattern[stage] == "H" and depth % group:
            below = max(group, depth // group * group)
            raise ValueError(
                f"depth {depth} of hybrid stage {stage + 1} is no multiple of its {group - 1} convolution blocks and "
                f"one transformer block; the nearest are {below} and {below + group}"
            )
        for name in ("conv_dims", "transformer_dims"):
            dim = getattr(self, name)[stage]
            if dim % self.head_dim:
                nearest = max(self.head_dim, round(dim / self.head_dim) * self.head_dim)
                raise ValueError(f"{name} {dim} is no multiple of head_dim {self.head_dim}; the nearest is {nearest}")

    def blocks(self, stage: int) -> str:
        """The blocks of `stage` (0 to 3) in order: C for a convolution block, T for a transformer block."""
        depth, pattern = self.depths[stage], self.stage_pattern[stage]
        if pattern != "H":
            return pattern * depth
        group = "C" * self.convs_per_transformer[stage] + "T"
        return group * (depth // len(group))

    def width(self, stage: int, kind: str) -> int:
        """Channels of a block of `kind` (C or T) in `stage`."""
        return (self.transformer_dims if kind == "T" else self.conv_dims)[stage]


class ConvUnit(nn.Module):
    """act(norm(3×3 convolution)): (B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride))."""

    def __init__(self, in_dim: int, dim: int, stride: int, norm_layer: type[nn.Module], act_layer: type[nn.Module]):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False)
        self.norm = norm_layer(dim)
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the convolution."""
        return fold_chain(nn.Sequential(self.conv, self.norm, self.act))


class Stem(nn.Sequential):
    """Four convolution units: (B, in_chans, H, W) -> (B, C, ceil(H/4), ceil(W/4)), in channels-last memory."""

    def __init__(
        self, in_chans: int, dims: Sequence[int], stride: int, norm_layer: type[nn.Module], act_layer: type[nn.Module]
    ):
        widths, strides = (in_chans, *dims, dims[-1]), (2, 1, 1, stride // 2)
        super().__init__(
            *(ConvUnit(widths[i], widths[i + 1], strides[i], norm_layer, act_layer) for i in range(len(strides)))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # in words that `torch.func.vmap` knows too
        return super().forward(x)


class ChannelEmbed(nn.Module):
    """norm(1×1 convolution(2×2 average)): (B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride)).

    At an odd edge the average is over the positions that exist. With stride 1 there is no average, and nothing at all
    if the width stays.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, norm_layer: type[nn.Module]):
        super().__init__()
        changes = stride > 1 or in_dim != dim
        self.pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        self.conv = nn.Conv2d(in_dim, dim, 1, bias=False) if changes else nn.Identity()
        self.norm = norm_layer(dim) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.pool(x)))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the 1×1 convolution, as a linear layer."""
        if not isinstance(self.conv, nn.Conv2d):
            return nn.Identity()
        return nn.Sequential(deepcopy(self.pool), *fold_chain(nn.Sequential(self.conv, self.norm)))


class NextConvBlock(nn.Module):
    """The convolution block (NCB): x + mhca(x), then x + mlp(norm(x)), behind a change of width and size."""

    def __init__(self, in_dim: int, dim: int, stride: int, cfg: NextViTConfig, drop_path: float):
        super().__init__()
        norm_layer, act_layer = NORMS[cfg.norm], ACTIVATIONS[cfg.act]
        self.patch_embed = ChannelEmbed(in_dim, dim, stride, norm_layer)
        self.mhca = MultiHeadConvolutionalAttention(
            dim, head_dim=cfg.head_dim, norm_layer=norm_layer, act_layer=act_layer
        )
        self.attn_drop_path = DropPath(drop_path)
        self.norm = norm_layer(dim)
        self.mlp = _mlp(dim, cfg.conv_mlp_ratio, act_layer)
        self.mlp_drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))."""
        x = self.patch_embed(x)
        x = x + self.attn_drop_path(self.mhca(x))
        return x + self.mlp_drop_path(self.mlp(self.norm(x)))

    def fused(self) -> nn.Module:
        """The inference form: every batch norm folded into the layer before or behind it."""
        return nn.Sequential(
            self.patch_embed.fused(), Residual(self.mhca.fused()), Residual(_fused_mlp(self.norm, self.mlp))
        )


class NextTransformerBlock(nn.Module):
    """The transformer block (NTB): attention on D channels and convolution on the other C - D, then an MLP on all.

    D is r·C rounded to whole heads. r = 1 leaves out the convolution, r = 0 the attention.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, cfg: NextViTConfig, *, sr_ratio: int, drop_path: float):
        super().__init__()
        ratio, norm_layer, act_layer = cfg.mix_ratio, NORMS[cfg.norm], ACTIVATIONS[cfg.act]
        attention_dim = make_divisible(int(dim * ratio), cfg.head_dim) if ratio else 0
        conv_dim = dim - attention_dim
        first_dim = attention_dim or conv_dim
        self.patch_embed = ChannelEmbed(in_dim, first_dim, stride, norm_layer)
        self.has_attention, self.has_convolution = attention_dim > 0, conv_dim > 0
        if self.has_attention:
            self.norm1 = norm_layer(attention_dim)
            self.e_mhsa = EfficientAttention(
                attention_dim,
                head_dim=cfg.head_dim,
                sr_ratio=sr_ratio,
                token_pool=cfg.token_pool,
                norm_layer=norm_layer,
            )
            self.mhsa_drop_path = DropPath(drop_path * ratio)
        if self.has_convolution:
            self.projection = ChannelEmbed(first_dim, conv_dim, 1, norm_layer)
            self.mhca = MultiHeadConvolutionalAttention(
                conv_dim, head_dim=cfg.head_dim, norm_layer=norm_layer, act_layer=act_layer
            )
            self.mhca_drop_path = DropPath(drop_path * (1 - ratio))
        self.norm2 = norm_layer(dim)
        self.mlp = _mlp(dim, cfg.transformer_mlp_ratio, act_layer)
        self.mlp_drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))."""
        x = self.patch_embed(x)
        halves = []
        if self.has_attention:
            x = x + self.mhsa_drop_path(self.e_mhsa(self.norm1(x)))
            halves.append(x)
        if self.has_convolution:
            z = self.projection(x)
            halves.append(z + self.mhca_drop_path(self.mhca(z)))
        x = torch.cat(halves, 1)
        return x + self.mlp_drop_path(self.mlp(self.norm2(x)))

    def fused(self) -> nn.Module:
        """The inference form: every batch norm folded, keys and values from one product."""
        parts: list[nn.Module] = [self.patch_embed.fused()]
        if self.has_attention:
            folds = isinstance(self.norm1, nn.BatchNorm2d)
            attention = self.e_mhsa.fused(self.norm1) if folds else self.e_mhsa.fused()
            parts.append(Residual(attention if folds else nn.Sequential(deepcopy(self.norm1), attention)))
        if self.has_convolution:
            convolution = nn.Sequential(self.projection.fused(), Residual(self.mhca.fused()))
            parts.append(Beside(convolution) if self.has_attention else convolution)
        return nn.Sequential(*parts, Residual(_fused_mlp(self.norm2, self.mlp)))


class TransformerStyleBlock(nn.Module):
    """x + attention(norm(x)) over all positions, then x + mlp(norm(x)) with a GELU MLP of four times the width."""

    def __init__(self, dim: int, head_dim: int, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.attention = EfficientAttention(dim, head_dim=head_dim)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = ConvMlp(dim, 4 * dim, act_layer=nn.GELU)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.drop_path1(self.attention(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


# What table 7 of the paper sets against its convolution block, in the same place: what the field calls by that name,
# with its own norm and activation. ResNet's goes 1×1 to a quarter of the width and back; ConvNeXt's has no layer scale.
OTHER_BLOCKS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "bottleneck": lambda dim, head_dim, rate: Bottleneck(dim, dim // Bottleneck.expansion, drop_path=DropPath(rate)),
    "convnext": lambda dim, head_dim, rate: ConvNeXtBlock(dim, ls_init_value=None, drop_path=rate),
    "transformer": TransformerStyleBlock,
}


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Beside(nn.Module):
    """x and branch(x) side by side in the channels."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


def _mlp(dim: int, ratio: float, act_layer: type[nn.Module]) -> ConvMlp:
    return ConvMlp(dim, make_divisible(dim * ratio, 32), act_layer=act_layer)


def _fused_mlp(norm: nn.Module, mlp: ConvMlp) -> nn.Sequential:
    """mlp(norm(x)) in new modules, a batch norm folded into the first layer."""
    folds = isinstance(norm, nn.BatchNorm2d)
    first = fold_norms_linear([norm] if folds else [], [mlp.fc1])
    layers = [first, deepcopy(mlp.act), Linear2d.from_conv1x1(mlp.fc2)]
    return nn.Sequential(*layers) if folds else nn.Sequential(deepcopy(norm), *layers)


class NextViT(Pyramid):
    """The Next-ViT backbone; the two narrow branches of a transformer block are dropped at r and 1 - r of its rate.

    With `token_pool` "1d" (the authors' arithmetic) the last N mod sr² of a map's N positions are left out of keys and
    values, and a map of fewer than sr² positions cannot be pooled at all.
    """

    family = "nextvit"

    def __init__(self, cfg: NextViTConfig, options: TimmOptions):
        norm_layer, act_layer = NORMS[cfg.norm], ACTIVATIONS[cfg.act]
        trunk_norm = TrunkBatchNorm2d if cfg.norm == "bn" else norm_layer
        dims = [cfg.width(stage, cfg.blocks(stage)[-1]) for stage in range(4)]
        last = max(1, sum(cfg.depths) - 1)
        rates = (options.drop_path_rate * block / last for block in range(sum(cfg.depths)))
        in_dims = (cfg.stem_dims[-1], *dims)
        stages = [
            Stage(
                nn.Identity(),
                list(_blocks(cfg, stage, in_dims[stage], rates)),
                trunk_norm(dims[stage]) if cfg.extra_norm else None,
            )
            for stage in range(4)
        ]
        super().__init__(
            Stem(options.in_chans, cfg.stem_dims, cfg.stem_stride, norm_layer, act_layer),
            stages,
            options,
            dims=dims,
            reductions=[cfg.stem_stride * 2**index for index in range(4)],
            # with extra norms the last stage ends with it
            norm=trunk_norm(dims[-1]) if cfg.final_norm and not cfg.extra_norm else None,
        )
        self.cfg = cfg
        self.pooled_runs = _pooled_runs(cfg)
        self.apply(init_weights)

    @property
    def may_start_fresh(self) -> tuple[str, ...]:
        """The norms that the form for classification has not; of the extra ones the last is its final norm."""
        return tuple(f"stages.{stage}.norm" for stage in range(3)) if self.cfg.extra_norm else ()

    def infer_options(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a checkpoint under our names says about the final norm, which the authors' detectors go without."""
        is_dense = not any(name.startswith("head.") for name in state)
        lacks_norm = self.cfg.final_norm and not self.cfg.extra_norm and "norm.weight" not in state
        return {"final_norm": False} if is_dense and lacks_norm else {}

    @property
    def remark(self) -> str:
        """What a user should know who sees this model listed; empty if nothing."""
        if not self.pooled_runs:
            return ""
        runs = " and ".join(f"{run} at stride {reduction}" for reduction, run in self.pooled_runs)
        return (
            f"token_pool '1d', as the authors': keys and values are averages of runs of positions ({runs}), and the "
            "last positions of a map that fill no run are left out of them; '1d_full' and '2d' leave none out"
        )

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        check_pools(x, self.pooled_runs)


def _blocks(cfg: NextViTConfig, stage: int, in_dim: int, rates: Iterator[float]) -> Iterator[nn.Module]:
    """The blocks of `stage`; the first halves the map except in stage 1. Each takes the next drop path rate."""
    for index, kind in enumerate(cfg.blocks(stage)):
        dim, stride = cfg.width(stage, kind), 2 if stage and not index else 1
        if kind == "T":
            yield NextTransformerBlock(in_dim, dim, stride, cfg, sr_ratio=cfg.sr_ratios[stage], drop_path=next(rates))
        elif cfg.conv_block == "next":
            yield NextConvBlock(in_dim, dim, stride, cfg, next(rates))
        else:
            embed = ChannelEmbed(in_dim, dim, stride, NORMS[cfg.norm])
            yield nn.Sequential(embed, OTHER_BLOCKS[cfg.conv_block](dim, cfg.head_dim, next(rates)))
        in_dim = dim


@register_notrace_function
def check_pools(x: Tensor, pooled_runs: Sequence[tuple[int, int]]) -> None:
    """Refuse images (B, C, H, W) of which a map is shorter than a run that is averaged there.

    Args:
        x: the images.
        pooled_runs: (stride of the map, positions in a run) of every stage that pools whole runs only.

    Raises:
        ValueError: naming the nearest size that works.
    """
    height, width = x.shape[2:]
    for reduction, run in pooled_runs:
        rows, columns = -(-height // reduction), -(-width // reduction)
        if rows * columns < run:
            nearest = _nearest_size(height, width, pooled_runs)
            raise ValueError(
                f"input of {height} x {width} pixels is too small; the nearest size that works is "
                f"{nearest[0]} x {nearest[1]}: token_pool '1d' averages runs of {run} positions, and the map at "
                f"stride {reduction} has {rows} x {columns}; any size works with token_pool '1d_full' or '2d'"
            )


def _nearest_size(height: int, width: int, pooled_runs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size that exceeds this one by the fewest pixels and lets every pool have a whole run."""
    most = max(reduction * run for reduction, run in pooled_runs)
    larger = [
        (h, w)
        for h in range(height, max(height, most) + 1)
        for w in range(width, max(width, most) + 1)
        if all(-(-h // reduction) * -(-w // reduction) >= run for reduction, run in pooled_runs)
    ]
    return min(larger, key=lambda size: (sum(size), max(size)))


def _pooled_runs(cfg: NextViTConfig) -> list[tuple[int, int]]:
    """(stride of the map, positions in a run) of every stage that pools whole runs only."""
    stages = [stage for stage in range(4) if "T" in cfg.blocks(stage) and cfg.mix_ratio and cfg.token_pool == "1d"]
    runs = [(cfg.stem_stride * 2**stage, cfg.sr_ratios[stage] ** 2) for stage in stages]
    return [(reduction, run) for reduction, run in runs if run > 1]


def init_weights(module: nn.Module) -> None:
    """The authors' rule: truncated normal of 0.02 for linear layers and convolutions, biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_SMALL = NextViTConfig()  # table 3 of the paper
_VARIANTS = {
    # For images of 32 to 64 pixels: levels at strides 2, 4, 8, 16. Not in the paper.
    "nextvit_nano": NextViTConfig(
        stem_dims=(32, 16, 32),
        stem_stride=2,
        conv_dims=(32, 48, 96, 144),
        transformer_dims=(48, 64, 128, 192),
        depths=(1, 2, 3, 2),
        convs_per_transformer=(1, 1, 2, 1),
        head_dim=16,
        sr_ratios=(4, 2, 1, 1),
    ),
    "nextvit_small": _SMALL,
    "nextvit_base": replace(_SMALL, depths=(3, 4, 20, 3)),
    "nextvit_large": replace(_SMALL, depths=(3, 4, 30, 3)),
}

register_family(
    __name__,
    NextViT,
    _VARIANTS | {f"{name}_extra_norm": replace(cfg, extra_norm=True) for name, cfg in _VARIANTS.items()},
    image_sizes={"nextvit_nano": 32, "nextvit_nano_extra_norm": 32},
    reductions={"nextvit_nano": 16, "nextvit_nano_extra_norm": 16},
    dense={name: {"extra_norm": True} for name in _VARIANTS}
    | {"nextvit_nano": {"extra_norm": True, "stem_stride": 4}, "nextvit_nano_extra_norm": {"stem_stride": 4}},
    # The authors' detectors have no extra norms: their levels are what blocks give.
    detection={name: {} for name in _VARIANTS} | {"nextvit_nano": {"stem_stride": 4}},
    timm_prefix="convattn_",
    first_conv="stem.0.conv",
)
