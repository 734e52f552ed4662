"""What the families share: a stem, stages of growing stride, a final norm and a head, under timm's protocol.

    image (B, C, H, W) -> stem -> stage 1 -> ... -> stage 4 -> norm -> head -> logits (B, classes)
                                  level 1           level 4

The levels of the pyramid are the outputs of the stages. Layout is channels-last inside, whatever the input's.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx
from timm.layers import ClassifierHead, SelectAdaptivePool2d, register_notrace_function
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from convattn.backbones.recompute import recompute

__all__ = [
    "Pyramid",
    "Stage",
    "StridedOptions",
    "TimmOptions",
    "check_choices",
    "check_images",
    "check_stages",
    "pool_for",
    "take_levels",
]

torch.fx.wrap("check_images")  # it asks for sizes, which a symbolic trace has not


@dataclass(frozen=True)
class TimmOptions:
    """What every network takes as timm's do; each field is also a keyword of `create_model`.

    Raises:
        ValueError: for what timm's layers would take and fail at, or give nonsense for, when they run.
    """

    num_classes: int = 1000  # width of the classifier; 0 leaves it out, and `forward` returns pooled features
    in_chans: int = 3  # channels of the image
    global_pool: str = "avg"  # of the head: also max, avgmax, catavgmax, each with fast in front; "" for none
    drop_rate: float = 0.0  # dropout in front of the classifier
    drop_path_rate: float = 0.0  # chance of dropping a branch in the last block; rises linearly from 0 in the first

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(f"num_classes {self.num_classes} must be 0 (no head) or more")
        for name, rate in (("drop_rate", self.drop_rate), ("drop_path_rate", self.drop_path_rate)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} {rate} must be at least 0 and below 1")
        try:
            SelectAdaptivePool2d(pool_type=self.global_pool)
        except AssertionError:
            raise ValueError(
                f"global_pool {self.global_pool!r} is unknown; choose one of timm's: 'avg', 'max', 'avgmax', "
                "'catavgmax', each also with 'fast' in front, or '' for none"
            ) from None
        if self.global_pool == "" and self.num_classes:
            raise ValueError("global_pool '' leaves a map, which a classifier cannot take; give num_classes=0")


@dataclass(frozen=True)
class StridedOptions(TimmOptions):
    """The same of networks whose later stages can keep the size."""

    output_stride: int = 32  # or 16 or 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride {self.output_stride} must be 8, 16 or 32")


class Stage(nn.Module):
    """downsample -> blocks -> norm: (B, C, H, W) -> (B, C', H', W'); the blocks keep the shape."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        x = recompute(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        return self.norm(x)


class Pyramid(nn.Module):
    """A backbone built from parts, with everything that a timm user expects of one.

    Args:
        stem: (B, in_chans, H, W) -> the input of the first stage.
        stages: one module a level, each (B, C, H, W) -> (B, C', H', W').
        options: the head and the images.
        dims: channels of each level.
        reductions: input stride of each level.
        norm: applied to the last level before the head; identity by default.
    """

    family: ClassVar[str | None] = None  # names the map to the authors' checkpoint, where there is one
    options_class: ClassVar[type[TimmOptions]] = TimmOptions
    measures_once: ClassVar[bool] = True  # batch norms, under gradient checkpointing too
    min_input_size: ClassVar[int] = 1  # shortest side that the arithmetic allows

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        options: TimmOptions,
        *,
        dims: Sequence[int],
        reductions: Sequence[int],
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.in_chans = options.in_chans
        self.num_classes = options.num_classes
        self.num_features = dims[-1]
        self.drop_rate = options.drop_rate
        self.feature_info: list[dict[str, Any]] = [
            dict(num_chs=dim, reduction=reduction, module=f"stages.{index}")
            for index, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity() if norm is None else norm
        self.head = ClassifierHead(
            dims[-1], options.num_classes, pool_type=options.global_pool, drop_rate=options.drop_rate
        )
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> the normalised last level (B, C, H', W')."""
        self._check_input(x)
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last level (B, C, H', W') -> logits (B, num_classes), or pooled features (B, C) with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The levels of the pyramid, in timm's protocol.

        Args:
            x: images (B, in_chans, H, W).
            indices: levels to return: the last n for an int, these for a list (negative from the end), all for None.
            norm: apply the final norm to the last level when it is among them.
            stop_early: do not run stages behind the last level asked for.
            output_fmt: "NCHW", the only layout of these maps.
            intermediates_only: return the list alone, without the final features.

        Returns:
            The list of levels (B, C, H', W'), or (final features, list).

        Raises:
            ValueError: for another `output_fmt`, or a level that does not exist.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r} is not available; pyramid levels are 'NCHW'")
        self._check_input(x)
        wanted, deepest = take_levels(indices, len(self.stages))
        levels = []
        last = len(self.stages) - 1
        x = self.stem(x)
        for index, stage in enumerate(self.stages[: deepest + 1] if stop_early else self.stages):
            x = stage(x)
            if index in wanted:
                levels.append(self._as_level(index, self.norm(x) if norm and index == last else x))
        if intermediates_only:
            return levels
        return (x if stop_early and deepest < last else self.norm(x)), levels

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop stages behind the last level in `indices`, and the norm and head if asked; returns the levels kept."""
        wanted, deepest = take_levels(indices, len(self.stages))
        if prune_norm or deepest < len(self.stages) - 1:
            self.norm = nn.Identity()
        self.stages = self.stages[: deepest + 1]
        self.num_features = self.head.in_features = self.feature_info[deepest]["num_chs"]
        if prune_head:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The last linear layer (identity when there are no classes)."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, and the pooling if given; 0 classes remove it.

        A model without pooling averages from here on if it gets classes; a warning says so.
        """
        global_pool = pool_for(num_classes, self.head.global_pool.pool_type, global_pool)
        self.num_classes = num_classes
        like = next(self.head.parameters(), next(self.parameters()))  # a head without weights has no place or type
        self.head.reset(num_classes, pool_type=global_pool)
        self.head.to(like)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks of every stage in backward instead of keeping their activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups in depth order for layer-wise learning rates; stages instead of blocks when `coarse`."""
        blocks = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99998,)),
            (r"^norm", (99999,)),
        ]
        return dict(stem=r"^stem", blocks=r"^stages\.(\d+)" if coarse else blocks)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that must not decay: none."""
        return set()

    def _as_level(self, index: int, x: Tensor) -> Tensor:
        """What a stage gives, as the level that leaves the network."""
        return x

    def _check_input(self, x: Tensor) -> None:
        check_images(x, self.in_chans, self.min_input_size)


def take_levels(indices: int | list[int] | None, count: int) -> tuple[list[int], int]:
    """Which of `count` levels timm's `indices` mean, and the deepest of them; ValueError for one that is not there."""
    try:
        return feature_take_indices(count, indices)
    except AssertionError:
        raise ValueError(f"out_indices {indices} do not exist; levels are 0 to {count - 1}") from None


@register_notrace_function
def check_images(x: Tensor, in_chans: int, least_size: int) -> None:
    """Refuse, by a ValueError, what is no batch of images (B, in_chans, H, W), H and W at least `least_size`."""
    if x.ndim != 4:
        raise ValueError(f"input of shape {tuple(x.shape)}: expected a batch of images (B, {in_chans}, H, W)")
    channels, height, width = x.shape[1:]
    if channels != in_chans:
        raise ValueError(
            f"input has {channels} channels, this model takes {in_chans}; "
            f"convert the images or create the model with in_chans={channels}"
        )
    if height < least_size or width < least_size:
        raise ValueError(
            f"input of {height} x {width} pixels is too small; the nearest size that works is "
            f"{max(height, least_size)} x {max(width, least_size)}"
        )


def check_stages(cfg: Any, *fields: str) -> None:
    """Refuse, by a ValueError, a configuration whose `fields` have not four entries, or depths or stem of no sense."""
    values = [(name, getattr(cfg, name)) for name in fields]
    if any(len(value) != 4 for _, value in values):
        *said, last = [f"{name} {value!r}" for name, value in values]
        raise ValueError(f"{', '.join(said)} and {last} need 4 entries")
    if min(cfg.depths) < 1:
        raise ValueError(f"depths {cfg.depths} must be 1 or more in every stage")
    if getattr(cfg, "stem_stride", 4) not in (2, 4):
        raise ValueError(f"stem_stride {cfg.stem_stride} must be 4, or 2 for small images")
    if getattr(cfg, "stem_kernel", 1) % 2 == 0:
        raise ValueError(f"stem_kernel {cfg.stem_kernel} must be odd")


def check_choices(cfg: Any, **choices: Iterable[str]) -> None:
    """Refuse a configuration with another value in one of these fields; raises ValueError with what there is."""
    for name, known in choices.items():
        if getattr(cfg, name) not in known:
            raise ValueError(f"{name} {getattr(cfg, name)!r} is unknown; choose one of {', '.join(known)}")


def pool_for(num_classes: int, current: str, wanted: str | None) -> str:
    """The pooling of a head that gets `num_classes`: the wanted or else the current one, or the mean if that is none.

    Raises:
        ValueError: as `TimmOptions`.
    """
    pool = current if wanted is None else wanted
    if wanted is None and not pool and num_classes:
        warnings.warn(
            f"reset_classifier({num_classes}) of a model without pooling: it averages now, as with global_pool='avg'",
            stacklevel=3,
        )
        pool = "avg"
    return TimmOptions(num_classes, global_pool=pool).global_pool
