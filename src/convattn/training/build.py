"""From a configuration to the parts of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from convattn.backbones.registry import create_model
from convattn.classification.task import Classification, balanced_weights
from convattn.data.dataset import DataError, ImageDataset
from convattn.data.loader import Samples, SeededSamples, TrainingLoader, evaluation_loader
from convattn.data.sources import open_data
from convattn.data.transforms import training_transform, transforms_for
from convattn.saved import open_model
from convattn.training.config import ConfigError, LoopConfig, ModelConfig, RunConfig
from convattn.training.processes import Processes

__all__ = [
    "TrainingData",
    "build_ema",
    "build_model",
    "build_model_and_data",
    "build_optimizer",
    "build_schedule",
    "build_task",
    "build_task_for",
]


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run and their loaders."""

    train: ImageDataset
    validation: ImageDataset
    train_loader: TrainingLoader
    validation_loader: Any  # of Batch
    image_size: tuple[int, int]  # height and width of a batch's images


def build_model_and_data(config: RunConfig, processes: Processes) -> tuple[TrainingData, nn.Module]:
    """This process's share of the data, and a model with one output per class that knows their names and its input."""
    data = config.data
    train = open_data(data.source, "train", data.image_size or 32)
    validation = open_data(data.validation or data.source, "val", data.image_size or 32)
    smallest = data.batch_size * processes.count
    if len(train) < smallest:
        raise DataError(
            f"{data.source}: {len(train)} training images do not fill a batch of {data.batch_size}"
            f"{f' in each of {processes.count} processes' if processes.count > 1 else ''}; "
            f"lower data.batch_size to {len(train) // processes.count // 2 * 2} or less"
        )
    model = build_model(config.model, len(train.classes))
    _describe_input(model, config, train)
    train_loader = TrainingLoader(
        SeededSamples(train, training_transform(model, data.augmentation), config.loop.seed),
        data.batch_size,
        workers=data.workers,
        seed=config.loop.seed,
        repeats=data.repeats,
        rank=processes.rank,
        replicas=processes.count,
    )
    validation_loader = evaluation_loader(
        Samples(validation, transforms_for(model)),
        data.batch_size,
        workers=data.workers,
        rank=processes.rank,
        replicas=processes.count,
    )
    height, width = model.pretrained_cfg["input_size"][-2:]  # type: ignore[index]
    return TrainingData(train, validation, train_loader, validation_loader, (height, width)), model


def build_task(config: RunConfig, train: ImageDataset, device: torch.device) -> Classification:
    """The task: loss and metrics."""
    weights = None
    if config.loop.class_weights == "balanced":
        weights = balanced_weights(train.labels, len(train.classes)).to(device)
    return build_task_for(config, len(train.classes), weights, device)


def build_task_for(
    config: RunConfig, num_classes: int, class_weights: Tensor | None = None, device: torch.device | str = "cpu"
) -> Classification:
    """The task for so many classes, with a teacher where the configuration names one."""
    distillation = config.distillation
    teacher = open_model(distillation.teacher).to(device) if distillation.teacher is not None else None
    try:
        return Classification(
            num_classes,
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
    return ModelEmaV3(model, decay=loop.ema_decay, use_warmup=loop.ema_warmup, foreach=foreach)


def build_optimizer(model: nn.Module, config: RunConfig, num_processes: int) -> torch.optim.Optimizer:
    """The optimiser. Biases and norms do not decay, nor what the model or the configuration names."""
    optimizer = config.optimizer
    given = {"betas": optimizer.betas, "eps": optimizer.eps, "momentum": optimizer.momentum}
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
    """The learning rate as a function of updates done; the first update's is set."""
    schedule = config.schedule
    factor = _lr_factor(config, num_processes)
    updates = schedule.epochs * updates_per_epoch
    warmup = schedule.warmup_updates
    if warmup is None:
        warmup = round(schedule.warmup_epochs * updates_per_epoch)
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


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The model of a configuration; raises ConfigError if it takes no such option."""
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    options: Mapping[str, Any] = {**{name: rate for name, rate in rates.items() if rate}, **config.options}
    try:
        model = create_model(
            config.name, config.pretrained, num_classes, pretrained_path=config.pretrained_path, **options
        )
    except TypeError as error:
        raise ConfigError(f"model {config.name} cannot be built: {error}") from None
    if config.grad_checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
    return model


def _describe_input(model: nn.Module, config: RunConfig, train: ImageDataset) -> None:
    cfg: dict[str, Any] = dict(model.pretrained_cfg or {})  # type: ignore[arg-type]
    if config.data.image_size is not None:
        cfg["input_size"] = (3, config.data.image_size, config.data.image_size)
    if config.data.crop_ratio is not None:
        cfg["crop_pct"] = config.data.crop_ratio
    cfg["num_classes"] = len(train.classes)
    cfg["label_names"] = tuple(train.classes)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]
