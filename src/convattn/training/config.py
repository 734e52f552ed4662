"""The whole description of a training run: frozen, checked, and written beside its results as JSON.

The text below a field is what `convattn train --help` shows for it.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from convattn.config_errors import ConfigError, check, check_each, check_finite
from convattn.library_words import are_trusted
from convattn.model_configuration import is_configuration, read_configuration
from convattn.nearest import nearest
from convattn.rooms import words_of
from convattn.size_option import SizeOption
from convattn.sizes import image_shape
from convattn.task import TaskOptions

__all__ = [
    "ConfigError",
    "DataConfig",
    "LoopConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OutputConfig",
    "RunConfig",
    "ScheduleConfig",
    "name_and_source",
]


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained."""

    name: str = "smt_nano"
    """Name of the model; `timm:NAME` for one of timm's, FILE.json for one with options."""
    pretrained: bool = False
    """Start from the published weights."""
    pretrained_path: str | None = None
    """Start from the weights in this file instead: the authors' or in our names."""
    head_rows: str | None = None
    """Text file with one line a class: the output of the file's head that becomes it; `imagenet-22k` for ImageNet's
    1,000 classes out of 21,841, `fresh` for a new head."""
    drop_rate: float = 0.0
    """Dropout in front of the classifier."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; falls linearly to 0 at the first."""
    grad_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""
    options: typing.Annotated[Mapping[str, Any], tyro.conf.Suppress] = field(default_factory=dict)
    """Further keywords of `create_model`."""
    plug_ins: typing.Annotated[tuple[Mapping[str, Any], ...], tyro.conf.Suppress] = ()
    """Blocks to attach or to put in the place of convolutions, in turn: see `training/plug_ins.py`."""

    def __post_init__(self) -> None:
        if is_configuration(self.name):  # the run says all of it, whatever becomes of the file
            name, options = read_configuration(self.name)
            object.__setattr__(self, "name", name)
            object.__setattr__(self, "options", {**options, **self.options})
        check(
            self.head_rows is None or self.pretrained_path is not None,
            "model.head_rows has no effect without model.pretrained_path",
        )
        check_each("model", self, lambda rate: 0 <= rate < 1, "at least 0 and below 1", "drop_rate", "drop_path_rate")


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on."""

    source: str = "digits"
    """Where the images are: a folder in a layout of the data page, or `digits`."""
    validation: str | None = None
    """Where the validation images are, if not in `source`; or the share of those there to hold out, as 0.2."""
    epoch_images: int | None = None
    """Images that make an epoch, for shards that are read through a pipe and cannot be counted."""
    evaluations: tuple[str, ...] = ()
    """Further images to evaluate on at each validation, as NAME=SOURCE; see the training page."""
    repeats: int = 1
    """Variants of each image that share an update (repeated augmentation); an epoch then shows so many times fewer."""
    image_size: SizeOption = None
    """Side or HEIGHT WIDTH of the input, pixels; the model's own (224 for most) by default."""
    batch_size: int = 64
    """Images in a batch, on each device."""
    workers: int = 0
    """Processes that load images; 0 loads in the training process."""

    def __post_init__(self) -> None:
        if self.image_size is not None:
            object.__setattr__(self, "image_size", _side_or_sides(self.image_size))  # one spelling of one size
        check_each("data", self, lambda count: count >= 1, "1 or more", "batch_size", "repeats", "epoch_images")
        check_each("data", self, lambda count: count >= 0, "0 or more", "workers")
        names = [name_and_source(evaluation)[0] for evaluation in self.evaluations]
        check(len(set(names)) == len(names), f"data.evaluations {', '.join(names)}: each needs a name of its own")


def _side_or_sides(size: Any) -> int | tuple[int, int]:
    """The side of a square, (height, width) of another rectangle."""
    try:
        channels, *sides = image_shape(size, called="data.image_size")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    check(channels == 3, f"data.image_size {size}: images are read in 3 channels; give height and width alone")
    check(min(sides) >= 4, f"data.image_size {size} must be 4 or more")
    return sides[0] if sides[0] == sides[1] else (sides[0], sides[1])


def name_and_source(evaluation: str) -> tuple[str, str]:
    """The two parts of one of `data.evaluations`."""
    name, equals, source = evaluation.partition("=")
    check(
        bool(equals and source) and name.isidentifier(),
        f"data.evaluations {evaluation!r} must be NAME=SOURCE, as in robust=photos/blurred",
    )
    return name, source


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
    no_decay: tuple[str, ...] = ()
    """Further parameters that do not decay: patterns such as `*.relative_position*`."""
    decay_all: bool = False
    """Let biases and norms decay too, as in the classic recipes of residual networks; but for `no_decay`."""
    betas: tuple[float, float] | None = None
    """Of the Adam family; the optimiser's own by default."""
    eps: float | None = None
    """Of the Adam family; the optimiser's own by default."""
    momentum: float | None = None
    """Of SGD and its kin; 0.9 by default where there is one."""
    layer_decay: float | None = None
    """Learning rate of each layer over that of the layer behind it; the same for all by default."""
    backbone_lr: float | None = None
    """Learning rate of the backbone over that of the heads that stand on it; the same by default."""
    clip_grad: float | None = None
    """Largest norm of the gradient; not clipped by default."""

    def __post_init__(self) -> None:
        part = "optimizer"
        check_finite(part, lr=self.lr, weight_decay=self.weight_decay, eps=self.eps, clip_grad=self.clip_grad)
        check_finite(part, backbone_lr=self.backbone_lr)
        check_each(part, self, lambda value: value > 0, "above 0", "lr", "clip_grad")
        check_each(part, self, lambda count: count >= 1, "1 or more", "lr_batch_size")
        check_each(part, self, lambda value: value >= 0, "0 or more", "weight_decay", "eps")
        check_each(part, self, lambda decay: 0 < decay <= 1, "above 0, at most 1", "layer_decay")
        check(
            self.backbone_lr is None or self.backbone_lr > 0,
            f"optimizer.backbone_lr {self.backbone_lr} must be above 0; task.frozen-stages keeps parts from learning",
        )
        check(
            self.backbone_lr is None or self.layer_decay is None,
            "optimizer.backbone_lr and optimizer.layer_decay both set the learning rate of layers: give one",
        )
        for name, values in (("betas", self.betas or ()), ("momentum", (self.momentum or 0.0,))):
            check(
                all(0 <= value < 1 for value in values),
                f"optimizer.{name} {', '.join(map(str, values))} must be at least 0 and below 1",
            )
        if not are_trusted():
            self._ask_timm()

    def _ask_timm(self) -> None:
        """Refuse a name that timm does not know, and settings that its optimiser does not have."""
        own = {name: getattr(self, name) for name in ("betas", "eps", "momentum")}
        if self.name == OptimizerConfig.name and set(own.values()) == {None}:
            return  # as by default: timm takes a second to import
        from timm.optim import get_optimizer_info, list_optimizers

        names = list_optimizers()
        check(self.name in names, f"optimizer.name {self.name!r} is unknown; {nearest(self.name, names)}")
        info = get_optimizer_info(self.name)
        for name, value in own.items():
            check(
                value is None or getattr(info, f"has_{name}"),
                f"optimizer.{name} has no effect on {self.name}, which has none",
            )


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate runs."""

    name: Literal["cosine", "poly", "tanh", "multistep", "constant"] = "cosine"
    """Its shape behind the warm-up."""
    epochs: int = 30
    """Passes over the training images, warm-up included."""
    updates: int | None = None
    """Length of the run in updates; counts instead of `epochs`."""
    warmup_epochs: float = 0
    """The learning rate rises linearly over so many epochs first."""
    warmup_updates: int | None = None
    """The same, counted in updates; instead of `warmup_epochs`."""
    warmup_lr: float = 1e-6
    """Where the rise begins."""
    min_lr: float = 0.0
    """Where the schedule ends; the learning rate never falls below it."""
    warmup_factor: float | None = None
    """The warm-up multiplies the schedule instead, by a factor that rises linearly from this one to 1 (mmcv); then
    `warmup_lr` counts for nothing."""
    warmup_prefix: bool = True
    """The shape spans the epochs behind the warm-up; otherwise all of them, and the warm-up covers its start."""
    power: float | None = None
    """Of poly: what the share of the run that is left is raised to, 1 by default."""
    milestones: tuple[int, ...] = ()
    """Of multistep: the learning rate falls after these epochs; updates, if the run's length is counted in them."""
    decay_rate: float | None = None
    """Of multistep: what it is multiplied with then, 0.1 by default."""
    per_epoch: bool = False
    """The learning rate stays the same within an epoch; otherwise it moves at every update."""

    def __post_init__(self) -> None:
        check_each("schedule", self, lambda count: count >= 1, "1 or more", "epochs", "updates")
        length, unit = (self.epochs, "epochs") if self.updates is None else (self.updates, "updates")
        check(
            self.warmup_epochs >= 0 and (self.updates is not None or self.warmup_epochs < self.epochs),
            f"schedule.warmup_epochs {self.warmup_epochs} must be at least 0 and below the {self.epochs} epochs",
        )
        check(
            self.warmup_updates is None or (self.warmup_updates >= 0 and self.warmup_epochs == 0),
            f"schedule.warmup_updates {self.warmup_updates} must be 0 or more, with schedule.warmup_epochs 0",
        )
        check_finite("schedule", warmup_lr=self.warmup_lr, min_lr=self.min_lr, power=self.power)
        multistep = self.name == "multistep"
        warms = self.warmup_epochs > 0 or bool(self.warmup_updates)
        check(
            self.warmup_factor is None
            or (warms and 0 <= self.warmup_factor < 1 and self.warmup_lr == ScheduleConfig.warmup_lr),
            f"schedule.warmup_factor {self.warmup_factor} must be at least 0, below 1, with a warm-up and without "
            "schedule.warmup_lr; None for a run without a warm-up",
        )
        check(
            self.power is None or (self.name == "poly" and self.power > 0),
            f"schedule.power {self.power} must be above 0, with schedule.name poly",
        )
        check_each("schedule", self, lambda rate: rate >= 0, "0 or more", "warmup_lr", "min_lr")
        check(
            self.name not in ("constant", "multistep") or self.min_lr == 0,
            f"schedule.min_lr has no effect on the {self.name} schedule; leave it 0",
        )
        check(multistep == bool(self.milestones), "schedule.milestones and schedule.name multistep belong together")
        check(
            list(self.milestones) == sorted(set(self.milestones)) and all(0 < at < length for at in self.milestones),
            f"schedule.milestones {self.milestones} must rise and lie between 0 and the {length} {unit}",
        )
        check(
            self.decay_rate is None or (multistep and 0 < self.decay_rate < 1),
            f"schedule.decay_rate {self.decay_rate} must be between 0 and 1, with schedule.name multistep",
        )

    def length(self, updates_per_epoch: int) -> int:
        """Updates of the whole run."""
        return self.epochs * updates_per_epoch if self.updates is None else self.updates


@dataclass(frozen=True)
class LoopConfig:
    """How the loop runs."""

    seed: int = 0
    """Of everything random: weights, order, augmentation, mixing, stochastic depth."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the GPU if there is one."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Of the forward and backward pass (autocast); fp16 scales the loss and needs a GPU; auto is bf16 on a GPU that
    computes in it, and fp32 elsewhere."""
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
    sync_batch_norm: bool = False
    """Take batch statistics over all processes."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` spreads weights, gradients and optimiser over the processes; otherwise each holds all."""
    freeze_epochs: int = 0
    """Train the head alone for so many epochs first."""
    validation_epochs: int = 1
    """Validate, log and keep the best model after every so many epochs, and at the end."""
    validation_updates: int | None = None
    """The same, counted in updates; counts instead of `validation_epochs`."""
    early_stopping: int | None = None
    """Stop after so many validations without a better result; never by default."""
    max_skipped: int = 10
    """Stop after so many updates in a row that were skipped because loss or gradient was not finite."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, f"loop.seed {self.seed} must be between 0 and {2**32 - 1}")
        check_each("loop", self, lambda decay: 0 < decay < 1, "between 0 and 1", "ema_decay")
        counts = ("accumulation", "validation_epochs", "validation_updates", "early_stopping", "max_skipped")
        check_each("loop", self, lambda count: count >= 1, "1 or more", *counts)
        check_each("loop", self, lambda count: count >= 0, "0 or more", "freeze_epochs")
        check(
            not (self.sharding == "fsdp" and self.precision == "fp16"),
            "loop.sharding fsdp does not scale losses; use loop.precision bf16 instead of fp16",
        )


@dataclass(frozen=True)
class OutputConfig:
    """What is kept."""

    folder: str = "run"
    """Where everything goes; must be empty or new."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; 2 leave one behind if the newest is damaged."""
    checkpoint_updates: int | None = None
    """Write a checkpoint after so many updates too, not only after an epoch."""
    tensorboard: bool = True
    """Write TensorBoard events beside the JSON-lines log."""
    trackers: tuple[str, ...] = ()
    """Send the log on to these too, by Accelerate's names: wandb, mlflow, comet_ml, …; each needs its own package."""

    def __post_init__(self) -> None:
        check_each("output", self, lambda count: count >= 1, "1 or more", "keep_checkpoints", "checkpoint_updates")


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    task: TaskOptions = field(default_factory=lambda: words_of().training())
    loop: LoopConfig = LoopConfig()
    output: OutputConfig = OutputConfig()
    recipe: typing.Annotated[str | None, tyro.conf.Suppress] = None
    """The recipe that was started from, for the report."""

    def __post_init__(self) -> None:
        check(
            self.schedule.min_lr <= self.optimizer.lr,
            f"schedule.min_lr {self.schedule.min_lr} must be at most optimizer.lr {self.optimizer.lr}, which it ends",
        )
        self.task.check(self)
