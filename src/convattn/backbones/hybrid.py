"""Hybrid: a pyramid whose stages use any of the mixers, by name; not from a paper.

    stage i: (B, C_in, H, W)
      3x3 convolution /2 -> norm -> [ mixer -> channel MLP with a depthwise 3x3 ] x depth -> norm
    out: (B, C_out, ceil(H/2), ceil(W/2))          mixers of the stage by turns

The skeleton is SMT's, so that combinations differ in their mixers only:

    create_model("hybrid", mixers=("das", "cot", "sam+e_mhsa", "e_mhsa"), mixer_options={"e_mhsa": {"sr_ratio": 2}})

Each mixer stands in a residual branch behind a norm, a gate as well. Mixers start as their papers say; the other layers
as SMT's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import calculate_drop_path_rates
from torch import nn

from convattn.backbones.pyramid import Pyramid, TimmOptions, check_stages
from convattn.backbones.registry import register_family
from convattn.backbones.smt import Block, init_weights, stem_and_stages
from convattn.mixers.registry import check_mixer, create_mixer

__all__ = ["Hybrid", "HybridConfig"]


@dataclass(frozen=True)
class HybridConfig:
    """What a hybrid is made of; every field is also a keyword of `create_model`."""

    mixers: tuple[str, ...] = ("sam", "cot", "cot+e_mhsa", "e_mhsa")  # of each stage; "a+b": by turns
    mixer_options: Mapping[str, Mapping[str, Any]] | tuple[Mapping[str, Mapping[str, Any]], ...] = ()
    # mixer -> its options: one mapping for all stages, or one for each
    dims: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    stem_kernel: int = 3
    stem_stride: int = 4  # 4, or 2 for small images
    layer_scale_init: float = 0.0  # initial value of the scales; 0: no layer scale

    def __post_init__(self) -> None:
        for field in ("mixers", "dims", "depths", "mlp_ratios"):
            if len(getattr(self, field)) != 4:
                raise ValueError(f"{field} {getattr(self, field)} must have 4 entries, one a stage")
        check_stages(self, "dims", "depths")
        if not isinstance(self.mixer_options, Mapping) and len(self.mixer_options) not in (0, 4):
            raise ValueError(
                f"mixer_options has {len(self.mixer_options)} entries; give one mapping, or 4, one a stage"
            )
        used = {name for names in self.mixers for name in names.split("+")}
        for stage in range(4):
            for name in self.mixers[stage].split("+"):
                check_mixer(name, self.options(stage, name))
            for name in self._options(stage):
                if name not in used:
                    raise ValueError(
                        f"mixer_options names {name!r}, which no stage uses; they use {', '.join(sorted(used))}"
                    )

    def mixer(self, stage: int, block: int) -> str:
        """The name of the mixer of a block (both counted from 0)."""
        names = self.mixers[stage].split("+")
        return names[block % len(names)]

    def options(self, stage: int, mixer: str) -> Mapping[str, Any]:
        """The options of a mixer in a stage."""
        return self._options(stage).get(mixer, {})

    def _options(self, stage: int) -> Mapping[str, Mapping[str, Any]]:
        if isinstance(self.mixer_options, Mapping):
            return self.mixer_options
        return self.mixer_options[stage] if self.mixer_options else {}


class Hybrid(Pyramid):
    """A pyramid of any mixers.

    Raises:
        ValueError: for an unknown mixer or option, or a width that a mixer cannot take, naming the stage.
    """

    min_input_size = 4

    def __init__(self, cfg: HybridConfig, options: TimmOptions):
        rates = calculate_drop_path_rates(options.drop_path_rate, sum(cfg.depths))
        super().__init__(
            *stem_and_stages(cfg, options.in_chans, partial(_mixer, cfg), iter(rates)),
            options,
            dims=cfg.dims,
            reductions=[cfg.stem_stride * 2**index for index in range(4)],
        )
        self.cfg = cfg
        mixers = {
            part for module in self.modules() if isinstance(module, Block) for part in module.token_mixer.modules()
        }
        for module in self.modules():
            if module not in mixers:
                init_weights(module)


def _mixer(cfg: HybridConfig, stage: int, block: int) -> nn.Module:
    name = cfg.mixer(stage, block)
    try:
        return create_mixer(name, cfg.dims[stage], **cfg.options(stage, name))
    except ValueError as error:
        raise ValueError(f"stage {stage}: mixer {name} of {cfg.dims[stage]} channels: {error}") from None


register_family(__name__, Hybrid, {"hybrid": HybridConfig()})
