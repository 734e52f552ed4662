"""MobileNetV2 with deformable attention gates (DAS).

Paper: "DAS: A Deformable Attention to Capture Salient Information in CNNs", Salajegheh, Asadi, Saryazdi, Mudur, arXiv
2311.12091; no code or weights of the authors are public. The network is timm's `mobilenetv2_100`.

    image -> stem /2 -> [ group of inverted residuals -> gate ] x 7 -> 1x1 to 1280 -> mean -> classifier

A gate becomes the next index of its group, so every weight of the plain network keeps its name. Which groups the
authors gated is not written; seven gates give their printed 0.35 G multiply-adds, and so do two choices of fewer.
"""

from dataclasses import dataclass
from functools import partial

from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from convattn.backbones.das import GateOptions
from convattn.backbones.pyramid import StridedOptions
from convattn.backbones.registry import register_family
from convattn.backbones.timm_network import TimmNetwork

__all__ = ["DASMobileNetV2", "DASMobileNetV2Config"]

# Which of the groups of 16, 24, 32, 64, 96, 160 and 320 channels are gated.
GATED_GROUPS = {
    "seven": (1, 2, 3, 4, 5, 6, 7),
    "strides": (2, 3, 5, 7),  # the last group of each stride from 4 on: 24, 32, 96, 320
    "early_strides": (1, 2, 3, 5),  # of each stride but the last: 16, 24, 32, 96
    "all_strides": (1, 2, 3, 5, 7),  # 16, 24, 32, 96, 320
}

# Per group: kind, stride, expansion, channels (table 2 of MobileNetV2, arXiv 1801.04381).
_GROUPS = (
    ("ds", 1, 1, 16),
    ("ir", 2, 6, 24),
    ("ir", 2, 6, 32),
    ("ir", 2, 6, 64),
    ("ir", 1, 6, 96),
    ("ir", 2, 6, 160),
    ("ir", 1, 6, 320),
)


@dataclass(frozen=True)
class DASMobileNetV2Config(GateOptions):
    """What the model is made of; every field is also a keyword of `create_model`."""

    depths: tuple[int, ...] = (1, 2, 3, 4, 3, 3, 1)
    channel_multiplier: float = 1.0  # of every width but the last; rounded to multiples of 8
    head_dim: int = 1280  # channels in front of the classifier
    gated_groups: str | tuple[int, ...] = "seven"  # a key of GATED_GROUPS, or numbers of groups from 1 to 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != 7 or min(self.depths) < 1:
            raise ValueError(f"depths {self.depths} need 7 entries of 1 or more")
        if self.channel_multiplier <= 0:
            raise ValueError(f"channel_multiplier {self.channel_multiplier} must be above 0")
        if isinstance(self.gated_groups, str) and self.gated_groups not in GATED_GROUPS:
            raise ValueError(
                f"gated_groups {self.gated_groups!r} is unknown; choose one of {', '.join(GATED_GROUPS)}, or numbers"
            )
        if not set(self.group_numbers) <= set(range(1, 8)):
            raise ValueError(f"gated_groups {self.gated_groups} must be some of 1 to 7")

    @property
    def group_numbers(self) -> tuple[int, ...]:
        """The gated groups, counted from 1."""
        return GATED_GROUPS[self.gated_groups] if isinstance(self.gated_groups, str) else self.gated_groups


class DASMobileNetV2(TimmNetwork, EfficientNet):
    """timm's MobileNetV2 with gates behind its groups; stages that keep the size dilate."""

    family = "das"

    def __init__(self, cfg: DASMobileNetV2Config, options: StridedOptions):
        groups = zip(_GROUPS, cfg.depths, strict=True)
        layers = [[f"{kind}_r{depth}_k3_s{stride}_e{ratio}_c{dim}"] for (kind, stride, ratio, dim), depth in groups]
        super().__init__(
            decode_arch_def(layers),
            num_features=cfg.head_dim,
            round_chs_fn=partial(round_channels, multiplier=cfg.channel_multiplier),
            act_layer=nn.ReLU6,
            **vars(options),
        )
        self.cfg = cfg
        for number in cfg.group_numbers:
            group: nn.Sequential = self.get_submodule(f"blocks.{number - 1}")
            dim = round_channels(_GROUPS[number - 1][3], multiplier=cfg.channel_multiplier)
            group.append(cfg.build_gate(dim))

    def _sequences(self) -> list[nn.Sequential]:
        return [*self.blocks]


register_family(
    __name__,
    DASMobileNetV2,
    {"mobilenetv2_das": DASMobileNetV2Config()},  # Table 1 of the paper
    first_conv="conv_stem",
    classifier="classifier",
    feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter", flatten_sequential=True),
)
