"""CoTNet, CoTNeXt and SE-CoTNetD: ResNets whose 3×3 convolutions became contextual transformers.

Paper: "Contextual Transformer Networks for Visual Recognition", Li, Yao, Pan, Mei, 2021, arXiv 2107.12292.
Reference code: github.com/JDAI-CV/CoTNet; written from a description of it.

    stage i: (B, C_in, H, W)
      [ 1×1 -> norm -> ReLU -> mixer -> 1×1 -> norm -> + shortcut -> ReLU ] x depth       the first halves the size
    out: (B, 4·dim, ceil(H/2), ceil(W/2))             mixer: CoT | CoXt | SE convolution | 3×3 convolution

The network is timm's ResNet, with its five levels (the stem is level 0) and its names; the blocks are ours. What is
unusual: CoT never strides, a pool beside it does; no norm or ReLU follows it. SE-CoTNetD has no max pool, its first
stage halves the size instead; "SE" is a convolution with a channel gate in the place of some CoT blocks.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from timm.layers import BlurPool2d, SplitAttn
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.backbones.pyramid import StridedOptions, check_choices, check_stages
from convattn.backbones.registry import register_family
from convattn.backbones.timm_network import TimmNetwork
from convattn.mixers.contextual_transformer import FUSIONS, CoTAttention, CoXtAttention
from convattn.nearest import nearest
from convattn.ops.fold import as_linear, fold_chain

__all__ = ["CoTNet", "CoTNetConfig"]

MIXERS = ("cot", "coxt", "se", "conv")
STEMS = ("conv", "deep", "small")
SHORTCUTS = ("conv", "pool")


@dataclass(frozen=True)
class CoTNetConfig:
    """What a variant of CoTNet is made of; every field is also a keyword of `create_model`."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    dims: tuple[int, ...] = (64, 128, 256, 512)  # a stage gives 4 times as many channels
    width_ratio: float = 1.0  # width of the mixer over the stage's dim
    mixers: tuple[str, ...] = ("cot", "cot", "cot", "cot")  # of each stage; "cot/se": by turns, beginning with CoT
    kernel_size: int = 3  # of CoT
    fusion: str = "attention"  # of the contexts of CoT: attention, sum, dynamic or static
    stem: str = "conv"  # 7×7 of stride 2; "deep": three 3×3; "small": one 3×3 that keeps the size, for small images
    stem_width: int = 64  # of the deep stem's first two convolutions; the third is twice as wide
    stem_pool: bool = True  # max pool behind the stem; without it the first stage halves the size
    shortcut: str = "conv"  # where the size changes: a strided 1×1; "pool": 2×2 average, then 1×1
    blur_pool: bool = False  # blocks halve the size behind their mixer, by a blur, instead of in front of it or in it

    def __post_init__(self) -> None:
        check_stages(self, "depths", "dims", "mixers")
        for stage in self.mixers:
            for mixer in stage.split("/"):
                if mixer not in MIXERS:
                    raise ValueError(f"mixer {mixer!r} is unknown; {nearest(mixer, MIXERS)}")
        check_choices(self, stem=STEMS, shortcut=SHORTCUTS, fusion=FUSIONS)
        usual = CoTNetConfig.stem_width
        if self.stem != "deep" and self.stem_width != usual:
            raise ValueError(f"stem_width {self.stem_width} is of stem 'deep'; with {self.stem!r} leave it at {usual}")

    def mixers_of(self, stage: int) -> list[str]:
        """The mixer of each block of `stage` (0 to 3)."""
        return list(islice(cycle(self.mixers[stage].split("/")), self.depths[stage]))


class Stem(nn.Sequential):
    """Convolutions and norms, the network's ReLU follows; (B, in_chans, H, W) -> (B, C, ceil(H/2), ceil(W/2))."""

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded into the convolutions."""
        return fold_chain(self)


class ConvMixer(nn.Sequential):
    """ResNet's own 3×3 convolution with its norm and ReLU, in the mixer's place."""

    def __init__(self, dim: int, stride: int):
        super().__init__(nn.Conv2d(dim, dim, 3, stride, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(inplace=True))

    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the convolution."""
        return fold_chain(self)


class SEConv(SplitAttn):
    """3×3 convolution whose channels are weighted by the means of its own result (split attention of radix 1)."""

    def __init__(self, dim: int, stride: int):
        super().__init__(dim, stride=stride, radix=1, norm_layer=nn.BatchNorm2d, act_layer=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride)); as timm's for one radix, which wants an image."""
        x = self.act0(self.bn0(self.conv(x)))
        squeezed = self.act1(self.bn1(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * self.fc2(squeezed).sigmoid()

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded into the convolutions."""
        return FusedSEConv(self)


class FusedSEConv(nn.Module):
    """Inference form of `SEConv`."""

    def __init__(self, block: SEConv):
        super().__init__()
        self.conv = fuse_conv_bn_eval(block.conv, block.bn0)
        squeeze, expand = fuse_conv_bn_eval(block.fc1, block.bn1), block.fc2
        self.gate = nn.Sequential(as_linear(squeeze), nn.SiLU(), as_linear(expand), nn.Sigmoid())
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))."""
        x = self.act(self.conv(x))
        return x * self.gate(x.mean((2, 3), keepdim=True))


class MixerBottleneck(nn.Module):
    """ReLU(x' + norm(1×1(mixer(ReLU(norm(1×1(x))))))), x' the shortcut: ResNet's bottleneck around any mixer.

    Names are those of timm's `Bottleneck`, which lacks the places for pools: `pool` stands in front of the mixer
    (B, width, H, W) -> (B, width, H', W'), `blur` behind it.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        pool: nn.Module,
        mixer: nn.Module,
        blur: nn.Module,
        downsample: nn.Module | None = None,
        drop_path: nn.Module | None = None,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.pool = pool
        self.conv2 = mixer
        self.blur = blur
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.drop_path = nn.Identity() if drop_path is None else drop_path
        self.downsample = nn.Identity() if downsample is None else downsample
        self.act3 = nn.ReLU(inplace=True)

    def zero_init_last(self) -> None:
        """Start as the shortcut alone; timm's ResNet calls this."""
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        branch = self.pool(self.act1(self.bn1(self.conv1(x))))
        branch = self.bn3(self.conv3(self.blur(self.conv2(branch))))
        return self.act3(self.drop_path(branch) + self.downsample(x))

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded, 1×1 convolutions as linear layers, the mixer in its own form."""
        return FusedMixerBottleneck(self)


class FusedMixerBottleneck(nn.Module):
    """Inference form of `MixerBottleneck`."""

    def __init__(self, block: MixerBottleneck):
        super().__init__()
        mixer: Any = block.conv2
        shortcut = block.downsample
        self.branch = nn.Sequential(
            as_linear(fuse_conv_bn_eval(block.conv1, block.bn1)),
            nn.ReLU(inplace=True),
            block.pool,
            mixer.fused(),
            block.blur,
            as_linear(fuse_conv_bn_eval(block.conv3, block.bn3)),
        )
        self.downsample = fold_chain(shortcut) if isinstance(shortcut, nn.Sequential) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.branch(x).add_(self.downsample(x)).relu_()


class _BlockMaker:
    """Stands in timm's ResNet where the block class of a stage is expected, and makes each block with its own mixer."""

    expansion = 4

    def __init__(self, cfg: CoTNetConfig, stage: int):
        self.cfg = cfg
        self.mixers: Iterator[str] = iter(cfg.mixers_of(stage))
        self.halves_first = stage == 0 and not cfg.stem_pool

    def __call__(
        self,
        in_channels: int,
        dim: int,
        stride: int,
        downsample: nn.Sequential | None,
        *,
        drop_path: nn.Module | None,
        **others: Any,  # what timm tells its own blocks: dilation, groups, kinds of layers
    ) -> MixerBottleneck:
        cfg = self.cfg
        if self.halves_first and downsample is not None:
            stride = 2
            if cfg.shortcut == "pool":
                downsample[0] = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
            else:
                strided: Any = downsample[0]
                strided.stride = (2, 2)
        width = int(dim * cfg.width_ratio)
        mixer = next(self.mixers)
        strides_itself = mixer in ("se", "conv") and not cfg.blur_pool
        pools_before = stride == 2 and not strides_itself and not cfg.blur_pool
        return MixerBottleneck(
            in_channels,
            width,
            dim * self.expansion,
            pool=nn.AvgPool2d(3, 2, 1) if pools_before else nn.Identity(),
            mixer=_mixer(cfg, mixer, width, stride if strides_itself else 1),
            blur=BlurPool2d(width) if stride == 2 and cfg.blur_pool else nn.Identity(),
            downsample=downsample,
            drop_path=drop_path,
        )


def _mixer(cfg: CoTNetConfig, mixer: str, width: int, stride: int) -> nn.Module:
    if mixer == "se":
        return SEConv(width, stride)
    if mixer == "conv":
        return ConvMixer(width, stride)
    attention = CoTAttention if mixer == "cot" else CoXtAttention
    return attention(width, kernel_size=cfg.kernel_size, fusion=cfg.fusion)


class CoTNet(TimmNetwork, ResNet):
    """The CoTNet backbone; where later stages keep the size nothing is dilated instead, as in the authors' code."""

    family = "cotnet"

    def __init__(self, cfg: CoTNetConfig, options: StridedOptions):
        super().__init__(
            tuple(_BlockMaker(cfg, stage) for stage in range(4)),
            cfg.depths,
            stem_width=cfg.stem_width,
            stem_type="deep" if cfg.stem == "deep" else "",
            avg_down=cfg.shortcut == "pool",
            channels=cfg.dims,
            **vars(options),
        )
        self.cfg = cfg
        if cfg.stem == "small":
            self.conv1 = nn.Conv2d(self.in_chans, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            for level in self.feature_info:
                level["reduction"] //= 2
        if not cfg.stem_pool:
            self.maxpool = nn.Identity()
        # The norm moves beside the convolution it belongs to, so that the two can fold.
        children = dict(self.named_children())
        layers = children["conv1"].named_children() if cfg.stem == "deep" else [("conv", children["conv1"])]
        self.add_module("conv1", Stem(OrderedDict([*layers, ("norm", children["bn1"])])))
        self.add_module("bn1", nn.Identity())
        if cfg.blur_pool:  # it reflects at the border: 2 pixels are the least it takes
            self.min_input_size = self.feature_info[-1]["reduction"] // 2 + 1


_LAYERS: dict[str, Any] = dict(classifier="fc", feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter"))

_COTNEXT = CoTNetConfig(mixers=("coxt",) * 4, width_ratio=1.5)
_SE_COTNETD = CoTNetConfig(mixers=("se", "se", "cot/se", "cot"), stem="deep", stem_pool=False, shortcut="pool")

register_family(
    __name__,
    CoTNet,
    {
        # For images of 32 to 64 pixels: levels at strides 1, 2, 4, 8, 16. Not in the paper.
        "cotnet_nano": CoTNetConfig(depths=(1, 1, 2, 1), dims=(24, 48, 96, 160), stem="small"),
        # The models of the authors' README.
        "cotnet_50": CoTNetConfig(),
        "cotnet_101": CoTNetConfig(depths=(3, 4, 23, 3)),
        "cotnext_50": _COTNEXT,
        "cotnext_101": replace(_COTNEXT, depths=(3, 4, 23, 3)),
    },
    image_sizes={"cotnet_nano": 32},
    reductions={"cotnet_nano": 16},
    dense={"cotnet_nano": {"stem": "conv"}},
    first_conv="conv1.conv",
    **_LAYERS,
)
register_family(
    __name__,
    CoTNet,
    {
        "se_cotnetd_50": replace(_SE_COTNETD, stem_width=32),
        "se_cotnetd_101": replace(_SE_COTNETD, depths=(3, 4, 23, 3)),
        "se_cotnetd_152": replace(_SE_COTNETD, depths=(3, 8, 36, 3), blur_pool=True),
    },
    first_conv="conv1.0",
    **_LAYERS,
)
