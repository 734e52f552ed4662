"""The options of classification, and what its figures are called: known without torch, as help and tables need them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from convattn.config_errors import check, check_each, check_finite
from convattn.data.augmentation import Augmentation
from convattn.task import Metric, RoomWords, TaskOptions

__all__ = [
    "METRICS",
    "WORDS",
    "CheckOptions",
    "ClassificationOptions",
    "DistillationConfig",
    "EvaluationOptions",
    "PredictionOptions",
]


@dataclass(frozen=True)
class DistillationConfig:
    """A teacher, whose outputs the model learns from."""

    teacher: str | None = None
    """A run folder, a model file or a model's name; none by default."""
    loss: Literal["js", "soft", "hard"] = "soft"
    """Jensen-Shannon divergence, cross entropy with the teacher's distribution, or with its most probable class."""
    temperature: float = 1.0
    """Softens both distributions of `soft`; its loss is scaled by the square."""
    weight: float = 1.0
    """Share of this loss; the rest is that of the labels."""
    unlabelled: str | None = None
    """A folder of images without labels to learn from too, laid out in any way; needs weight 1."""

    def __post_init__(self) -> None:
        part = "task.distillation"
        alone = (self.loss, self.temperature, self.weight) == ("soft", 1.0, 1.0)
        check(self.teacher is not None or alone, f"the fields of {part} have no effect without {part}.teacher")
        check_each(part, self, lambda share: 0 < share <= 1, "above 0, at most 1", "weight")
        check_finite(part, temperature=self.temperature)
        check_each(part, self, lambda heat: heat > 0, "above 0", "temperature")
        check(
            self.temperature == 1 or self.loss == "soft",
            f"{part}.temperature has no effect on the loss {self.loss}; leave it 1",
        )
        check(
            self.unlabelled is None or (self.teacher is not None and self.weight == 1),
            f"{part}.unlabelled needs {part}.teacher and {part}.weight 1",
        )


@dataclass(frozen=True)
class ClassificationOptions(TaskOptions):
    """How images are told apart, and what helps to learn it."""

    kind: ClassVar[str] = "classification"
    places: ClassVar[Sequence[str]] = ("validation_labels", "distillation.teacher", "distillation.unlabelled")
    model_places: ClassVar[Sequence[str]] = ("distillation.teacher",)
    moved: ClassVar[Mapping[str, str]] = {
        **{f"data.{name}": name for name in ("validation_labels", "crop_ratio", "augmentation", "mixup", "cutmix")},
        **{f"data.{name}": name for name in ("mix_probability", "cutmix_probability", "mix_epochs")},
        **{f"loop.{name}": name for name in ("label_smoothing", "class_weights")},
        "distillation": "distillation",
    }

    validation_labels: str | None = None
    """Label file of a flat validation folder, such as ImageNet's."""
    crop_ratio: float | None = None
    """In validation: side of the crop over the side of the resized image; the model's own by default."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How training images are varied."""
    mixup: float = 0.0
    """Alpha of mixup, which blends pairs of images; 0 for none."""
    cutmix: float = 0.0
    """Alpha of cutmix, which pastes a rectangle of one image into another; 0 for none."""
    mix_probability: float = 1.0
    """Share of the batches that are mixed."""
    cutmix_probability: float = 0.5
    """Share of the mixed batches that are cut, where both are on."""
    mix_epochs: int | None = None
    """Stop mixing after so many epochs; never by default."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: Literal["equal", "balanced"] = "equal"
    """`balanced` weighs an image by the inverse frequency of its class."""
    distillation: DistillationConfig = DistillationConfig()
    """What is learnt from another model."""

    def __post_init__(self) -> None:
        check_each("task", self, lambda ratio: 0 < ratio <= 1, "above 0, at most 1", "crop_ratio")
        check_finite("task", mixup=self.mixup, cutmix=self.cutmix)
        check_each("task", self, lambda alpha: alpha >= 0, "0 or more", "mixup", "cutmix")
        shares = ("mix_probability", "cutmix_probability")
        check_each("task", self, lambda share: 0 <= share <= 1, "between 0 and 1", *shares)
        check(
            self.mix_epochs is None or self.mix_epochs >= 1,
            f"task.mix_epochs {self.mix_epochs} must be 1 or more; for no mixing set task.mixup and task.cutmix to 0",
        )
        check(
            self.mixes or (self.mix_probability == 1 and self.mix_epochs is None),
            "task.mix_probability and task.mix_epochs have no effect without task.mixup or task.cutmix",
        )
        check(
            (self.mixup > 0 and self.cutmix > 0) or self.cutmix_probability == 0.5,
            "task.cutmix_probability has no effect unless both task.mixup and task.cutmix are on",
        )
        check_each("task", self, lambda share: 0 <= share < 1, "at least 0, below 1", "label_smoothing")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def batch_multiple(self) -> int:
        """Batches hold a multiple of so many images."""
        return 2 if self.mixes else 1

    def check(self, run: Any) -> None:
        """Raise ConfigError for what does not go with the rest of the run's configuration."""
        size = run.data.batch_size
        check(
            size % self.batch_multiple == 0,
            f"data.batch_size {size} must be even with task.mixup or task.cutmix; use {size + 1}",
        )


@dataclass(frozen=True)
class EvaluationOptions:
    """What is looked at, and against what."""

    labels: Path | None = None
    """Label file of images without class folders."""
    real_labels: Path | None = None
    """ImageNet's reassessed labels: the file real.json of ReaL, or `timm` for the copy that comes with timm."""
    per_class: bool = False
    """Show each class: how many of its images are right, and what it is most often taken for."""


@dataclass(frozen=True)
class PredictionOptions:
    """What is shown of each image."""

    top: int = 5
    """How many classes to show, the most probable first."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top {self.top} must be 1 or more")


@dataclass(frozen=True)
class CheckOptions:
    """What is known of images beside where they are."""

    validation_labels: str | None = None
    """Label file of the validation images, if they lie in no class folders: as `task.validation_labels` of a run."""


METRICS = (
    Metric("top1", "Top-1", "%", lowest=0, highest=100),
    Metric("top5", "Top-5", "%", lowest=0, highest=100),
    Metric("val_loss", "Validation loss", greater_is_better=False, digits=3, lowest=0),
)

WORDS = RoomWords(
    ClassificationOptions,
    EvaluationOptions,
    PredictionOptions,
    METRICS,
    check=CheckOptions,
    data="convattn.classification.check",
)
