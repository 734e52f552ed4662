"""The one training loop. The task gives the loss and the metrics; Accelerate gives device, precision and processes.

epoch:  [ batch, …, batch ] -> loss, backward -> clip -> optimiser, schedule, moving average      (one update)
        -> metrics on the validation images -> log, best.safetensors, last.safetensors, checkpoint
"""

import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from torch import nn

from convattn.data.loader import Batch
from convattn.data.workers import starting_workers
from convattn.saved import save_model
from convattn.seeding import random_state
from convattn.training.checkpoint import checkpoint_folders, remove_unfinished
from convattn.training.config import RunConfig
from convattn.training.failure import EndTogether
from convattn.training.journal import Journal
from convattn.training.lock import FolderLock
from convattn.training.memory import peak_memory
from convattn.training.output import check_output, holds_run, store_config
from convattn.training.places import with_absolute_paths
from convattn.training.processes import Processes, without_settings
from convattn.training.progress import TrainingDisplay
from convattn.training.run import Run
from convattn.training.signals import StopRequest
from convattn.training.skipped import Skipped, record_skipped
from convattn.training.unreadable import UnreadableError, check_unreadable, lost_classes
from convattn.training.update import Update, update

__all__ = ["Interrupted", "TrainingError", "train"]


_NAMED = 8  # files in a message; skipped.jsonl has all


class TrainingError(ValueError):
    """Training cannot go on."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped from outside; a checkpoint to resume from was written.

    `signal` is what stopped it.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class _StopDuringValidation(Exception):
    """Leaves the validation when a stop was asked for."""


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    on_epoch: Callable[[Path], object] | None = None,
) -> Path:
    """Train a model as `config` says, and write everything into its output folder.

    Started by `torchrun`, every process calls this with the same arguments and takes its share of each batch; when
    torchrun starts them anew because one was lost, they resume.

    Args:
        config: the whole run.
        resume: go on from the newest whole checkpoint in the output folder, or from the beginning if none was written
            yet. The run ends as it would have without the interruption: bit for bit on the CPU.
        console: where progress goes; standard error by default.
        on_epoch: called with the run folder after each epoch, in the main process.

    Returns:
        The run folder, with `best.safetensors`, `last.safetensors`, `log.jsonl`, `config.json`, `checkpoints/` and
        `tensorboard/`; with `skipped.jsonl` and `unreadable.txt` where there is something to tell.

    Raises:
        ConfigError: if the output folder is not empty (without `resume`), holds no run or another one (with it), or
            another run is writing there.
        DataError: if the data is missing, empty or smaller than a batch. CheckpointError: if no checkpoint is whole.
        TrainingError: if too many updates in a row are not finite. UnreadableError: if more than 1 % of the training
            or of the validation images cannot be read. OutOfMemory: with a batch size that fits.
        Interrupted: a KeyboardInterrupt, after Ctrl-C or SIGTERM, once a checkpoint is written.
        OSError: if the disk is full, or the folder cannot be written or was removed; the last checkpoint survives.
    """
    config = with_absolute_paths(config)
    folder = Path(config.output.folder)
    with StopRequest() as stop, without_settings() as notes:
        processes = Processes(config.loop)
        together = EndTogether(processes.rank, processes.count)
        with together, FolderLock(folder, wanted=processes.is_main) as lock:
            resume = resume or (processes.restarted and processes.from_main(holds_run(folder)))
            notes += check_output(config, resume=resume) if processes.is_main else []
            run = Run(config, folder, processes)
            with _Loop(run, stop, lock, console, on_epoch) as loop:
                for note in [*notes, *run.notes, *run.data.remarks()]:
                    loop.display.note(note)
                if resume:
                    run.restore(loop.display.note)
                if processes.is_main:
                    remove_unfinished(folder)
                    store_config(config)  # not before it is known that the run can go on with it
                if lock.problem is not None:
                    loop.display.note(f"warning: {lock.problem}")
                loop.train()
    return folder


class _Loop:
    """The epochs of a run, and what a person sees of them."""

    def __init__(
        self,
        run: Run,
        stop: StopRequest,
        lock: FolderLock,
        console: Console | None,
        on_epoch: Callable[[Path], object] | None,
    ):
        self.run, self.stop, self.lock, self.on_epoch = run, stop, lock, on_epoch
        epochs = run.config.schedule.epochs
        if not run.processes.is_main:
            console = Console(quiet=True)
        self.display = TrainingDisplay(epochs * run.updates_per_epoch, epochs, console)
        self.journal: Journal | None = None
        self.left_out: dict[str, str] = {}  # validation images that cannot be read, and why
        self.told: set[str] = set()  # of these

    def __enter__(self) -> "_Loop":
        self.display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(None, None, None)
        if self.journal is not None:
            self.journal.close()

    def train(self) -> None:
        run = self.run
        if run.processes.is_main:
            self.journal = Journal(run.folder, epoch=run.counters.epoch, tensorboard=run.config.output.tensorboard)
        self.display.start(run.counters.step)
        if run.counters.step == 0:
            self._look_at_validation()
        while run.counters.epoch < run.config.schedule.epochs and not self._has_stalled():
            self._epoch()
        self.display.note(f"done: {run.folder / 'best.safetensors'}")

    def _has_stalled(self) -> bool:
        patience, counters = self.run.config.loop.early_stopping, self.run.counters
        stalled = patience is not None and counters.epoch - counters.best_epoch >= patience
        if stalled:
            self.display.note(f"no better result in {patience} epochs: stopped early after epoch {counters.epoch}")
        return stalled

    def _epoch(self) -> None:
        run, start = self.run, time.perf_counter()
        run.start_epoch()
        images_per_second = self._updates()
        if run.counters.skipped_in_a_row and not run.counters.images:
            raise TrainingError(f"every update of epoch {run.counters.epoch + 1} was skipped; {self._advice()}")
        model = run.result_model()
        metrics = self._validate(model)
        self._log(metrics, images_per_second, time.perf_counter() - start)
        self._finish_epoch(model, metrics)
        stop = bool(run.processes.total([self.stop.received])[0])
        if stop and run.counters.epoch < run.config.schedule.epochs:
            self._raise_interrupted()

    def _updates(self) -> float:
        """The updates that the epoch still lacks; returns the images per second."""
        run, counters, start = self.run, self.run.counters, time.perf_counter()
        images_before, every = counters.images, run.config.output.checkpoint_updates
        speed = 0.0
        for group in self._groups():
            if self.stop.received and run.processes.count == 1:  # it may have ended what prints the images, too
                self._interrupt()
            done = self._update(group)
            speed = (counters.images - images_before) / (time.perf_counter() - start)
            memory = peak_memory(run.processes.device)
            self.display.update(counters, loss=done.loss, lr=run.lr, images_per_second=speed, memory=memory)
            if done.stop or (self.stop.received and run.processes.count == 1):  # several agree in the next update
                self._interrupt()
            if every is not None and counters.updates % every == 0 and counters.updates < run.updates_per_epoch:
                self._save()
        return speed

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of one update at a time; the last group of an epoch may be smaller."""
        run = self.run
        if run.counters.updates >= run.updates_per_epoch:
            return
        accumulation = run.config.loop.accumulation
        with starting_workers():
            batches = run.data.train_loader.batches(run.counters.epoch, skip=run.counters.updates * accumulation)
        while group := list(itertools.islice(batches, accumulation)):
            yield group

    def _update(self, group: list[Batch]) -> Update:
        """An update; looks after what went wrong in it."""
        run = self.run
        self.lock.check()
        for batch in group:
            run.unreadable.add(batch.unreadable, self.display.note)
        random = random_state()
        done = update(run, group, stop=self.stop.received)
        if done.skipped:
            skipped = record_skipped(run, group, random, done.problem)
            self.display.note(
                f"skipped update {run.counters.step}: {skipped.reason}; "
                f"look into it with: convattn train --replay {skipped.file}"
            )
            if run.counters.skipped_in_a_row >= run.config.loop.max_skipped:
                raise TrainingError(self._too_many_skipped(skipped))
        return done

    def _look_at_validation(self) -> None:
        """Read every validation image before the first update: what is lost must not show behind an epoch of work."""
        seen = self._seen_of_validation()
        try:
            for batch in self._validation_batches():
                seen(len(batch) + len(batch.unreadable))
        except _StopDuringValidation:
            self._interrupt()
        self._tell_left_out()

    def _validate(self, model: nn.Module) -> dict[str, float]:
        run = self.run
        try:
            metrics = run.task.metrics(
                model,
                self._validation_batches(),
                run.processes.device,
                autocast=run.processes.accelerator.autocast,
                memory_format=run.memory_format,
                total=run.processes.total,
                on_batch=self._seen_of_validation(),
            )
        except _StopDuringValidation:
            self._interrupt()
            raise
        try:
            self._tell_left_out()
        except UnreadableError:
            run.save()  # the epoch is not lost
            raise
        for name, value in metrics.items():
            if not math.isfinite(value):  # the weights have overflowed; no checkpoint is written of them
                raise TrainingError(f"{name} is {value} after step {run.counters.step}; {self._advice()}")
        return metrics

    def _seen_of_validation(self) -> Callable[[int], None]:
        """To be called with the number of images after each batch: shows it, and leaves where a stop was asked for."""
        run = self.run
        seen, total = 0, len(run.data.validation)

        def on_batch(images: int) -> None:
            nonlocal seen
            seen += images * run.processes.count
            self.display.validating(min(seen, total), total)
            if self.stop.received and run.processes.count == 1:
                raise _StopDuringValidation

        return on_batch

    def _validation_batches(self) -> Iterator[Batch]:
        """The validation images of this process; those that cannot be read are left out."""
        with starting_workers():
            batches = iter(self.run.data.validation_loader)
        for batch in batches:
            self.left_out.update(batch.unreadable)
            yield batch

    def _tell_left_out(self) -> None:
        """Name the validation images that no process can read, and the classes that go with them, once each.

        Raises:
            UnreadableError: if they are too many.
        """
        run, data = self.run, self.run.data.validation
        for file, reason in run.processes.gather([*self.left_out.items()]):
            self.left_out[file] = reason
        new = self.left_out.keys() - self.told
        for file in sorted(new):
            self.display.note(f"left out of the validation: {self.left_out[file]}")
        config = run.config.data
        where = f"validation images of {config.validation or config.source}"
        check_unreadable(self.left_out, len(data), where)
        for name in lost_classes(data, self.left_out) if new else ():
            self.display.note(f"class {name!r} is not validated: none of its validation images can be read")
        self.told |= new

    def _log(self, metrics: dict[str, float], images_per_second: float, seconds: float) -> None:
        run, counters = self.run, self.run.counters
        entry = {
            "epoch": counters.epoch + 1,
            "step": counters.step,
            "train_loss": counters.loss_sum / counters.images if counters.images else math.nan,
            **metrics,
            "lr": run.lr,
            "skipped": counters.skipped,
            "images_per_second": images_per_second,
            "memory_gib": peak_memory(run.processes.device) / 2**30,
            "seconds": seconds,
        }
        self.lock.check()
        if self.journal is not None:
            self.journal.write(entry)
        self.display.epoch_done(entry)

    def _finish_epoch(self, model: nn.Module, metrics: dict[str, float]) -> None:
        run, counters = self.run, self.run.counters
        counters.epoch += 1
        counters.updates = counters.images = 0
        counters.loss_sum = 0.0
        result = metrics[run.task.best_metric]
        if counters.best is None or result > counters.best:
            counters.best, counters.best_epoch = result, counters.epoch
        self.lock.check()
        if run.processes.is_main:
            if result == counters.best:  # of equals the last, which has learnt for longer
                save_model(model, run.folder / "best.safetensors", metrics=metrics)
            save_model(model, run.folder / "last.safetensors", metrics=metrics)
        self._save()
        if run.processes.is_main and self.on_epoch is not None:
            self.on_epoch(run.folder)

    def _save(self) -> None:
        self.lock.check()
        self.run.save()

    def _interrupt(self) -> None:
        self._save()
        self._raise_interrupted()

    def _raise_interrupted(self) -> None:
        run = self.run
        message = f"stopped after step {run.counters.step}; go on with: convattn train --resume {run.folder}"
        self.display.note(message)
        raise Interrupted(message, self.stop.number or signal.SIGTERM)

    def _too_many_skipped(self, skipped: Skipped) -> str:
        counters, named = self.run.counters, ", ".join(skipped.paths[:_NAMED])
        more = f" and {len(skipped.paths) - _NAMED} more" if len(skipped.paths) > _NAMED else ""
        return (
            f"{counters.skipped_in_a_row} updates in a row were skipped (loop.max_skipped), the last is "
            f"{counters.step}: {skipped.reason}; {self._advice()}; replay it from {skipped.file}; "
            f"its images: {named}{more}"
        )

    def _advice(self) -> str:
        checkpoints = checkpoint_folders(self.run.folder)
        last = f"last good checkpoint: {checkpoints[0]}" if checkpoints else "no checkpoint was written yet"
        return f"{last}; lower optimizer.lr, or set optimizer.clip_grad"
