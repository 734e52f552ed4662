"""The one training loop. The task gives the loss and the metrics; Accelerate gives device, precision and processes.

epoch:  [ batch, …, batch ] -> loss, backward -> clip -> optimiser, schedule, moving average      (one update)
        -> metrics on the validation images -> log, best.safetensors, last.safetensors, checkpoint
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from convattn.atomic import write_atomically
from convattn.data.loader import Batch, start_epoch
from convattn.saved import save_model
from convattn.seeding import random_state, restore_random_state, seed_everything
from convattn.training.build import (
    build_accelerator,
    build_ema,
    build_model_and_data,
    build_optimizer,
    build_schedule,
    build_task,
)
from convattn.training.checkpoint import checkpoint_folders, load_newest_checkpoint, save_checkpoint
from convattn.training.config import ConfigError, RunConfig
from convattn.training.config_json import config_from_json, config_to_json
from convattn.training.journal import Journal
from convattn.training.progress import TrainingDisplay
from convattn.training.signals import StopRequest
from convattn.training.unreadable import UnreadableImages

__all__ = ["Interrupted", "TrainingError", "train"]


class TrainingError(ValueError):
    """Training cannot go on."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside; a checkpoint to resume from was written."""


class _StopDuringValidation(Exception):
    """Leaves the validation when a stop was asked for."""


@dataclass
class Counters:
    """Where a run stands; all of it is in the checkpoint."""

    epoch: int = 0  # epochs finished, validation included
    updates: int = 0  # done in the epoch under way
    step: int = 0  # updates done in all
    images: int = 0  # trained on in the epoch under way
    loss_sum: float = 0.0  # over those images
    best: float | None = None  # of the task's metric


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a model as `config` says, and write everything into its output folder.

    Args:
        config: the whole run.
        resume: go on from the newest whole checkpoint in the output folder. The run ends as it would have without the
            interruption: bit for bit on the CPU.
        console: where progress goes; standard error by default.

    Returns:
        The run folder, with `best.safetensors`, `last.safetensors`, `log.jsonl`, `config.json`, `checkpoints/` and
        `tensorboard/`.

    Raises:
        ConfigError: if the output folder is not empty (without `resume`), holds no run or another one (with it).
        DataError: if the data is missing, empty or smaller than a batch. CheckpointError: if no checkpoint is whole.
        TrainingError: if the loss is not finite, or more than 1 % of the images cannot be read.
        Interrupted: a KeyboardInterrupt, after Ctrl-C or SIGTERM, once a checkpoint is written.
        OSError: if the disk is full; the last checkpoint survives.
    """
    folder = _open_output(config, resume)
    with StopRequest() as stop:
        run = _Run(config, folder, stop, console)
        if resume:
            run.restore()
        else:
            write_atomically(folder / "config.json", config_to_json(config).encode())
        run.train()
    return folder


class _Run:
    """Everything alive during a run."""

    def __init__(self, config: RunConfig, folder: Path, stop: StopRequest, console: Console | None):
        self.config, self.folder, self.stop, self.console = config, folder, stop, console
        self.accelerator = build_accelerator(config.loop)
        seed_everything(config.loop.seed)
        self.memory_format = torch.channels_last if config.loop.channels_last else torch.contiguous_format
        self.data, model = build_model_and_data(config)
        self.task = build_task(config, len(self.data.train.classes))
        model = model.to(self.accelerator.device).to(memory_format=self.memory_format)
        self.ema = build_ema(model, config.loop)
        optimizer = build_optimizer(model, config, self.accelerator.num_processes)
        self.updates_per_epoch = math.ceil(len(self.data.train_loader) / config.loop.accumulation)
        self.schedule = build_schedule(optimizer, config, self.updates_per_epoch, self.accelerator.num_processes)
        self.bare_model = model  # as built: what is saved and averaged
        if config.loop.compile:
            model.compile()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.counters = Counters()
        self.loader_state: dict[str, Any] | None = None
        self.unreadable = UnreadableImages(folder, len(self.data.train))
        self.left_out: set[str] = set()  # validation images that cannot be read, told once each

    def train(self) -> None:
        epochs = self.config.schedule.epochs
        display = TrainingDisplay(epochs * self.updates_per_epoch, self.counters.step, epochs, self.console)
        journal = Journal(self.folder, step=self.counters.step, tensorboard=self.config.output.tensorboard)
        try:
            with display:
                while self.counters.epoch < epochs:
                    self._epoch(display, journal)
                display.note(f"done: {self.folder / 'best.safetensors'}")
        finally:
            journal.close()

    def _epoch(self, display: TrainingDisplay, journal: Journal) -> None:
        counters, start = self.counters, time.perf_counter()
        images_before = counters.images
        self.task.start_epoch(counters.epoch)
        self.model.train()
        if counters.updates < self.updates_per_epoch:
            start_epoch(self.data.train_loader, counters.epoch)
            for group in self._groups():
                loss = self._update(group, display)
                speed = (counters.images - images_before) / (time.perf_counter() - start)
                display.update(counters.epoch, counters.step, loss=loss, lr=self.lr, images_per_second=speed)
                if self.stop.received:
                    self._interrupt(display)
        trained = time.perf_counter() - start
        metrics = self._validate(display)
        entry = {
            "epoch": counters.epoch + 1,
            "step": counters.step,
            "train_loss": counters.loss_sum / max(1, counters.images),
            **metrics,
            "lr": self.lr,
            "images_per_second": (counters.images - images_before) / trained,
            "seconds": time.perf_counter() - start,
        }
        journal.write(entry)
        display.epoch_done(entry)
        self._finish_epoch(metrics)
        if self.stop.received and counters.epoch < self.config.schedule.epochs:
            self._raise_interrupted(display)

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of one update at a time; the last group of an epoch may be smaller."""
        batches = iter(self.data.train_loader)
        while group := list(itertools.islice(batches, self.config.loop.accumulation)):
            yield group

    def _update(self, group: list[Batch], display: TrainingDisplay) -> float:
        """One step of the optimiser on the mean loss of a group of batches; returns that loss."""
        for batch in group:
            self.unreadable.add(batch.unreadable, display.note)
        group = [batch for batch in group if len(batch)]
        losses = []
        for index, batch in enumerate(group):
            last = index == len(group) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.task.loss(self.model, batch.to(self.accelerator.device, self.memory_format)) / len(group)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        counters = self.counters
        loss_value = float(sum(losses))
        if not math.isfinite(loss_value):
            raise TrainingError(self._not_finite(f"loss is {loss_value} at step {counters.step + 1}", group))
        if self.config.optimizer.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        counters.step += 1
        counters.updates += 1
        images = sum(len(batch) for batch in group)
        counters.images += images
        counters.loss_sum += loss_value * images
        self.schedule.step_update(counters.step)
        if self.ema is not None:
            self.ema.update(self.bare_model, counters.step)
        return loss_value

    def _validate(self, display: TrainingDisplay) -> dict[str, float]:
        seen, total = 0, len(self.data.validation)

        def on_batch(images: int) -> None:
            nonlocal seen
            seen += images
            display.validating(seen, total)
            if self.stop.received:
                raise _StopDuringValidation

        try:
            metrics = self.task.metrics(
                self.result_model,
                self._validation_batches(display),
                self.accelerator.device,
                autocast=self.accelerator.autocast,
                on_batch=on_batch,
            )
        except _StopDuringValidation:
            self._interrupt(display)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(self._not_finite(f"{name} is {value} after step {self.counters.step}"))
        return metrics

    def _validation_batches(self, display: TrainingDisplay) -> Iterator[Batch]:
        """The validation images; those that cannot be read are left out of the metrics, and named the first time."""
        for batch in self.data.validation_loader:
            for reason in batch.unreadable.values():
                if reason not in self.left_out:
                    self.left_out.add(reason)
                    display.note(f"left out of the validation: {reason}")
            yield batch

    def _finish_epoch(self, metrics: dict[str, float]) -> None:
        counters = self.counters
        counters.epoch += 1
        counters.updates = counters.images = 0
        counters.loss_sum = 0.0
        if counters.best is None or metrics[self.task.best_metric] >= counters.best:
            counters.best = metrics[self.task.best_metric]
            save_model(self.result_model, self.folder / "best.safetensors", metrics=metrics)
        save_model(self.result_model, self.folder / "last.safetensors", metrics=metrics)
        self._save()

    def _interrupt(self, display: TrainingDisplay) -> None:
        self.loader_state = self.data.train_loader.state_dict()
        self._save()
        self._raise_interrupted(display)

    def _raise_interrupted(self, display: TrainingDisplay) -> None:
        message = f"stopped after step {self.counters.step}; go on with: convattn train --resume {self.folder}"
        display.note(message)
        raise Interrupted(message)

    def _save(self) -> None:
        mid_epoch = 0 < self.counters.updates < self.updates_per_epoch
        state = {
            "counters": asdict(self.counters),
            "images": len(self.data.train),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "random": random_state(),
            "loader": self.data.train_loader.state_dict() if mid_epoch else None,
        }
        save_checkpoint(
            self.folder,
            self.counters.step,
            model=self.bare_model,
            ema=None if self.ema is None else self.ema.module,
            state=state,
            config=config_to_json(self.config),
            keep=self.config.output.keep_checkpoints,
        )

    def restore(self) -> None:
        """Take up the newest whole checkpoint of the run folder."""
        checkpoint, problems = load_newest_checkpoint(self.folder)
        console = self.console or Console(stderr=True, highlight=False, soft_wrap=True)
        for problem in problems:
            console.print(f"warning: {problem}; going on from {checkpoint.folder.name}", markup=False, soft_wrap=True)
        state = checkpoint.state
        if state["images"] != len(self.data.train):
            raise ConfigError(
                f"{self.config.data.source}: {len(self.data.train)} training images, but {state['images']} when the "
                "run was stopped; restore the data or start a new run"
            )
        self.bare_model.load_state_dict(checkpoint.model)
        if self.ema is not None and checkpoint.ema is not None:
            self.ema.module.load_state_dict(checkpoint.ema)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.counters = Counters(**state["counters"])
        if state["loader"] is not None:
            start_epoch(self.data.train_loader, self.counters.epoch)
            self.data.train_loader.load_state_dict(state["loader"])
        restore_random_state(state["random"])

    @property
    def result_model(self) -> torch.nn.Module:
        """What is validated and kept: the moving average where there is one."""
        return self.bare_model if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The learning rate of the next update; of the fastest layer where they differ."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _not_finite(self, what: str, group: Sequence[Batch] = ()) -> str:
        checkpoints = checkpoint_folders(self.folder)
        last = f"last good checkpoint: {checkpoints[0]}" if checkpoints else "no checkpoint was written yet"
        paths = [path for batch in group for path in batch.paths]
        batch = f"; batch: {', '.join(paths)}" if paths else ""
        return f"{what}; {last}; lower optimizer.lr, or set optimizer.clip_grad{batch}"


def _open_output(config: RunConfig, resume: bool) -> Path:
    """The run folder, checked: empty or new, or holding this very run."""
    folder = Path(config.output.folder)
    stored = folder / "config.json"
    if resume:
        if not stored.is_file():
            raise ConfigError(f"{folder}: no run to resume here; it holds no config.json")
        _check_same_run(config, config_from_json(stored.read_text()), folder)
        return folder
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder}: the output folder is not empty; go on with --resume {folder}, or choose another --output"
        )
    return folder


def _check_same_run(config: RunConfig, stored: RunConfig, folder: Path) -> None:
    for part, fields in asdict(stored).items():
        if part == "output":
            continue
        for name, value in fields.items():
            given = asdict(config)[part][name]
            if given != value:
                raise ConfigError(
                    f"{folder}: was started with {part}.{name} {value!r}, not {given!r}; resume as it was"
                )
