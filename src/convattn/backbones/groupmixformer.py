"""GroupMixFormer: attention between groups of tokens of several sizes, in every stage, at linear cost.

Paper: "Advancing Vision Transformers with Group-Mix Attention", Ge, Ding, Tong, Yuan, Wang, Song, Luo, 2023,
arXiv 2311.15157.
Reference code: github.com/AILab-CVC/GroupMixFormer (MIT); written from a description of it.

    stage i: (B, C_in, H, W)
      separable 3×3 (stage 1: /1, others /2) -> batch norm -> act
      [ x + depthwise 3×3 of x -> + attention(norm) -> + mlp(norm) ] x depth
    out: (B, C_out, ceil(H/2), ceil(W/2))

What is unusual: a level of the pyramid is not normalised, and its scale grows with depth; only the classifier has a
(batch) norm of its own. The code has two position codes by convolution that the paper does not mention. The authors'
code takes only sizes whose quarter, rounded up, is a multiple of 8; here any size works, with equal results at theirs.
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.backbones.pyramid import Pyramid, Stage, TimmOptions, check_stages
from convattn.backbones.registry import register_family
from convattn.mixers.group_mix_attention import GroupMixAttention
from convattn.mixers.registry import create_mixer
from convattn.ops.fold import TrunkBatchNorm2d, add_identity_tap
from convattn.ops.linear import Linear2d

__all__ = ["GroupMixFormer", "GroupMixFormerConfig"]


Options = Mapping[str, Any]
_OF_GMA = ("aggregators", "kernels", "non_attention_kernel", "pool_pointwise", "placement")


@dataclass(frozen=True)
class GroupMixFormerConfig:
    """What a variant of GroupMixFormer is made of; every field is also a keyword of `create_model`."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    aggregators: str | tuple[str, ...] = "dwconv"  # or avg, max, min, identity, off; one for all, or one a segment
    kernels: tuple[int, ...] | tuple[tuple[int, ...], ...] = (3, 5, 7)  # of segments 1 to 3; or four such, one a stage
    non_attention_kernel: int = 3
    pool_pointwise: bool = False  # a 1×1 convolution behind pooling aggregators, too
    placement: str = "inside"  # of the aggregators: on q, k and v; "before": once in front of a plain attention
    attention: str = "gma"  # or any other mixer by name, such as window_mhsa and sr_mhsa of the paper's table 7
    # Of another attention (those above are GMA's): for all, or four, one a stage, of which the blocks of a stage take
    # several by turns, as in `({"sr_ratio": 8}, {"sr_ratio": 4}, {}, {})` or `[[{}, {"shift": True}]] * 4`.
    attention_options: Options | Sequence[Options | Sequence[Options]] = field(default_factory=dict)
    level_norm: bool = False  # levels leave with a layer norm (without weights); the path between stages stays
    stem_stride: int = 4  # 4, or 2 for small images

    def __post_init__(self) -> None:
        check_stages(self, "dims", "depths", "mlp_ratios")
        if self.dims[0] % 2:
            raise ValueError(f"dim {self.dims[0]} of stage 1 must be even: the stem is half as wide inside")
        if min(self.mlp_ratios) <= 0:
            raise ValueError(f"mlp_ratios {self.mlp_ratios} must be above 0")
        if len(self.kernels) != (3 if all(isinstance(kernel, int) for kernel in self.kernels) else 4):
            raise ValueError(f"kernels {self.kernels} must be 3, of segments 1, 2 and 3, or 4 times 3, one a stage")

        if self.attention == "gma" and self.attention_options:
            raise ValueError(f"attention_options {self.attention_options} are of an attention other than gma")
        if not isinstance(self.attention_options, Mapping) and len(self.attention_options) != 4:
            raise ValueError(f"attention_options {self.attention_options} must be one for all, or four, one a stage")
        default = {field.name: field.default for field in fields(self)}
        set_here = [name for name in _OF_GMA if getattr(self, name) != default[name]]
        if self.attention != "gma" and set_here:
            raise ValueError(f"{', '.join(set_here)} of gma: attention {self.attention!r} has no such; leave it out")

    def stage_kernels(self, stage: int) -> tuple[int, ...]:
        """Kernels of segments 1, 2 and 3 in `stage` (0 to 3)."""
        of_stage = self.kernels[stage] if not isinstance(self.kernels[0], int) else self.kernels
        return tuple(of_stage)

    def block_options(self, stage: int, block: int) -> Options:
        """Options of another attention than GMA in a block of `stage`, both from 0."""
        of_all = self.attention_options
        of_stage = of_all if isinstance(of_all, Mapping) else of_all[stage]
        return of_stage if isinstance(of_stage, Mapping) else of_stage[block % len(of_stage)]


class Stem(nn.Module):
    """Two 3×3 convolutions: (B, in_chans, H, W) -> (B, C, ceil(H/4), ceil(W/4)), or half the size with `stride` 2."""

    def __init__(self, in_chans: int, dim: int, stride: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride // 2, 1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded into the convolutions."""
        conv1, conv2 = fuse_conv_bn_eval(self.conv1, self.norm1), fuse_conv_bn_eval(self.conv2, self.norm2)
        return nn.Sequential(conv1, deepcopy(self.act), conv2, deepcopy(self.act))


class PatchEmbedding(nn.Module):
    """Separable 3×3 convolution, norm and activation: (B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride))."""

    def __init__(self, in_dim: int, dim: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(in_dim, in_dim, 3, stride, 1, groups=in_dim, bias=False)
        self.pointwise = nn.Conv2d(in_dim, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.pointwise(self.depthwise(x))))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the pointwise convolution."""
        pointwise = Linear2d.from_conv1x1(fuse_conv_bn_eval(self.pointwise, self.norm))
        return nn.Sequential(deepcopy(self.depthwise), pointwise, deepcopy(self.act))


class PositionEncoding(nn.Module):
    """x + conv(x), a depthwise 3×3 on the stream itself; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)

    def fused(self) -> nn.Module:
        """The inference form: the addition becomes a 1 in the centre tap of the convolution."""
        return add_identity_tap(self.conv)


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))); (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear2d(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = Linear2d(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))

    def fused(self) -> nn.Module:
        """The inference form: layers in a row, so that an activation can join the layer in front of it."""
        return nn.Sequential(deepcopy(self.fc1), deepcopy(self.act), deepcopy(self.fc2))


class Block(nn.Module):
    """x + position(x), then + attention(norm1(x)), then + mlp(norm2(x)), the last two under their own drop path."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float, *, drop_path: float):
        super().__init__()
        self.position = PositionEncoding(dim)
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.token_mixer = mixer
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.channel_mixer = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path1(self.token_mixer(self.norm1(x)))
        return x + self.drop_path2(self.channel_mixer(self.norm2(x)))


class GroupMixFormer(Pyramid):
    """The GroupMixFormer backbone: a variant, and what every network takes."""

    family = "groupmixformer"

    def __init__(self, cfg: GroupMixFormerConfig, options: TimmOptions):
        last = max(1, sum(cfg.depths) - 1)
        rates = (options.drop_path_rate * block / last for block in range(sum(cfg.depths)))
        stages = []
        for index, dim in enumerate(cfg.dims):
            blocks = [
                Block(_attention(cfg, index, block), dim, cfg.mlp_ratios[index], drop_path=next(rates))
                for block in range(cfg.depths[index])
            ]
            embedding = PatchEmbedding(cfg.dims[max(0, index - 1)], dim, stride=2 if index else 1)
            stages.append(Stage(embedding, blocks))
        super().__init__(
            Stem(options.in_chans, cfg.dims[0], cfg.stem_stride),
            stages,
            options,
            dims=cfg.dims,
            reductions=[cfg.stem_stride * 2**index for index in range(4)],
            norm=TrunkBatchNorm2d(cfg.dims[-1]),
        )
        self.cfg = cfg
        norms = (LayerNorm2d(dim, eps=1e-6, affine=False) if cfg.level_norm else nn.Identity() for dim in cfg.dims)
        self.level_norms = nn.ModuleList(norms)
        self.apply(init_weights)

    def _as_level(self, index: int, x: Tensor) -> Tensor:
        return self.level_norms[index](x)

    def infer_options(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Widths, depths and MLP ratios that a checkpoint under our names has, where they differ from this model's."""
        first = "stages.{}.blocks.0.{}.weight"
        if any(first.format(stage, "token_mixer.aggregator.non_attention.mix") not in state for stage in range(4)):
            return {}  # not of this family
        shapes = [tuple(state[first.format(stage, "channel_mixer.fc1")].shape) for stage in range(4)]
        norms = [re.fullmatch(r"stages\.(\d)\.blocks\.\d+\.norm1\.weight", name) for name in state]
        stages = [int(match[1]) for match in norms if match]
        found = {
            "dims": tuple(dim for _, dim in shapes),
            "depths": tuple(stages.count(stage) for stage in range(4)),
            "mlp_ratios": tuple(hidden // dim if hidden % dim == 0 else hidden / dim for hidden, dim in shapes),
        }
        return {key: value for key, value in found.items() if value != tuple(getattr(self.cfg, key))}


def _attention(cfg: GroupMixFormerConfig, stage: int, block: int) -> nn.Module:
    if cfg.attention != "gma":
        return create_mixer(cfg.attention, cfg.dims[stage], **cfg.block_options(stage, block))
    return GroupMixAttention(
        cfg.dims[stage],
        aggregators=cfg.aggregators,
        kernels=cfg.stage_kernels(stage),
        non_attention_kernel=cfg.non_attention_kernel,
        pool_pointwise=cfg.pool_pointwise,
        placement=cfg.placement,
    )


def init_weights(module: nn.Module) -> None:
    """The authors' rule: truncated normal of 0.02 for linear layers; convolutions and norms keep PyTorch's defaults."""
    if isinstance(module, nn.Linear | Linear2d):
        trunc_normal_(module.weight, std=0.02, a=-2.0, b=2.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


register_family(
    __name__,
    GroupMixFormer,
    {
        # For images of 32 to 64 pixels: levels at strides 2, 4, 8, 16. Not in the paper.
        "groupmixformer_nano": GroupMixFormerConfig((40, 80, 120, 160), (1, 1, 3, 1), stem_stride=2),
        # Table 1 of the paper; mobile is `miny` in the authors' files.
        "groupmixformer_mobile": GroupMixFormerConfig((40, 80, 160, 160), (3, 3, 12, 4)),
        "groupmixformer_tiny": GroupMixFormerConfig((80, 160, 200, 240), (4, 4, 12, 4)),
        "groupmixformer_small": GroupMixFormerConfig((80, 160, 320, 320), (2, 4, 12, 4)),
        "groupmixformer_base": GroupMixFormerConfig((200, 240, 320, 480), (8, 8, 12, 8), (2, 2, 4, 4)),
        # As in the authors' configuration, which has not the published size (70.3 M); see `infer_options`.
        "groupmixformer_large": GroupMixFormerConfig((240, 320, 360, 480), (8, 10, 30, 10), (4, 4, 2, 2)),
    },
    image_sizes={"groupmixformer_nano": 32},
    reductions={"groupmixformer_nano": 16},
    dense={"groupmixformer_nano": {"stem_stride": 4}},
)
