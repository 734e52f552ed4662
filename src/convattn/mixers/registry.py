"""Mixers by name: this package's own, and timm's attentions for convolutional networks.

Every one maps (B, C, H, W) to (B, C, H, W). A gate hands its input on, weighted position by position or channel by
channel; any other computes new values, and stands beside a shortcut where it is put behind something.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import create_attn
from timm.layers.create_attn import get_attn
from torch import nn

from convattn.mixers.bottleneck_attention import BottleneckAttention
from convattn.mixers.contextual_transformer import CoTAttention, CoXtAttention
from convattn.mixers.deformable_gate import ABLATIONS, DeformableGate
from convattn.mixers.efficient_attention import EfficientAttention
from convattn.mixers.group_mix_attention import GroupMixAttention, SegmentConvs
from convattn.mixers.multi_head_convolutional_attention import MultiHeadConvolutionalAttention
from convattn.mixers.sampled_grid import SampledFusion, SampledGate
from convattn.mixers.scale_aware_modulation import ScaleAwareModulation
from convattn.mixers.spatial_reduction_attention import SpatialReductionAttention
from convattn.mixers.triplet_attention import TripletAttention
from convattn.mixers.window_attention import WindowAttention
from convattn.nearest import nearest

__all__ = ["check_mixer", "create_identity", "create_mixer", "is_gate", "is_gate_module", "list_mixers"]


def _identity_context(dim: int, **options: Any) -> nn.Module:
    """timm's additive context; it starts with weights of 0 in the last layer, but not the bias."""
    block = create_attn("gca", dim, **options)
    nn.init.zeros_(block.get_parameter("mlp_add.fc2.bias"))
    return block


@dataclass(frozen=True)
class MixerKind:
    """What the package knows of a mixer."""

    build: Callable[..., nn.Module]  # called as `build(dim, **options)`
    is_gate: bool = False  # whether its output takes the place of its input
    build_identity: Callable[..., nn.Module] | None = None  # of one that starts so; else a scale of 0 goes behind it
    without: tuple[str, ...] = ()  # parameters of `build` that would have no effect

    @property
    def options(self) -> set[str]:
        """The names of its options."""
        _, *parameters = inspect.signature(self.build).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return {p.name for p in parameters if p.kind in named} - {"device", "dtype", *self.without}


def _deformable_gate(**form: Any) -> MixerKind:
    """The gate of DAS in one of its forms; a form without a gate puts new values in the place of the map."""
    starts_as_identity = form.get("gate", True)
    return MixerKind(
        partial(DeformableGate, **form),
        is_gate=True,
        build_identity=partial(DeformableGate, init="identity", **form) if starts_as_identity else None,
    )


_OWN = {
    "sam": MixerKind(ScaleAwareModulation),
    "gma": MixerKind(GroupMixAttention),
    "group_aggregator": MixerKind(SegmentConvs),
    "mhca": MixerKind(MultiHeadConvolutionalAttention),
    "e_mhsa": MixerKind(EfficientAttention),
    "sr_mhsa": MixerKind(SpatialReductionAttention),
    "window_mhsa": MixerKind(WindowAttention),
    "cot": MixerKind(CoTAttention),
    "coxt": MixerKind(CoXtAttention),
    "das": _deformable_gate(),
    "das_dw": _deformable_gate(mixer="deform_dw"),
    "das_a": MixerKind(SampledFusion, is_gate=True),  # a to h but c, which is "das": rows of the paper's ablation
    "das_b": MixerKind(SampledGate, is_gate=True),
    **{f"das_{row}": _deformable_gate(**form) for row, form in ABLATIONS.items() if row != "c"},
    "triplet": MixerKind(TripletAttention, is_gate=True),
    "bam": MixerKind(BottleneckAttention, is_gate=True),
}

# Those of timm that keep the size and need no fixed one. `sk` and `splat` are convolutions with attention inside.
_GATES = ("se", "ese", "eca", "ecam", "ceca", "ge", "gc", "cbam", "lcbam", "coord", "scoord", "ela", "strip", "bat")
# timm's channel attentions by one kernel take its size from the width, and pass over what they are told.
_WITHOUT = dict.fromkeys(("eca", "ecam", "ceca"), ("kernel_size",))
_TIMM = {
    **{name: MixerKind(get_attn(name), is_gate=True, without=_WITHOUT.get(name, ())) for name in _GATES},
    "gca": MixerKind(get_attn("gca"), is_gate=True, build_identity=_identity_context),
    "nl": MixerKind(get_attn("nl"), is_gate=True, build_identity=get_attn("nl")),  # its last norm has weights of 0
    "sk": MixerKind(get_attn("sk")),
    "splat": MixerKind(get_attn("splat")),
}

# timm's gather-excite with its multi-layer perceptron passes an argument twice and fails (1.0.31).
_TIMM_DEFAULTS: dict[str, dict[str, Any]] = {"ge": {"use_mlp": False}}

_MIXERS = _TIMM | _OWN


def list_mixers() -> list[str]:
    """The names that `create_mixer` takes, sorted."""
    return sorted(_MIXERS)


def create_mixer(name: str, dim: int, **options: Any) -> nn.Module:
    """A fresh mixer for maps of `dim` channels: (B, dim, H, W) -> (B, dim, H, W).

    Args:
        name: one of `list_mixers()`.
        dim: channels of input and output.
        **options: of its class, or of timm's.

    Raises:
        ValueError: for an unknown name or option (naming the nearest), or a width that does not divide as it must.
    """
    check_mixer(name, options)
    if name in _TIMM:
        return create_attn(name, dim, **{**_TIMM_DEFAULTS.get(name, {}), **options})
    return _OWN[name].build(dim, **options)


def check_mixer(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown mixer or option, before anything is built, by a ValueError that names the nearest."""
    if not isinstance(name, str):
        raise ValueError(f"mixer is a {type(name).__name__}; give a name: {', '.join(list_mixers())}")
    if name not in _MIXERS:
        raise ValueError(f"unknown mixer {name!r}; {nearest(name, _MIXERS)}")
    known = _MIXERS[name].options
    for option in options:
        if option not in known:
            raise ValueError(f"unknown option {option!r} of mixer {name}; {nearest(option, known)}")


def is_gate(name: str) -> bool:
    """Whether the mixer's output takes the place of its input, instead of being added to it."""
    return _MIXERS[name].is_gate


def is_gate_module(module: nn.Module) -> bool:
    """Whether it is one of the mixers that are gates, wherever it stands."""
    builds = (getattr(kind.build, "func", kind.build) for kind in _MIXERS.values() if kind.is_gate)
    return isinstance(module, tuple({build for build in builds if isinstance(build, type)}))


def create_identity(name: str, dim: int, **options: Any) -> nn.Module | None:
    """A mixer that starts as the identity by itself, or None: put a scale of 0 behind an ordinary one.

    Raises:
        ValueError: as `create_mixer` does.
    """
    check_mixer(name, options)
    build = _MIXERS[name].build_identity
    return build(dim, **options) if build else None
