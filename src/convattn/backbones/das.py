"""ResNets with deformable attention gates (DAS).

Paper: "DAS: A Deformable Attention to Capture Salient Information in CNNs", Salajegheh, Asadi, Saryazdi, Mudur, arXiv
2311.12091; no code or weights of the authors are public. The network is timm's ResNet, torchvision's in every number
and name.

    image -> stem /4 -> layer1 -> gate -> layer2 /2 -> gate -> layer3 /2 -> gate -> layer4 /2 -> gate -> mean -> fc
    gate: x · sigmoid(…), a weight between 0 and 1 for every element (mixers/deformable_gate.py)

A gate becomes the next index of its stage, so every weight of the plain network keeps its name and an ordinary
checkpoint lacks exactly the gates. The levels of the pyramid are the gated maps.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from convattn.backbones.pyramid import StridedOptions, check_choices
from convattn.backbones.registry import register_family
from convattn.backbones.timm_network import TimmNetwork
from convattn.mixers.deformable_gate import ABLATIONS
from convattn.mixers.registry import create_mixer
from convattn.ops.deformable import Sampling

__all__ = ["DASResNet", "DASResNetConfig", "GateOptions"]

BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
FORMS = ("a", "b", *ABLATIONS)


@dataclass(frozen=True)
class GateOptions:
    """Options of every gate in a network; each but `form` is a keyword of `DeformableGate`."""

    form: str = "c"  # row of the paper's ablation, a to h; c is the gate as published
    alpha: float = 0.2  # width of the gate's context over its channels
    kernel_size: int = 3  # of the deformable convolution
    modulated: bool = True
    norm1: str = "in"
    norm1_affine: bool = False
    norm2: str = "ln"
    compress: bool = True
    mixer: str = "deform"
    gate: bool = True
    init: Literal["paper", "identity"] = "paper"
    sampling: Sampling = "auto"

    def __post_init__(self) -> None:
        check_choices(self, form=FORMS)
        for name, value in ABLATIONS.get(self.form, {}).items():
            if name in self.given:
                raise ValueError(f"form {self.form!r} sets {name} to {value!r}; leave out {name} {self.given[name]!r}")

    @property
    def given(self) -> dict[str, Any]:
        """The options of the gate that are not at their default."""
        gate = (field for field in fields(GateOptions) if field.name != "form")
        return {field.name: getattr(self, field.name) for field in gate if getattr(self, field.name) != field.default}

    def build_gate(self, dim: int) -> nn.Module:
        """A gate for maps of `dim` channels."""
        return create_mixer("das" if self.form == "c" else f"das_{self.form}", dim, **self.given)


@dataclass(frozen=True)
class DASResNetConfig(GateOptions):
    """What a variant is made of; every field is also a keyword of `create_model`."""

    block: str = "bottleneck"  # "basic" or "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    dims: tuple[int, ...] = (64, 128, 256, 512)  # a bottleneck puts out four times as many channels
    stem: str = "imagenet"  # 7×3 stride 2 and max pooling; "cifar": 3×3 stride 1 and no pooling
    where: str = "stages"  # a gate behind the last block of each stage, or behind all "blocks"
    gated_stages: tuple[int, ...] = (1, 2, 3, 4)
    pre_act: bool = False  # gates in front of the last ReLU of their block, behind the addition, instead of after it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.dims) == len(self.depths) == 4 or min(self.depths) < 1:
            raise ValueError(f"dims {self.dims} and depths {self.depths} need 4 entries, depths of 1 or more")
        check_choices(self, block=BLOCKS, stem=("imagenet", "cifar"), where=("stages", "blocks"))
        if not set(self.gated_stages) <= {1, 2, 3, 4}:
            raise ValueError(f"gated_stages {self.gated_stages} must be some of 1, 2, 3, 4")


class DASResNet(TimmNetwork, ResNet):
    """timm's ResNet with gates behind its stages; stages that keep the size dilate."""

    family = "das"

    def __init__(self, cfg: DASResNetConfig, options: StridedOptions):
        super().__init__(BLOCKS[cfg.block], cfg.depths, channels=cfg.dims, **vars(options))
        self.cfg = cfg
        if cfg.stem == "cifar":
            self._shrink_stem()
        for number in cfg.gated_stages:
            self._gate_stage(self.get_submodule(f"layer{number}"))

    def _shrink_stem(self) -> None:
        """The stem for images of about 32 pixels; its output then has the stride of layer1 and is no level."""
        width = self.bn1.num_features
        self.conv1 = nn.Conv2d(self.in_chans, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.hidden_levels = 1
        self.feature_info = [info | {"reduction": info["reduction"] // 4} for info in self.feature_info[1:]]

    def _gate_stage(self, stage: nn.Sequential) -> None:
        cfg: DASResNetConfig = self.cfg
        blocks = [stage[-1]] if cfg.where == "stages" else list(stage)
        for block in blocks:
            last = "2" if cfg.block == "basic" else "3"
            act = f"act{last}"
            gate = cfg.build_gate(block.get_parameter(f"bn{last}.weight").numel())
            if cfg.pre_act:
                setattr(block, act, nn.Sequential(gate, getattr(block, act)))
            elif cfg.where == "blocks":
                setattr(block, act, nn.Sequential(getattr(block, act), gate))
            else:
                stage.append(gate)


register_family(
    __name__,
    DASResNet,
    {
        # Table 1 of the paper.
        "resnet18_das": DASResNetConfig(block="basic", depths=(2, 2, 2, 2)),
        "resnet34_das": DASResNetConfig(block="basic"),
        "resnet50_das": DASResNetConfig(),
        "resnet101_das": DASResNetConfig(depths=(3, 4, 23, 3)),
    },
    first_conv="conv1",
    classifier="fc",
    feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls="getter"),
)
register_family(
    __name__,
    DASResNet,
    {
        # CIFAR-100. The paper names no stem; with the other one a 32-pixel image would end as a single position.
        "resnet18_das_cifar": DASResNetConfig(block="basic", depths=(2, 2, 2, 2), stem="cifar"),
        "resnet50_das_cifar": DASResNetConfig(stem="cifar"),
    },
    image_sizes={"resnet18_das_cifar": 32, "resnet50_das_cifar": 32},
    reductions={"resnet18_das_cifar": 8, "resnet50_das_cifar": 8},
    first_conv="conv1",
    classifier="fc",
    feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
)
