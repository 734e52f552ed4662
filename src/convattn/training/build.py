"""From a configuration to the parts of a run."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from convattn.backbones.registry import create_model, image_size_of
from convattn.classification.task import Classification, balanced_weights
from convattn.classification.teacher import Student, fit_teacher
from convattn.data.dataset import DataError, ImageDataset
from convattn.data.images import ImageError
from convattn.data.joined import JoinedDataset
from convattn.data.loader import Samples, SeededSamples, TrainingLoader, evaluation_loader
from convattn.data.names import NumberedClasses
from convattn.data.sources import is_stream, open_training, open_unlabelled
from convattn.data.stream import StreamLoader
from convattn.data.transforms import Transform, training_transform, transforms_for
from convattn.saved import check_can_be_saved, label_names, open_model
from convattn.training.config import ConfigError, LoopConfig, ModelConfig, RunConfig
from convattn.training.processes import Processes
from convattn.walk import copying
from convattn.weights.head_rows import FRESH, STAND_INS, read_head_rows

__all__ = [
    "TrainingData",
    "build_ema",
    "build_model",
    "build_model_and_data",
    "build_optimizer",
    "build_schedule",
    "build_task",
    "build_task_for",
    "options_of",
]


_LOOKED_AT = 5  # validation images whose size is looked at
_MUCH_LARGER = 4  # times the size that the model sees


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run and their loaders."""

    classes: Sequence[str]
    labels: Sequence[int] | None  # of the training images; None for a stream, whose labels nobody has counted
    validation: ImageDataset
    train_loader: TrainingLoader | StreamLoader
    validation_loader: Any  # of Batch
    image_size: tuple[int, int]  # height and width of a batch's images
    student: Student  # how a teacher has to see them

    def remarks(self) -> list[str]:
        """What a person may not expect: that images are seen much smaller than they are."""
        seen = []
        for at in range(0, len(self.validation), max(1, len(self.validation) // _LOOKED_AT)):
            with suppress(ImageError):  # told where it matters
                seen.append(self.validation.read(at).size)
        if not seen:
            return []
        width, height = sorted(seen, key=min)[len(seen) // 2]
        if min(width, height) <= _MUCH_LARGER * max(self.image_size):
            return []
        height_seen, width_seen = self.image_size
        return [
            f"images of about {width} x {height} pixels are seen at {width_seen} x {height_seen} (data.image_size); "
            "of photographs a model usually needs 224 or more"
        ]


def build_model_and_data(config: RunConfig, processes: Processes) -> tuple[TrainingData, nn.Module]:
    """This process's share of the data, and a model with one output per class that knows their names and its input.

    Raises:
        DataError: if images are missing, laid out in no known way, of one class, or too few for a batch.
        ConfigError, CheckpointError: if the model cannot be built as configured.
    """
    train, validation = _open_splits(config)
    classes = validation.classes if train is None else train.classes
    model = build_model(config.model, len(classes), classes)
    _describe_input(model, config, classes)
    _check_size(model, config)
    train_loader = _training_loader(
        config, train, training_transform(model, config.data.augmentation), processes, classes
    )
    validation_loader = evaluation_loader(
        Samples(validation, transforms_for(model)),
        config.data.batch_size,
        workers=config.data.workers,
        rank=processes.rank,
        replicas=processes.count,
        device=processes.device,
    )
    labels = None if train is None else train.labels
    unnamed = isinstance(classes, NumberedClasses) and classes.are_places
    student = Student.of(model, None if unnamed else tuple(classes))
    data = TrainingData(classes, labels, validation, train_loader, validation_loader, student.image_size, student)
    return data, model


def _open_splits(config: RunConfig) -> tuple[ImageDataset | None, ImageDataset]:
    """The training images, None for a stream, and the validation images."""
    data, size = config.data, config.data.image_size or 32
    if is_stream(data.source) and (config.distillation.unlabelled is not None or data.repeats > 1):
        raise DataError(f"{data.source}: a pipe takes neither distillation.unlabelled nor data.repeats")
    train, validation = open_training(
        data.source, size, validation=data.validation, validation_labels=data.validation_labels
    )
    if train is not None and config.distillation.unlabelled is not None:
        train = JoinedDataset(train, open_unlabelled(config.distillation.unlabelled))
    return train, validation


def _training_loader(
    config: RunConfig, train: ImageDataset | None, transform: Transform, processes: Processes, classes: Sequence[str]
) -> TrainingLoader | StreamLoader:
    data, count = config.data, processes.count
    share: dict[str, Any] = dict(
        workers=data.workers, seed=config.loop.seed, rank=processes.rank, replicas=count, device=processes.device
    )
    if train is None:
        return StreamLoader(data.source, transform, classes, data.batch_size, images=data.epoch_images, **share)
    if data.epoch_images is not None:
        raise DataError(f"{data.source}: data.epoch_images has no effect on images that can be counted; leave it out")
    if len(train) < data.batch_size * count:
        raise DataError(
            f"{data.source}: {len(train)} training images do not fill a batch of {data.batch_size}"
            f"{f' in each of {count} processes' if count > 1 else ''}; "
            f"lower data.batch_size to {len(train) // count // 2 * 2} or less"
        )
    samples = SeededSamples(train, transform, config.loop.seed)
    return TrainingLoader(samples, data.batch_size, repeats=data.repeats, **share)


def build_task(
    config: RunConfig, data: TrainingData, device: torch.device, note: Callable[[str], None] | None = None
) -> Classification:
    """The task: loss and metrics.

    Args:
        config, data: of the run.
        device: where it trains.
        note: shows one line to the user, for each thing in which a teacher differs from the model; without it such a
            teacher is refused.

    Raises:
        ConfigError: if its fields do not go together, or the teacher cannot teach this.
    """
    weights = None
    if config.loop.class_weights == "balanced":
        if data.labels is None:
            raise ConfigError("loop.class_weights balanced needs images that can be counted, not a pipe")
        weights = balanced_weights(data.labels, len(data.classes)).to(device)
    return build_task_for(config, data.student, weights, device, note)


def build_task_for(
    config: RunConfig,
    student: Student,
    class_weights: Tensor | None = None,
    device: torch.device | str = "cpu",
    note: Callable[[str], None] | None = None,
) -> Classification:
    """The task for such a model, with a teacher where the configuration names one."""
    distillation = config.distillation
    teacher = open_model(distillation.teacher) if distillation.teacher is not None else None
    try:
        if teacher is not None:
            teacher = fit_teacher(teacher, student, str(distillation.teacher), note).to(device)
        return Classification(
            student.num_classes,
            label_smoothing=config.loop.label_smoothing,
            mixup=config.data.mixup,
            cutmix=config.data.cutmix,
            mix_probability=config.data.mix_probability,
            cutmix_probability=config.data.cutmix_probability,
            mix_epochs=config.data.mix_epochs,
            class_weights=class_weights,
            teacher=teacher,
            distillation=distillation if teacher is not None else None,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_ema(model: nn.Module, loop: LoopConfig) -> ModelEmaV3 | None:
    """A moving average of weights and buffers (batch norm statistics belong to the weights they were measured with)."""
    if loop.ema_decay is None:
        return None
    # Many tensors at once is faster, but refuses buffers beside sharded weights.
    foreach = loop.sharding == "none"
    with copying():
        return ModelEmaV3(model, decay=loop.ema_decay, use_warmup=loop.ema_warmup, foreach=foreach)


def build_optimizer(model: nn.Module, config: RunConfig, num_processes: int) -> torch.optim.Optimizer:
    """The optimiser. Biases and norms do not decay, nor what the model or the configuration names.

    Raises:
        ConfigError: if a pattern of `no_decay` matches no parameter.
    """
    optimizer = config.optimizer
    given = {"betas": optimizer.betas, "eps": optimizer.eps, "momentum": optimizer.momentum}
    for pattern in optimizer.no_decay:
        if not fnmatch.filter((name for name, _ in model.named_parameters()), pattern):
            raise ConfigError(f"optimizer.no_decay {pattern!r} matches no parameter of {config.model.name}")
    exempt = {*optimizer.no_decay, *(getattr(model, "no_weight_decay", set)())}
    decay = dict(weight_decay=optimizer.weight_decay, weight_decay_exclude_1d=not optimizer.decay_all)
    if optimizer.layer_decay is not None:
        groups = param_groups_layer_decay(
            model, no_weight_decay_list=exempt, layer_decay=optimizer.layer_decay, **decay
        )
    else:
        groups = param_groups_weight_decay(model, no_weight_decay_list=exempt, **decay)
    return create_optimizer_v2(
        groups,
        opt=optimizer.name,
        lr=optimizer.lr * _lr_factor(config, num_processes),
        weight_decay=0.0,  # the groups have it
        **{name: value for name, value in given.items() if value is not None},
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: RunConfig, updates_per_epoch: int, num_processes: int
) -> "Schedule":
    """The learning rate as a function of updates done; the first update's is set.

    Raises:
        ConfigError: if the warm-up is longer than the run.
    """
    schedule = config.schedule
    factor = _lr_factor(config, num_processes)
    updates = schedule.epochs * updates_per_epoch
    warmup = schedule.warmup_updates
    if warmup is None:
        warmup = round(schedule.warmup_epochs * updates_per_epoch)
    elif warmup >= updates:
        raise ConfigError(f"schedule.warmup_updates {warmup} must be below the {updates} updates of the run")
    # Counted in updates (one update an "epoch" to timm), so that a warm-up may end within an epoch.
    prefix = schedule.warmup_prefix and schedule.name != "multistep"  # milestones count from the start
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=max(1, updates - warmup if prefix else updates),
        min_lr=schedule.min_lr * factor,
        warmup_lr=schedule.warmup_lr * factor,
        warmup_epochs=warmup,
        warmup_prefix=prefix,
        # timm lets a milestone act one step before itself
        decay_milestones=[epoch * updates_per_epoch + 1 for epoch in schedule.milestones],
        decay_rate=1.0
        if schedule.name == "poly"
        else schedule.decay_rate or 0.1,  # timm's name for the power of `poly`
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    result = Schedule(scheduler, updates_per_epoch if schedule.per_epoch else 1)
    result.step_update(0)
    return result


class Schedule:
    """Sets the learning rate for the number of updates done. It has no state: resuming is stepping to that number.

    Args:
        scheduler: of timm, counting in updates.
        stride: updates between two changes of the learning rate.
    """

    def __init__(self, scheduler: Scheduler, stride: int):
        self._scheduler, self._stride = scheduler, stride

    def step_update(self, updates: int) -> None:
        """Set the learning rate for the update behind so many."""
        self._scheduler.step_update(updates - updates % self._stride)


def _lr_factor(config: RunConfig, num_processes: int) -> float:
    if config.optimizer.lr_batch_size is None:
        return 1.0
    return config.data.batch_size * config.loop.accumulation * num_processes / config.optimizer.lr_batch_size


def build_model(config: ModelConfig, num_classes: int, classes: Sequence[str] = ()) -> nn.Module:
    """The model of a configuration, with weights if it names some.

    Args:
        config: name, options, weights to start from.
        num_classes: outputs.
        classes: their names. Where a model file knows them all, each output starts as that of its name; where it knows
            others, the classifier starts fresh.

    Raises:
        ConfigError: if the model takes no such option, or `head_rows` are not as many as the classes.
        CheckpointError: if the weights cannot be had or do not fit.
    """
    names = label_names(config.pretrained_path) if config.pretrained_path is not None else []
    rows = _head_rows(config, num_classes, classes, names)
    weights: dict[str, Any] = dict(pretrained_path=config.pretrained_path, head_rows=rows)
    if list(classes) != names:  # else there is nothing to tell
        weights["classes"] = classes
    try:
        model = create_model(config.name, config.pretrained, num_classes, **weights, **options_of(config))
    except TypeError as error:
        raise ConfigError(f"model {config.name} cannot be built: {error}") from None
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing()  # type: ignore[operator]
        except (AssertionError, AttributeError):  # how timm's models say so
            raise ConfigError(f"model.grad_checkpointing: {config.name} does not offer it; leave it out") from None
    check_can_be_saved(model)
    return model


def options_of(config: ModelConfig) -> Mapping[str, Any]:
    """What a configuration says of the network itself, as `create_model` takes it."""
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    return {**{name: rate for name, rate in rates.items() if rate}, **config.options}


def _head_rows(
    config: ModelConfig, num_classes: int, classes: Sequence[str], names: Sequence[str]
) -> list[int] | str | None:
    """Which outputs of a file with classes of such names the model's start as; None for the same, or new ones."""
    if config.head_rows == FRESH:
        return FRESH
    if config.head_rows is not None:
        rows = read_head_rows(config.head_rows)
        if len(rows) != num_classes:
            raise ConfigError(f"{config.head_rows}: {len(rows)} rows for {num_classes} classes; write one a class")
        return rows
    if not classes or not names or list(classes) == names:
        return None
    position = {name: row for row, name in enumerate(names)}
    wanted = [name if name in position else STAND_INS.get(name, name) for name in classes]
    if len(position) < len(names) or not {*wanted} <= position.keys():
        return FRESH  # even where they are as many
    return [position[name] for name in wanted]


@torch.no_grad()
def _check_size(model: nn.Module, config: RunConfig) -> None:
    """Try an image of another size than the model's own: some take theirs alone.

    Raises:
        ConfigError: naming data.image_size.
    """
    size, own = config.data.image_size, _own_size(config.model)
    if size is None or size == own:
        return
    device = next(model.parameters()).device
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"data.image_size {size}: {config.model.name} does not take such images ({reason}); its own size is {own}: "
            f"set data.image_size {own}"
        ) from None
    finally:
        model.train(was_training)


def _own_size(config: ModelConfig) -> int:
    """Height and width of the images that a model is made for."""
    given = config.options.get("img_size")
    if given is not None:
        return given if isinstance(given, int) else given[-1]
    return image_size_of(config.name)


def _describe_input(model: nn.Module, config: RunConfig, classes: Sequence[str]) -> None:
    cfg: dict[str, Any] = dict(model.pretrained_cfg or {})  # type: ignore[arg-type]
    if config.data.image_size is not None:
        cfg["input_size"] = (3, config.data.image_size, config.data.image_size)
    if config.data.crop_ratio is not None:
        cfg["crop_pct"] = config.data.crop_ratio
    cfg["num_classes"] = len(classes)
    cfg["label_names"] = tuple(classes)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
