"""Everything alive during a run: built from its configuration, written to a checkpoint, taken up from one."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.config_errors import ConfigError, RunFolderError
from convattn.data.sources import is_stream
from convattn.evaluation import measure
from convattn.ops.linear import is_of_linear
from convattn.rooms import room
from convattn.seeding import derived_seed, random_state, restore_random_state, seed_everything
from convattn.shown import reason, shown
from convattn.task import Batch, Meter
from convattn.training import sharded
from convattn.training.batch_norm import KeptStatistics, measure_once, synchronised
from convattn.training.build import TrainingData, build_ema, build_model_and_data, build_optimizer, build_schedule
from convattn.training.checkpoint import (
    Checkpoint,
    checkpoint_folders,
    read_checkpoint,
    reshape_moments,
    save_checkpoint,
)
from convattn.training.config import RunConfig
from convattn.training.config_json import config_to_json
from convattn.training.processes import Processes
from convattn.training.unreadable import UnreadableImages
from convattn.walk import copied
from convattn.weights.read import CheckpointError

__all__ = ["UNSPLIT", "Counters", "Run"]

UNSPLIT = "unsplit"  # the name of a sum over all losses, in checkpoints of before they had names

_ORDER = "hashed"  # how an epoch's order of images follows from seed and epoch; checkpoints of before do not say


@dataclass
class Counters:
    """Where a run stands; all of it is in the checkpoint."""

    epoch: int = 0  # epochs whose updates are done
    updates: int = 0  # done in the epoch under way
    step: int = 0  # updates done in all, skipped ones included
    validated: int = 0  # of these, those before the last validation
    validations: int = 0  # done in all
    images: int = 0  # trained on since the last validation, by all processes
    loss_sums: dict[str, float] = field(default_factory=dict)  # over those images, by the losses' names
    best: float | None = None  # of the task's first metric
    best_validation: int = 0  # when it was reached, from 1
    skipped: int = 0  # updates skipped in all
    skipped_in_a_row: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any], updates_per_epoch: int) -> "Counters":
        """Those of a checkpoint, also of one from before validations were counted: there each epoch ended in one."""
        counted = dict(state["counters"])
        if "validations" not in counted:
            total = counted.pop("loss_sum")
            counted |= dict(best_validation=counted.pop("best_epoch"), validations=counted["epoch"])
            counted |= dict(validated=counted["epoch"] * updates_per_epoch, loss_sums={UNSPLIT: total} if total else {})
            if state["epoch_trained"]:
                counted |= dict(epoch=counted["epoch"] + 1, updates=0)
        counters = cls(**counted)
        counters._check()
        return counters

    def _check(self) -> None:
        for name, value in asdict(self).items():
            if name == "loss_sums":
                fits = isinstance(value, dict) and all(isinstance(each, float | int) for each in value.values())
            elif name == "best":
                fits = isinstance(value, float | int) or value is None
            else:
                fits = type(value) is int and 0 <= value < 2**62
            if not fits:
                raise TypeError(f"counter {name} is {value!r}")


class Run:
    """The parts of a run, which writes to `folder`; ConfigError, DataError as `train`."""

    def __init__(self, config: RunConfig, folder: Path, processes: Processes):
        self.config, self.folder, self.processes = config, folder, processes
        loop = config.loop
        seed_everything(loop.seed)
        self.memory_format = torch.channels_last if loop.channels_last else torch.contiguous_format
        self.notes: list[str] = []  # what the user should know of how it was built
        # One of them tells what is odd about data and weights.
        with warnings.catch_warnings(action=None if processes.is_main else "ignore"):
            self.data, model = self._build(config)
            self.room = room(config.task.kind)
            self.task = self.room.build(
                config, model, self.data.train, self.data.validation, processes.device, self.notes.append
            )
        # The same weights everywhere, but each its own noise.
        seed_everything(derived_seed("noise", loop.seed, processes.rank))
        model = model.to(processes.device)
        if loop.sharding == "none":
            model = model.to(memory_format=self.memory_format)  # FSDP2 takes contiguous weights only
        if loop.sync_batch_norm and processes.count > 1:
            model = synchronised(model, processes.device)
        if config.model.grad_checkpointing:
            measure_once(model)
        self.ema = build_ema(model, loop)
        self.bare_model = model  # as built: what is saved and averaged
        self._whole: nn.Module | None = None  # of a sharded model: takes all weights for validation
        if loop.sharding == "fsdp":
            self._whole = copied(model)
            sharded.shard(model, processes.device)
            if self.ema is not None:
                sharded.shard(self.ema.module, processes.device)
        if loop.compile:
            model.compile()
        self.updates_per_epoch = math.ceil(len(self.data.train_loader) / loop.accumulation)
        optimizer = build_optimizer(model, config, processes.count)
        self.schedule = build_schedule(optimizer, config, self.updates_per_epoch, processes.count)
        self._inner = optimizer
        self.optimizer = processes.accelerator.prepare(optimizer)  # around it
        self.model: nn.Module = model
        self._frozen: bool | None = None  # not wrapped yet
        self.statistics = KeptStatistics(model)
        self.counters = Counters()
        self.unreadable = UnreadableImages(folder, self.data.train_loader.images)
        self._whole_checkpoints: set[Path] = set()  # that this process wrote, or resumed from

    def _build(self, config: RunConfig) -> tuple[TrainingData, nn.Module]:
        """Data and model. A run that goes on takes its weights from its checkpoint: those it began with may be gone."""
        if self.processes.from_main(bool(checkpoint_folders(self.folder))):
            alone = replace(config.model, pretrained=False, pretrained_path=None, head_rows=None)
            config = replace(config, model=alone)
        return build_model_and_data(config, self.processes)

    @property
    def images_per_update(self) -> int:
        """Images that all processes take together for one update."""
        return self.config.data.batch_size * self.config.loop.accumulation * self.processes.count

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.config.schedule.length(self.updates_per_epoch)

    @property
    def next_validation(self) -> int:
        """The number of updates behind which the next validation is due."""
        every = self._between_validations
        return min((self.counters.validated // every + 1) * every, self.updates)

    @property
    def _between_validations(self) -> int:
        loop = self.config.loop
        return loop.validation_updates or loop.validation_epochs * self.updates_per_epoch

    @property
    def _readers(self) -> list[int] | None:
        """What the order of a pipe's images depends on: processes, and workers that read in each."""
        data = self.config.data
        return [self.processes.count, max(data.workers, 1)] if is_stream(data.source) else None

    @property
    def _classes(self) -> list[str] | None:
        """What the model's outputs are called, in order: others would learn on under the names of these."""
        return self.room.names(self.bare_model)

    @property
    def is_frozen(self) -> bool:
        """Whether the head alone learns in the epoch under way."""
        return self.counters.epoch < self.config.loop.freeze_epochs

    def remarks(self) -> list[str]:
        """What the user should know of the images, in the words of the task."""
        return self.room.remarks(self.config, self.data.train, self.data.validation)

    @property
    def lr(self) -> float:
        """The learning rate of the next update; of the fastest layer where they differ."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def start_epoch(self) -> None:
        """Put the model into training mode, with the backbone frozen in the epochs that ask for it."""
        frozen = self.is_frozen
        if frozen is not self._frozen:
            self._frozen = frozen
            self._wrap(frozen)
        self.task.start_epoch(self.counters.epoch)
        self.model.train()
        if frozen:  # batch statistics stay as they are too
            self.bare_model.eval()
            self.task.head(self.bare_model).train()

    def end_epoch(self) -> None:
        """Begin to count the next epoch's updates where those of this one are done."""
        if self.counters.updates >= self.updates_per_epoch:
            self.counters.epoch, self.counters.updates = self.counters.epoch + 1, 0

    def result_model(self) -> nn.Module:
        """What is validated and kept, the same in every process: the moving average where there is one."""
        source = self.bare_model if self.ema is None else self.ema.module
        self.processes.align(source)
        if self._whole is None:
            return source
        self._whole.load_state_dict(sharded.full_state(source))
        return self._whole

    def measure(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        meter: Meter,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        """`convattn.evaluation.measure` in the precision of the run."""
        measure(
            model,
            batches,
            meter,
            self.processes.device,
            autocast=self.processes.accelerator.autocast,
            memory_format=self.memory_format,
            on_batch=on_batch,
        )

    def save(self) -> None:
        """Write a checkpoint; all processes call it."""
        self.processes.accelerator.wait_for_everyone()
        shards = None
        random_states = self.processes.gather([random_state()])
        if self.config.loop.sharding == "fsdp":
            shards = self.folder / "checkpoints" / ".shards.writing"
            ema = None if self.ema is None else self.ema.module
            for model in (self.bare_model, ema):
                if model is not None:
                    self.processes.align(model)  # one copy of what is not spread is written
            sharded.save_shards(shards, self.bare_model, ema, self._inner)
        if self.processes.is_main:
            scaler = self.processes.accelerator.scaler
            state = {
                "counters": asdict(self.counters),
                "images": self.data.train_loader.images,
                "images_per_update": self.images_per_update,
                "readers": self._readers,
                "order": _ORDER,
                "classes": self._classes,
                "optimizer": None if shards else self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random": random_states,
            }
            written = save_checkpoint(
                self.folder,
                epoch=self.counters.epoch,
                image=self.counters.updates * self.images_per_update,
                model=None if shards else self.bare_model,
                ema=None if shards or self.ema is None else self.ema.module,
                shards=shards,
                state=state,
                config=config_to_json(self.config),
                keep=self.config.output.keep_checkpoints,
                trusted=self._whole_checkpoints,
            )
            self._whole_checkpoints.add(written)
        self.processes.accelerator.wait_for_everyone()

    def restore(self, note: Callable[[str], None]) -> None:
        """Take up the newest whole checkpoint of the run folder, if one was written yet.

        Args:
            note: shows one line to the user.

        Raises:
            ConfigError: if the data has changed, or the place in the epoch is no whole number of updates any more, or a
                pipe is read by another number of processes.
            CheckpointError: if there are checkpoints and all are damaged.
        """
        folders = self.processes.from_main(checkpoint_folders(self.folder))
        if not folders:
            note(f"{self.folder}: no checkpoint was written yet; starting from the beginning")
            return
        problems: list[str] = []
        for folder in folders:
            problem = self._take_up(folder, note)
            if problem is None:
                for line in problems:
                    note(f"warning: {line}; going on from {folder.name}")
                self._whole_checkpoints.add(folder)
                return
            problems.append(problem)
        raise CheckpointError(f"{self.folder}: no checkpoint to resume from ({'; '.join(problems)})")

    def _take_up(self, folder: Path, note: Callable[[str], None]) -> str | None:
        """Take up one checkpoint; or what is wrong with it in some process, the same answer in all."""
        checkpoint, problem = None, None
        try:
            checkpoint = read_checkpoint(folder)
        except CheckpointError as error:
            problem = str(error)
        problem = self._found_by_any(problem)
        if problem is not None or checkpoint is None:
            return problem
        whole = True
        try:
            whole = self._restore_from(checkpoint, note)
        except ConfigError:  # of this run, not of the checkpoint
            raise
        except Exception as error:  # whatever a state of another shape makes its reader stumble on
            problem = f"{folder}: damaged: it does not fit the run ({type(error).__name__}: {reason(error, 200)})"
        problem = self._found_by_any(problem)
        if problem is None and not all(self.processes.gather([whole])):
            note("resumed on another kind of device: the same images, other random numbers on it")
        return problem

    def _found_by_any(self, problem: str | None) -> str | None:
        return next((found for found in self.processes.gather([problem]) if found is not None), None)

    def _restore_from(self, checkpoint: Checkpoint, note: Callable[[str], None]) -> bool:
        """Take up all that is in a checkpoint; returns whether every random state could be, on this device."""
        state = checkpoint.state
        counters = Counters.of(state, self.updates_per_epoch)
        if type(state["images"]) is not int:
            raise TypeError(f"images is {state['images']!r}")
        if state["images"] != self.data.train_loader.images:
            raise RunFolderError(
                f"{self.config.data.source}: {self.data.train_loader.images} training images, but {state['images']} "
                "when the run was stopped; restore the data or start a new run"
            )
        self._check_classes(state.get("classes"))  # checkpoints of an earlier version do not say
        within = 0 < counters.updates < self.updates_per_epoch
        if state["readers"] != self._readers and within:
            raise ConfigError(
                f"{self.config.data.source}: within an epoch a pipe is resumed by as many processes and data.workers "
                f"as before: {state['readers']}, not {self._readers}"
            )
        self._check_order(checkpoint, within, note)
        counters = self._place(counters, state)
        self._restore_weights(checkpoint)
        self.schedule.step_update(counters.step)
        scaler = self.processes.accelerator.scaler
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        self.counters = counters
        return self._restore_random_state(state["random"], note)

    def _check_classes(self, before: list[str] | None) -> None:
        """An output does not learn on as another class."""
        now, source = self._classes, self.config.data.source
        if before is None or now is None or before == now:
            return
        if len(now) != len(before):
            found = f"{len(now)} classes, but {len(before)}"
        else:
            at = next(at for at, name in enumerate(now) if name != before[at])
            found = f"class {at} is {shown(now[at])}, but {shown(before[at])}"
        raise ConfigError(f"{source}: {found} when the run was stopped; restore their names or start a new run")

    def _check_order(self, checkpoint: Checkpoint, within: bool, note: Callable[[str], None]) -> None:
        """An epoch is not taken up in another order than it began with: images would be seen twice, or not at all."""
        if self._readers is not None or checkpoint.state.get("order") == _ORDER:
            return
        if within:
            raise RunFolderError(
                f"{checkpoint.folder}: an earlier version of convattn stopped within this epoch, whose images it took "
                "in another order; resume with that version to the end of the epoch, or begin a new run"
            )
        note("begun by an earlier version of convattn: from here on the images come in another order than there")

    def _place(self, counters: Counters, state: dict[str, Any]) -> Counters:
        """The counters in updates of this run, which may take another number of images than those of the run before."""
        before, now = state["images_per_update"], self.images_per_update
        if before == now:
            return counters
        if self.config.schedule.updates is not None or self.config.loop.validation_updates is not None:
            raise ConfigError(
                f"a run that counts its length or its validations in updates takes {before} images for each "
                f"(data.batch_size x loop.accumulation x processes), as before, not {now}"
            )
        images = counters.updates * before
        if images % now:
            raise ConfigError(
                f"the epoch under way stands at image {images:,}, which is no multiple of an update's {now} "
                f"(data.batch_size x loop.accumulation x processes); take a divisor of {before}"
            )
        counters.updates = images // now
        counters.step = counters.epoch * self.updates_per_epoch + counters.updates
        counters.validated = counters.validations * self._between_validations
        return counters

    def _restore_weights(self, checkpoint: Checkpoint) -> None:
        ema = None if self.ema is None else self.ema.module
        if checkpoint.shards is not None:
            sharded.load_shards(checkpoint.shards, self.bare_model, ema, self._inner)
            return
        self.bare_model.load_state_dict(checkpoint.model)
        if ema is not None:
            ema.load_state_dict(checkpoint.ema or {})
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        weights = self.bare_model.named_parameters()
        old = [weight for name, weight in weights if is_of_linear(checkpoint.model[name].shape, weight.shape)]
        reshape_moments(self._inner, old)

    def _restore_random_state(self, states: list[dict[str, Any]], note: Callable[[str], None]) -> bool:
        if len(states) == self.processes.count:
            return restore_random_state(states[self.processes.rank])
        images = "the same images" if self._readers is None else "images in another order"
        note(f"resumed by {self.processes.count} processes, not {len(states)}: {images}, other random numbers")
        seed_everything(derived_seed("resumed", self.config.loop.seed, self.counters.step, self.processes.rank))
        return True

    def _wrap(self, frozen: bool) -> None:
        """(Un)freeze, and let Accelerate wrap the model for the parameters that learn now."""
        if self.config.loop.freeze_epochs:
            self.bare_model.requires_grad_(not frozen)
            self.task.head(self.bare_model).requires_grad_(True)
        if self.config.loop.sharding == "none":
            accelerator = self.processes.accelerator
            bare = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False, keep_torch_compile=True)
            self.model = accelerator.prepare_model(bare)
