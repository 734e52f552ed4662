"""The networks that a search may compose: `hybrid` pyramids, stage by stage.

    a stage: one mixer, or two by turns · depth · width in units that they take · MLP ratio · reduction of the keys

What follows from the rest is fixed: heads are as wide as divides the width, windows as the map, and images up to 64
pixels are halved by the stem instead of quartered. Widths and depths are drawn evenly on a logarithmic scale, so that
small networks, which tight limits ask for, are not rare.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from math import log10
from typing import Any

import torch

from convattn.config_errors import ConfigError, check
from convattn.mixers.registry import check_mixer, create_mixer, list_mixers
from convattn.nearest import UnknownName, nearest

__all__ = ["MIXERS", "MODEL", "Space"]

MODEL = "hybrid"
MIXERS = ("sam", "gma", "e_mhsa", "mhca", "cot", "das", "window_mhsa")

_STAGES = range(4)
_UNITS = (8, 16, 32, 40, 80)  # of widths: the first that the mixers of a stage take
_WIDEST = (160, 320, 480, 640)
_DEEPEST = 6
_MLP_RATIOS = (1, 2, 3, 4)
_REDUCTIONS = (1, 2, 4)
_HEADS = (32, 16, 8)  # channels of a head: the first that divides the width
_WINDOW = 7
_SMALL = 64  # pixels


@dataclass(frozen=True)
class Space:
    """What may vary.

    Args:
        mixers: of `list_mixers()`.
        image_side: shorter side of the images, pixels.

    Raises:
        UnknownName: for a mixer that does not exist, naming the nearest. ConfigError: for none, or one that takes no
            width of the space.
    """

    mixers: tuple[str, ...] = MIXERS
    image_side: int = 224

    def __post_init__(self) -> None:
        check(bool(self.mixers), "no mixer to compose a network of; name one")
        for mixer in self.mixers:
            if mixer not in list_mixers():
                raise UnknownName(f"unknown mixer {mixer!r}; {nearest(mixer, list_mixers())}")
            _unit((mixer,))

    @property
    def stem_stride(self) -> int:
        """Of the first convolution."""
        return 2 if self.image_side <= _SMALL else 4

    def draw(self, trial: Any) -> dict[str, Any]:
        """Options that a trial of optuna's draws, some refused by `create_model`, some of no use on such small maps."""
        mixers, dims, depths, ratios, further = [], [], [], [], []
        for stage in _STAGES:
            names = [trial.suggest_categorical(f"mixer{stage}", self.mixers)]
            if trial.suggest_categorical(f"by_turns{stage}", (False, True)):
                names.append(trial.suggest_categorical(f"second{stage}", self.mixers))
                names = list(dict.fromkeys(names))
            unit = _unit(tuple(names))
            width = unit * trial.suggest_int(f"width{stage}", 1, _WIDEST[stage] // unit, log=True)
            reduction = 1
            if any(_has(name, "sr_ratio") for name in names):
                reduction = trial.suggest_categorical(f"reduction{stage}", _REDUCTIONS)
            mixers.append("+".join(names))
            dims.append(width)
            depths.append(trial.suggest_int(f"depth{stage}", len(names), _DEEPEST, log=True))  # each has its turn
            ratios.append(trial.suggest_categorical(f"mlp_ratio{stage}", _MLP_RATIOS))
            further.append(self._mixer_options(stage, names, width, reduction))
        return self._network(mixers, dims, depths, ratios, further)

    def smallest(self) -> Iterator[dict[str, Any]]:
        """The smallest network of each mixer."""
        for mixer in self.mixers:
            width = _unit((mixer,))
            further = [self._mixer_options(stage, [mixer], width, _REDUCTIONS[-1]) for stage in _STAGES]
            yield self._network([mixer] * 4, [width] * 4, [1] * 4, [_MLP_RATIOS[0]] * 4, further)

    def hand_made(self) -> dict[str, Any]:
        """What a person would write down: the mixers that `hybrid` has by default, convolution before attention."""
        names = (["sam"], ["cot"], ["cot", "e_mhsa"], ["e_mhsa"])
        # Widths and depths of smt_nano for small images, of hybrid itself for others.
        dims, depths = (
            ((24, 48, 96, 160), (1, 1, 4, 1)) if self.stem_stride == 2 else ((64, 128, 256, 512), (2, 2, 6, 2))
        )
        further = [self._mixer_options(stage, names[stage], _HEADS[-1], 1) for stage in _STAGES]  # of any width
        return self._network(["+".join(each) for each in names], dims, depths, (4,) * 4, further)

    def size(self) -> str:
        """How many networks there are, as in "10^12"."""
        number = 1.0
        for stage in _STAGES:
            kinds: list[tuple[str, ...]] = [(one,) for one in self.mixers]
            kinds += [(one, two) for one in self.mixers for two in self.mixers if one != two]
            number *= sum(
                _WIDEST[stage]
                // _unit(names)
                * (_DEEPEST + 1 - len(names))
                * len(_MLP_RATIOS)
                * (len(_REDUCTIONS) if any(_has(name, "sr_ratio") for name in names) else 1)
                for names in kinds
            )
        return f"10^{log10(number):.0f}"

    def _network(self, mixers: Any, dims: Any, depths: Any, ratios: Any, further: Any) -> dict[str, Any]:
        return {
            "mixers": tuple(mixers),
            "dims": tuple(dims),
            "depths": tuple(depths),
            "mlp_ratios": tuple(ratios),
            "mixer_options": tuple(further),
            "stem_stride": self.stem_stride,
        }

    def _mixer_options(self, stage: int, names: list[str], width: int, reduction: int) -> dict[str, dict[str, Any]]:
        side = -(-self.image_side // (self.stem_stride * 2**stage))  # of the stage's map
        fixed = {
            "head_dim": next(head for head in _HEADS if width % head == 0),
            "window_size": min(_WINDOW, side),
            "sr_ratio": reduction,
            "token_pool": "2d",  # takes maps of any size
        }
        given = {name: {key: value for key, value in fixed.items() if _has(name, key)} for name in names}
        return {name: options for name, options in given.items() if options}


def _has(mixer: str, option: str) -> bool:
    try:
        check_mixer(mixer, {option: None})
    except ValueError:
        return False
    return True


@functools.cache
def _unit(mixers: tuple[str, ...]) -> int:
    """The smallest unit of which these mixers take every multiple that is tried."""
    reason: Exception | None = None
    for unit in _UNITS:
        try:
            with torch.device("meta"):
                for name in mixers:
                    for width in (unit, 2 * unit, 3 * unit):
                        create_mixer(name, width, **({"head_dim": _HEADS[-1]} if _has(name, "head_dim") else {}))
        except Exception as error:  # whatever a mixer's constructor raises
            reason = error
        else:
            return unit
    raise ConfigError(f"mixer {'+'.join(mixers)} takes none of the widths of the search: {reason}")
