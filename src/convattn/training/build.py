"""From a configuration to the parts of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from convattn.backbones.registry import create_model
from convattn.classification.task import Classification
from convattn.data.dataset import DataError, ImageDataset
from convattn.data.loader import Samples, evaluation_loader, training_loader
from convattn.data.sources import open_data
from convattn.data.transforms import training_transform, transforms_for
from convattn.extras import require
from convattn.training.config import ConfigError, LoopConfig, ModelConfig, RunConfig

__all__ = [
    "TrainingData",
    "build_accelerator",
    "build_ema",
    "build_model_and_data",
    "build_optimizer",
    "build_schedule",
    "build_task",
]


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run and their loaders."""

    train: ImageDataset
    validation: ImageDataset
    train_loader: Any  # a StatefulDataLoader of Batch
    validation_loader: Any  # of Batch


def build_accelerator(loop: LoopConfig) -> Any:
    """Accelerate's handle on device, precision and processes.

    Raises:
        ConfigError: for fp16 without a GPU. MissingExtra: if Accelerate is not installed.
    """
    accelerate = require("accelerate", "train")
    on_cpu = loop.device == "cpu" or not torch.cuda.is_available()
    if loop.precision == "fp16" and on_cpu:
        raise ConfigError("loop.precision fp16 needs a GPU; use bf16 or fp32 on the CPU")
    if not torch.distributed.is_initialized():
        # Accelerate keeps device and precision of the first run in a process; another run may want others.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    precision = "no" if loop.precision == "fp32" else loop.precision
    return accelerate.Accelerator(cpu=on_cpu, mixed_precision=precision)


def build_model_and_data(config: RunConfig) -> tuple[TrainingData, nn.Module]:
    """The data, and a model with one output per class of it that knows their names and its own input size."""
    data = config.data
    train = open_data(data.source, "train", data.image_size or 32)
    validation = open_data(data.source, "val", data.image_size or 32)
    if len(train) < data.batch_size:
        raise DataError(
            f"{data.source}: {len(train)} training images do not fill a batch of {data.batch_size}; "
            f"lower data.batch_size to {len(train) - len(train) % 2} or less"
        )
    model = _build_model(config.model, len(train.classes))
    _describe_input(model, config, train)
    train_loader = training_loader(
        Samples(train, training_transform(model, data.augmentation), config.loop.seed),
        data.batch_size,
        workers=data.workers,
        seed=config.loop.seed,
    )
    validation_loader = evaluation_loader(
        Samples(validation, transforms_for(model)), data.batch_size, workers=data.workers
    )
    return TrainingData(train, validation, train_loader, validation_loader), model


def build_task(config: RunConfig, num_classes: int) -> Classification:
    """The task: loss and metrics."""
    return Classification(
        num_classes,
        label_smoothing=config.loop.label_smoothing,
        mixup=config.data.mixup,
        cutmix=config.data.cutmix,
        mix_probability=config.data.mix_probability,
        cutmix_probability=config.data.cutmix_probability,
        mix_epochs=config.data.mix_epochs,
    )


def build_ema(model: nn.Module, loop: LoopConfig) -> ModelEmaV3 | None:
    """A moving average of weights and buffers (batch norm statistics belong to the weights they were measured with)."""
    if loop.ema_decay is None:
        return None
    return ModelEmaV3(model, decay=loop.ema_decay, use_warmup=loop.ema_warmup)


def build_optimizer(model: nn.Module, config: RunConfig, num_processes: int) -> torch.optim.Optimizer:
    """The optimiser; norms and biases do not decay."""
    optimizer = config.optimizer
    given = {"betas": optimizer.betas, "eps": optimizer.eps, "momentum": optimizer.momentum}
    return create_optimizer_v2(
        model,
        opt=optimizer.name,
        lr=optimizer.lr * _lr_factor(config, num_processes),
        weight_decay=optimizer.weight_decay,
        layer_decay=optimizer.layer_decay,
        **{name: value for name, value in given.items() if value is not None},
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: RunConfig, updates_per_epoch: int, num_processes: int
) -> Scheduler:
    """The learning rate as a function of updates done; the first update's is set."""
    schedule = config.schedule
    factor = _lr_factor(config, num_processes)
    updates = schedule.epochs * updates_per_epoch
    warmup = round(schedule.warmup_epochs * updates_per_epoch)
    # Counted in updates (one update an "epoch" to timm), so that a warm-up may end within an epoch.
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=max(1, updates - warmup if schedule.warmup_prefix else updates),
        min_lr=schedule.min_lr * factor,
        warmup_lr=schedule.warmup_lr * factor,
        warmup_epochs=warmup,
        warmup_prefix=schedule.warmup_prefix,
        decay_rate=1.0,  # timm's name for the power of `poly`
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    scheduler.step_update(0)
    return scheduler


def _lr_factor(config: RunConfig, num_processes: int) -> float:
    if config.optimizer.lr_batch_size is None:
        return 1.0
    return config.data.batch_size * config.loop.accumulation * num_processes / config.optimizer.lr_batch_size


def _build_model(config: ModelConfig, num_classes: int) -> nn.Module:
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
