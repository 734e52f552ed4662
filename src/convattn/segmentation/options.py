"""The options of segmentation, and what its figures are called: known without torch, as help and tables need them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from convattn.config_errors import check, check_finite
from convattn.task import Metric, RoomWords, TaskOptions

__all__ = [
    "IGNORED",
    "METRICS",
    "WORDS",
    "CheckOptions",
    "EvaluationOptions",
    "ExportOptions",
    "LabelOptions",
    "OtherLabels",
    "PredictionOptions",
    "SegmentationOptions",
]

IGNORED = 255  # in label maps: pixels that count for nothing


@dataclass(frozen=True)
class LabelOptions:
    """What the numbers in a mask mean."""

    classes: str | None = None
    """File that names the classes in order, a line each, with their colours where masks are RGB; see the page."""
    ignore_index: int = 255
    """The number in masks of pixels that count for nothing."""
    reduce_zero_label: bool = False
    """In masks 0 is no class and counts for nothing, and class 0 is written as 1 (ADE20K)."""

    def __post_init__(self) -> None:
        check(0 <= self.ignore_index <= 255, f"labels.ignore_index {self.ignore_index} must be between 0 and 255")


@dataclass(frozen=True)
class OtherLabels:
    """What the numbers in masks mean where it is not as in training."""

    classes: str | None = None
    """File that names the classes, as in training, with the numbers or colours that they have in these masks."""
    ignore_index: int | None = None
    """The number in masks of pixels that count for nothing; as in training by default."""
    reduce_zero_label: bool | None = None
    """Whether 0 counts for nothing and class 0 is written as 1; as in training by default."""

    def over(self, trained: LabelOptions) -> LabelOptions:
        """What is given here, and the rest as in training."""
        return replace(trained, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class SegmentationOptions(TaskOptions):
    """How pixels are told apart, and what helps to learn it."""

    kind: ClassVar[str] = "segmentation"
    places: ClassVar[Sequence[str]] = ("labels.classes",)

    head: Literal["upernet", "semantic_fpn"] = "upernet"
    """What stands on the backbone's levels."""
    width: int | None = None
    """Channels of the head: 512 in UperNet, 256 in Semantic FPN's neck (half as many behind it) by default."""
    dropout: float = 0.1
    """Share of the head's channels that are dropped in front of the last layer."""
    frozen_stages: int = 0
    """How many parts of the backbone do not learn, from the stem on: 1 is the stem, 2 the first stage too."""
    frozen_norms: bool = False
    """Batch norms of the backbone keep their statistics and weights; lets a process train on one image at a time."""
    labels: LabelOptions = LabelOptions()
    """What the numbers in a mask mean."""
    scale: tuple[int, int] | None = (2048, 512)
    """Images are seen with a short side of the smaller number, unless the long one would pass the greater; `None`: as
    they are."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Training images are further resized by a factor between these."""
    category_cap: float = 0.75
    """A training crop in which one class has more of the pixels is drawn anew, up to ten times; 1 for any crop."""
    flip: float = 0.5
    """Share of the training images that are mirrored."""
    photometric: bool = True
    """Vary brightness, contrast, saturation and hue of training images."""
    loss_mean: Literal["all", "valid"] = "all"
    """The loss is summed over the pixels that count and divided by all of them (mmsegmentation), or by those alone."""
    auxiliary_weight: float = 0.4
    """Of the loss of UperNet's second head, which learns beside it."""

    def __post_init__(self) -> None:
        check(self.width is None or self.width >= 2, f"task.width {self.width} must be 2 or more")
        check(0 <= self.dropout < 1, f"task.dropout {self.dropout} must be at least 0, below 1")
        check(self.frozen_stages >= 0, f"task.frozen_stages {self.frozen_stages} must be 0 or more")
        check(self.scale is None or min(self.scale) >= 1, f"task.scale {self.scale} must be 1 or more, twice")
        low, high = self.scale_range
        check_finite("task", scale_range=high, auxiliary_weight=self.auxiliary_weight)
        check(0 < low <= high, f"task.scale_range {low}, {high} must be above 0 and rise")
        check(0 < self.category_cap <= 1, f"task.category_cap {self.category_cap} must be above 0, at most 1")
        check(0 <= self.flip <= 1, f"task.flip {self.flip} must be between 0 and 1")
        check(self.auxiliary_weight >= 0, f"task.auxiliary_weight {self.auxiliary_weight} must be 0 or more")

    def check(self, run: Any) -> None:
        """Raise ConfigError for what does not go with the rest of the run's configuration."""
        size = run.data.image_size
        check(size is None or isinstance(size, int), f"data.image_size {size}: crops are square here; give a side")
        check(
            run.data.batch_size >= 2 or self.head != "upernet" or run.loop.sync_batch_norm,
            "data.batch_size 1 leaves the batch norm behind UperNet's 1 × 1 pool one number a channel to measure: "
            "use 2 or more, loop.sync_batch_norm over several processes, or task.head semantic_fpn",
        )


@dataclass(frozen=True)
class _Inference:
    window: int | None = None
    """Side of the windows that slide over an image, pixels of the image as the model sees it; whole by default, unless
    it is too large for that."""
    step: int | None = None
    """From one window to the next; two thirds of a window by default."""

    def __post_init__(self) -> None:
        for name in ("window", "step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} must be 1 or more")
        if self.step is not None and (self.window is None or self.step > self.window):
            raise ValueError(f"--step {self.step} must be at most --window {self.window}, which it needs")


@dataclass(frozen=True)
class EvaluationOptions(_Inference):
    """What is looked at, and how."""

    scales: tuple[float, ...] = (1.0,)
    """Look at each image at these sizes and average; `0.5 0.75 1 1.25 1.5 1.75` in papers."""
    flip: bool = False
    """Look at each image mirrored too, and average."""
    labels: OtherLabels = OtherLabels()
    """What the numbers in masks mean."""
    per_class: bool = False
    """Show each class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or not 0 < min(self.scales) <= max(self.scales) < math.inf:
            raise ValueError(f"--scales {' '.join(map(str, self.scales))} must be one or more numbers above 0")

    @property
    def looks_again(self) -> bool:
        """Whether an image is not looked at once, as it is."""
        return self.flip or self.scales != (1.0,)


@dataclass(frozen=True)
class PredictionOptions(_Inference):
    """How pixels are named."""


@dataclass(frozen=True)
class ExportOptions:
    """What the file gives."""

    arg_max: bool = False
    """The class of each pixel, uint8, instead of logits: a smaller output, that nothing can be averaged of."""


@dataclass(frozen=True)
class CheckOptions:
    """What is known of masks beside where they are."""

    labels: LabelOptions = LabelOptions()
    """What the numbers in masks mean."""


METRICS = (
    Metric("miou", "mIoU", "%", lowest=0, highest=100),
    Metric("macc", "mAcc", "%", lowest=0, highest=100),
    Metric("aacc", "aAcc", "%", lowest=0, highest=100),
    Metric("mdice", "Dice", "%", lowest=0, highest=100),
)

WORDS = RoomWords(
    SegmentationOptions,
    EvaluationOptions,
    PredictionOptions,
    METRICS,
    ExportOptions,
    CheckOptions,
    "convattn.segmentation.check",
    "segment_finetune",
    "head",
)
