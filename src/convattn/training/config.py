"""The whole description of a training run: frozen, checked, and written beside its results as JSON.

The text below a field is what `convattn train --help` shows for it.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro
from timm.optim import get_optimizer_info, list_optimizers

from convattn.backbones.registry import nearest
from convattn.data.transforms import Augmentation

__all__ = [
    "ConfigError",
    "DataConfig",
    "LoopConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "RunConfig",
    "ScheduleConfig",
    "config_from_json",
    "config_to_json",
]


class ConfigError(ValueError):
    """A configuration that makes no sense, or names a field that does not exist."""


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained."""

    name: str = "smt_nano"
    """Name of the model; `timm:NAME` for one of timm's."""
    pretrained: bool = False
    """Start from the published weights."""
    pretrained_path: str | None = None
    """Start from the weights in this file instead: the authors' or in our names."""
    drop_rate: float = 0.0
    """Dropout in front of the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; falls linearly to 0 at the first."""
    grad_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    options: typing.Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Further keywords of `create_model`."""

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            _check(0 <= getattr(self, name) < 1, f"model.{name} {getattr(self, name)} must be at least 0 and below 1")


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on."""

    source: str = "digits"
    """A folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or test/…), or `digits` for scikit-learn's."""
    image_size: int | None = None
    """Side of the square input, pixels; the model's own (224 for most) by default."""
    crop_ratio: float | None = None
    """In validation: side of the crop over the side of the resized image; the model's own by default."""
    batch_size: int = 64
    """Images in a batch, on each device."""
    workers: int = 0
    """Processes that load images; 0 loads in the training process."""
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

    def __post_init__(self) -> None:
        _check(self.image_size is None or self.image_size >= 4, f"data.image_size {self.image_size} must be 4 or more")
        _check(
            self.crop_ratio is None or 0 < self.crop_ratio <= 1,
            f"data.crop_ratio {self.crop_ratio} must be above 0, at most 1",
        )
        _check(self.batch_size >= 1, f"data.batch_size {self.batch_size} must be 1 or more")
        _check(self.workers >= 0, f"data.workers {self.workers} must be 0 or more")
        for name in ("mixup", "cutmix"):
            _check(getattr(self, name) >= 0, f"data.{name} {getattr(self, name)} must be 0 or more")
        for name in ("mix_probability", "cutmix_probability"):
            _check(0 <= getattr(self, name) <= 1, f"data.{name} {getattr(self, name)} must be between 0 and 1")
        mixes = self.mixup > 0 or self.cutmix > 0
        _check(
            not mixes or self.batch_size % 2 == 0,
            f"data.batch_size {self.batch_size} must be even with mixup or cutmix; use {self.batch_size + 1}",
        )
        _check(
            mixes or (self.mix_probability == 1 and self.mix_epochs is None),
            "data.mix_probability and data.mix_epochs have no effect without data.mixup or data.cutmix",
        )
        _check(
            (self.mixup > 0 and self.cutmix > 0) or self.cutmix_probability == 0.5,
            "data.cutmix_probability has no effect unless both data.mixup and data.cutmix are on",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights are moved."""

    name: str = "adamw"
    """Any optimiser of timm's `create_optimizer_v2`."""
    lr: float = 1e-3
    """Highest learning rate, for `lr_batch_size` images an update."""
    lr_batch_size: int | None = 512
    """Learning rates are for so many images an update and scale with the real number; `None` takes them as they are."""
    weight_decay: float = 0.05
    """Decay of the weights; biases and norms do not decay."""
    betas: tuple[float, float] | None = None
    """Of the Adam family; the optimiser's own by default."""
    eps: float | None = None
    """Of the Adam family; the optimiser's own by default."""
    momentum: float | None = None
    """Of SGD and its kin; 0.9 by default where there is one."""
    layer_decay: float | None = None
    """Learning rate of each layer over that of the layer behind it; the same for all by default."""
    clip_grad: float | None = None
    """Largest norm of the gradient; not clipped by default."""

    def __post_init__(self) -> None:
        names = list_optimizers()
        _check(self.name in names, f"optimizer.name {self.name!r} is unknown; {nearest(self.name, names)}")
        _check(self.lr > 0, f"optimizer.lr {self.lr} must be above 0")
        _check(
            self.lr_batch_size is None or self.lr_batch_size >= 1,
            f"optimizer.lr_batch_size {self.lr_batch_size} must be 1 or more",
        )
        _check(self.weight_decay >= 0, f"optimizer.weight_decay {self.weight_decay} must be 0 or more")
        for name in ("layer_decay", "clip_grad"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"optimizer.{name} {value} must be above 0")
        info = get_optimizer_info(self.name)
        for name in ("betas", "eps", "momentum"):
            _check(
                getattr(self, name) is None or getattr(info, f"has_{name}"),
                f"optimizer.{name} has no effect on {self.name}, which has none",
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate runs."""

    name: Literal["cosine", "poly", "tanh", "constant"] = "cosine"
    """Its shape behind the warm-up."""
    epochs: int = 30
    """Passes over the training images, warm-up included."""
    warmup_epochs: float = 0
    """The learning rate rises linearly over so many epochs first."""
    warmup_lr: float = 1e-6
    """Where the rise begins."""
    min_lr: float = 0.0
    """Where the schedule ends."""
    warmup_prefix: bool = True
    """The shape spans the epochs behind the warm-up; otherwise all of them, and the warm-up covers its start."""

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, f"schedule.epochs {self.epochs} must be 1 or more")
        _check(
            0 <= self.warmup_epochs < self.epochs,
            f"schedule.warmup_epochs {self.warmup_epochs} must be at least 0 and below the {self.epochs} epochs",
        )
        for name in ("warmup_lr", "min_lr"):
            _check(getattr(self, name) >= 0, f"schedule.{name} {getattr(self, name)} must be 0 or more")
        _check(
            self.name != "constant" or self.min_lr == 0,
            "schedule.min_lr has no effect on the constant schedule; leave it 0",
        )


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs."""

    seed: int = 0
    """Of everything random: weights, order, augmentation, mixing, stochastic depth."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the GPU if there is one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the forward and backward pass (autocast); fp16 scales the loss and needs a GPU."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights, which is then what is validated and kept; none by default."""
    ema_warmup: bool = True
    """Let the decay of the average grow from 0, so that short runs do not remember the first weights."""
    accumulation: int = 1
    """Batches whose gradients are added up for one update."""
    channels_last: bool = True
    """Memory layout of images and weights; the faster one for convolutions."""
    compile: bool = False
    """Compile the model; pays off in long runs."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**32, f"loop.seed {self.seed} must be between 0 and {2**32 - 1}")
        _check(
            0 <= self.label_smoothing < 1, f"loop.label_smoothing {self.label_smoothing} must be at least 0, below 1"
        )
        _check(
            self.ema_decay is None or 0 < self.ema_decay < 1, f"loop.ema_decay {self.ema_decay} must be between 0 and 1"
        )
        _check(self.accumulation >= 1, f"loop.accumulation {self.accumulation} must be 1 or more")


@dataclass(frozen=True)
class OutputConfig:
    """What is kept."""

    folder: str = "run"
    """Where everything goes; must be empty or new."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; 2 leave one behind if the newest is damaged."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSON-lines log."""

    def __post_init__(self) -> None:
        _check(self.keep_checkpoints >= 1, f"output.keep_checkpoints {self.keep_checkpoints} must be 1 or more")


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loop: LoopConfig = LoopConfig()
    output: OutputConfig = OutputConfig()


def config_to_json(config: RunConfig) -> str:
    """Every field of the configuration, indented."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str) -> RunConfig:
    """The configuration that `config_to_json` wrote; fields left out take their defaults.

    Raises:
        ConfigError: if the text is no JSON, a field does not exist (naming the nearest), or a value is of another type
            or out of range.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not a configuration: {error}") from None
    return _build(RunConfig, content, "")


def _build(kind: Any, content: Any, prefix: str) -> Any:
    if not isinstance(content, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'configuration'} {content!r} must be an object with fields")
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in hints:
            raise ConfigError(f"unknown field {prefix}{name}; {nearest(name, hints)}")
    values = {name: _value(hints[name], value, f"{prefix}{name}") for name, value in content.items()}
    try:
        return kind(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _value(hint: Any, value: Any, name: str) -> Any:
    """`value` as JSON gave it, turned into the field's type; lists become tuples."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(kind for kind in arguments if kind is not type(None)), value, name)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} {value!r} is unknown; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ConfigError(f"{name} {value!r} must be a list of {len(arguments)} numbers")
        return tuple(_value(kind, entry, name) for kind, entry in zip(arguments, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} {value!r} must be an object")
        return {key: _with_tuples(entry) for key, entry in value.items()}
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} {value!r} must be {hint.__name__}")
    return value


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(entry) for entry in value) if isinstance(value, list) else value
