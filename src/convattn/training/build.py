"""From a configuration to the parts of a run."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError
from convattn.data.loader import Samples, SeededSamples, TrainingLoader, evaluation_loader
from convattn.data.some_images import usual_size
from convattn.data.transforms import input_config
from convattn.model_files import check_can_be_saved
from convattn.rooms import room
from convattn.task import Dataset, Meter, PairTransform
from convattn.training.config import LoopConfig, RunConfig, name_and_source
from convattn.training.plug_ins import with_plug_ins
from convattn.training.processes import Processes
from convattn.walk import copying

__all__ = ["TrainingData", "build_ema", "build_model_and_data", "build_optimizer", "build_schedule"]

_MUCH_LARGER = 4  # times the size that the model sees


@dataclass(frozen=True)
class TrainingData:
    """The two splits of a run and their loaders."""

    train: Dataset | None  # None for a stream, which nobody has counted
    validation: Dataset
    train_loader: Any  # of `TrainingLoader`'s kind
    validation_loader: Any  # of Batch
    image_size: tuple[int, int]  # height and width that the model expects
    evaluations: tuple["Evaluation", ...] = ()  # beside the validation

    def remarks(self) -> list[str]:
        """What a person may not expect: that images are seen much smaller than they are."""
        size = usual_size(self.validation)
        if size is None or min(size) <= _MUCH_LARGER * max(self.image_size):
            return []
        height_seen, width_seen = self.image_size
        return [
            f"images of about {size[0]} x {size[1]} pixels are seen at {width_seen} x {height_seen} (data.image_size); "
            "of photographs a model usually needs 224 or more"
        ]


@dataclass(frozen=True)
class Evaluation:
    """Further images on which a run is judged, without a say in which model is the best."""

    name: str  # begins the names of its figures
    images: int
    loader: Any  # of Batch
    meter: Callable[[], Meter]


def build_model_and_data(config: RunConfig, processes: Processes) -> tuple[TrainingData, nn.Module]:
    """This process's share of the data, and a model for it that knows its input and its names.

    Raises:
        DataError: if images are missing, laid out in no known way, or too few for a batch.
        ConfigError, CheckpointError: if the model cannot be built as configured.
    """
    task = room(config.task.kind)
    train, validation = task.open_training(config)
    model = task.build_model(config, validation if train is None else train)
    model = with_plug_ins(model, config.model.plug_ins, config.model.name)
    check_can_be_saved(model)
    train_loader = _training_loader(config, train, validation, task.training_transform(model, config), processes)
    loader = partial(_evaluation_loader, config, model, processes)
    evaluations = []
    for name, source in map(name_and_source, config.data.evaluations):
        data, meter = task.further_evaluation(source, config, model, validation)
        evaluations.append(Evaluation(name, len(data), loader(data), meter))
    height, width = input_config(model)["input_size"][-2:]
    return TrainingData(train, validation, train_loader, loader(validation), (height, width), tuple(evaluations)), model


def _evaluation_loader(config: RunConfig, model: nn.Module, processes: Processes, data: Dataset) -> Any:
    task = room(config.task.kind)
    return evaluation_loader(
        Samples(data, task.evaluation_transform(model)),
        config.data.batch_size,
        targets=task.collate,
        workers=config.data.workers,
        rank=processes.rank,
        replicas=processes.count,
        device=processes.device,
    )


def _training_loader(
    config: RunConfig, train: Dataset | None, validation: Dataset, transform: PairTransform, processes: Processes
) -> Any:
    data, count, task = config.data, processes.count, room(config.task.kind)
    share: dict[str, Any] = dict(
        workers=data.workers, seed=config.loop.seed, rank=processes.rank, replicas=count, device=processes.device
    )
    if train is None:
        return task.open_stream(config, transform, validation, **share)
    if data.epoch_images is not None:
        raise DataError(f"{data.source}: data.epoch_images has no effect on images that can be counted; leave it out")
    if len(train) < data.batch_size * count:
        most = len(train) // count // config.task.batch_multiple * config.task.batch_multiple
        raise DataError(
            f"{data.source}: {len(train)} training images do not fill a batch of {data.batch_size}"
            f"{f' in each of {count} processes' if count > 1 else ''}; "
            + (f"lower data.batch_size to {most} or less" if most else "there is no smaller batch; add images")
        )
    samples = SeededSamples(train, transform, config.loop.seed)
    return TrainingLoader(
        samples,
        data.batch_size,
        targets=task.collate,
        order=task.order(config, train),
        repeats=data.repeats,
        **share,
    )


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
        ConfigError: if a pattern of `no_decay` matches no parameter, or a backbone's rate is set of a model without.
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
    if optimizer.backbone_lr is not None:
        groups = _with_backbone_apart(model, groups, optimizer.backbone_lr)
    return create_optimizer_v2(
        groups,
        opt=optimizer.name,
        lr=optimizer.lr * _lr_factor(config, num_processes),
        weight_decay=0.0,  # the groups have it
        **{name: value for name, value in given.items() if value is not None},
    )


def _with_backbone_apart(model: Any, groups: list[dict[str, Any]], scale: float) -> list[dict[str, Any]]:
    """Groups of parameters, those of `model.backbone` with a learning rate of their own."""
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise ConfigError(f"optimizer.backbone_lr {scale} has no effect on a model without a backbone; leave it out")
    own = {id(parameter) for parameter in backbone.parameters()}
    return [
        {**group, "params": params, **({"lr_scale": scale} if inside else {})}
        for group in groups
        for inside in (True, False)
        if (params := [parameter for parameter in group["params"] if (id(parameter) in own) is inside])
    ]


def build_schedule(
    optimizer: torch.optim.Optimizer, config: RunConfig, updates_per_epoch: int, num_processes: int
) -> "Schedule":
    """The learning rate as a function of updates done; the first update's is set.

    ConfigError for a warm-up as long as the run.
    """
    schedule = config.schedule
    factor = _lr_factor(config, num_processes)
    updates = schedule.length(updates_per_epoch)
    warmup = schedule.warmup_updates
    if warmup is None:
        warmup = round(schedule.warmup_epochs * updates_per_epoch)
    if warmup and warmup >= updates:
        raise ConfigError(
            f"a warm-up of {warmup} updates must be below the {updates} updates of the run; "
            "set schedule.warmup_epochs, or schedule.warmup_updates with schedule.warmup_epochs 0"
        )
    # Counted in updates (one update an "epoch" to timm), so that a warm-up may end within an epoch.
    factor_from = schedule.warmup_factor
    # Milestones count from the start, and what multiplies a schedule does not move it.
    prefix = schedule.warmup_prefix and schedule.name != "multistep" and factor_from is None
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=schedule.name,
        num_epochs=max(1, updates - warmup if prefix else updates),
        min_lr=schedule.min_lr * factor,
        warmup_lr=schedule.warmup_lr * factor,
        warmup_epochs=warmup if factor_from is None else 0,
        warmup_prefix=prefix,
        # timm lets a milestone act one step before itself
        decay_milestones=[
            at * (updates_per_epoch if schedule.updates is None else 1) + 1 for at in schedule.milestones
        ],
        # timm's name for the power of `poly`
        decay_rate=schedule.power or 1.0 if schedule.name == "poly" else schedule.decay_rate or 0.1,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    stride = updates_per_epoch if schedule.per_epoch else 1
    result = Schedule(scheduler, stride, 0 if factor_from is None else warmup, factor_from or 0.0)
    result.step_update(0)
    return result


class Schedule:
    """Sets the learning rate for the number of updates done. It has no state: resuming is stepping to that number.

    Args:
        scheduler: of timm, counting in updates.
        stride: updates between two changes of the learning rate.
        warmup: updates in which the rate is multiplied by a factor that rises linearly to 1.
        start: that factor at the first update.
    """

    def __init__(self, scheduler: Scheduler, stride: int, warmup: int = 0, start: float = 0.0):
        self._scheduler, self._stride = scheduler, stride
        self._warmup, self._start = warmup, start

    def step_update(self, updates: int) -> None:
        """Set the learning rate for the update behind so many."""
        self._scheduler.step_update(updates - updates % self._stride)
        if updates < self._warmup:
            factor = 1 - (1 - updates / self._warmup) * (1 - self._start)
            for group in self._scheduler.optimizer.param_groups:
                group["lr"] *= factor


def _lr_factor(config: RunConfig, num_processes: int) -> float:
    if config.optimizer.lr_batch_size is None:
        return 1.0
    return config.data.batch_size * config.loop.accumulation * num_processes / config.optimizer.lr_batch_size
