"""The one training loop. The task gives the loss and the metrics; Accelerate gives device, precision and processes.

round:  [ batch, …, batch ] -> losses, backward -> clip -> optimiser, schedule, moving average      (one update)
        -> metrics on the validation images -> log, best.safetensors, last.safetensors, checkpoint

A round ends after an epoch, or where the configuration puts the validations.
"""

import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from torch import nn

from convattn.data.workers import starting_workers
from convattn.model_files import save_model
from convattn.seeding import random_state
from convattn.shown import brief
from convattn.task import Batch
from convattn.training.checkpoint import checkpoint_folders, remove_unfinished
from convattn.training.config import RunConfig
from convattn.training.config_json import config_to_json, flat
from convattn.training.failure import EndTogether
from convattn.training.journal import Journal
from convattn.training.lock import FolderLock
from convattn.training.opening import opening
from convattn.training.output import check_held_out, check_output, holds_run, store_config, store_held_out
from convattn.training.places import with_absolute_paths
from convattn.training.processes import Processes, peak_memory, without_settings
from convattn.training.progress import Estimate, TrainingDisplay
from convattn.training.run import UNSPLIT, Run
from convattn.training.signals import StopRequest
from convattn.training.skipped import Skipped, record_skipped
from convattn.training.trackers import Trackers
from convattn.training.unreadable import UnreadableError, check_unreadable
from convattn.training.update import Update, update

__all__ = ["Interrupted", "TrainingError", "train"]


_SHOWN_LOSSES = 6  # in the line of a validation
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
    on_validation: Callable[[Path], object] | None = None,
    on_log: Callable[[Mapping[str, float]], object] | None = None,
) -> Path:
    """Train a model as `config` says, and write everything into its output folder.

    Started by `torchrun`, every process calls this with the same arguments and takes its share of each batch; when
    torchrun starts them anew because one was lost, they resume.

    Args:
        config: the whole run.
        resume: go on from the newest whole checkpoint in the output folder, or from the beginning if none was written
            yet. The run ends as it would have without the interruption: bit for bit on the CPU.
        console: where progress goes; standard error by default.
        on_validation: called with the run folder after each validation, in the main process.
        on_log: called with each entry of the log, in the main process: for trackers that Accelerate does not know.

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
            with _Loop(run, stop, lock, console, on_validation, on_log) as loop:
                for note in [*opening(run), *notes, *run.notes, *run.data.remarks(), *run.remarks()]:
                    loop.display.note(note)
                if resume:
                    run.restore(loop.display.note)
                check_held_out(folder, config, run.data.validation)
                if processes.is_main:
                    remove_unfinished(folder)
                    store_held_out(config, run.data.validation)
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
        on_validation: Callable[[Path], object] | None,
        on_log: Callable[[Mapping[str, float]], object] | None,
    ):
        self.run, self.stop, self.lock = run, stop, lock
        self.on_validation, self.on_log = on_validation, on_log
        epochs = None if run.config.schedule.updates else run.config.schedule.epochs
        if not run.processes.is_main:
            console = Console(quiet=True)
        self.display = TrainingDisplay(run.updates, epochs, console)
        self.estimate = Estimate(run.updates, self.display.note)
        self.journal: Journal | None = None
        self.trackers: Trackers | None = None
        self.left_out: dict[str, str] = {}  # validation images that cannot be read, and why
        self.told: set[str] = set()  # of these

    def __enter__(self) -> "_Loop":
        self.display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.display.__exit__(None, None, None)
        for log in (self.journal, self.trackers):
            if log is not None:
                log.close()

    def train(self) -> None:
        run = self.run
        if run.processes.is_main:
            self.journal = Journal(
                run.folder, validations=run.counters.validations, tensorboard=run.config.output.tensorboard
            )
            settings = flat(json.loads(config_to_json(run.config)))
            self.trackers = Trackers(run.config.output.trackers, run.folder, settings, self.display.note)
        self.display.start(run.counters.step)
        if run.counters.step == 0:
            self._look_at_validation()
        while run.counters.validated < run.updates and not self._has_stalled():
            self._round()
        self.display.note(f"done: {run.folder / 'best.safetensors'}")

    def _has_stalled(self) -> bool:
        patience, counters = self.run.config.loop.early_stopping, self.run.counters
        stalled = patience is not None and counters.validations - counters.best_validation >= patience
        if stalled:
            self.display.note(f"no better result in {patience} validations: stopped early after epoch {counters.epoch}")
        return stalled

    def _round(self) -> None:
        run, start = self.run, time.perf_counter()
        images_per_second = self._updates(run.next_validation)
        counters = run.counters
        if counters.skipped_in_a_row and not counters.images:
            raise TrainingError(f"every update since step {counters.validated} was skipped; {self._advice()}")
        model = run.result_model()
        metrics = self._validate(model)
        self._log(metrics, images_per_second, time.perf_counter() - start)
        self._finish_round(model, metrics)
        stop = bool(run.processes.total([self.stop.received])[0])
        if stop and counters.validated < run.updates:
            self._raise_interrupted()

    def _updates(self, until: int) -> float:
        """The updates up to that number; returns the images per second."""
        run, counters, start = self.run, self.run.counters, time.perf_counter()
        images_before, every = counters.images, run.config.output.checkpoint_updates
        speed = 0.0
        while counters.step < until:
            run.start_epoch()
            self.estimate.start()
            for group in itertools.islice(self._groups(), until - counters.step):
                if self.stop.received and run.processes.count == 1:  # it may have ended what prints the images, too
                    self._interrupt()
                done = self._update(group)
                speed = (counters.images - images_before) / (time.perf_counter() - start)
                memory = peak_memory(run.processes.device)
                self.display.update(counters, loss=done.loss, lr=run.lr, images_per_second=speed, memory=memory)
                self.estimate.update(counters.step, frozen=run.is_frozen)
                if done.stop or (self.stop.received and run.processes.count == 1):  # several agree in the next update
                    self._interrupt()
                if every is not None and counters.updates % every == 0 and counters.updates < run.updates_per_epoch:
                    self._save()
            run.end_epoch()
        return speed

    def _groups(self) -> Iterator[list[Batch]]:
        """The batches of one update at a time; the last group of an epoch may be smaller."""
        run = self.run
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
        run, meter = self.run, self.run.task.meter()
        try:
            run.measure(model, self._validation_batches(), meter, self._seen_of_validation())
            self._tell_left_out()
            further = self._evaluate_further(model)
        except _StopDuringValidation:
            self._interrupt()
            raise
        except UnreadableError:
            self._save()  # the epoch is not lost
            raise
        metrics = meter.result(run.processes.together(meter.parts()))
        for name, value in metrics.items():
            if not math.isfinite(value):  # the weights have overflowed; no checkpoint is written of them
                raise TrainingError(f"{name} is {value} after step {run.counters.step}; {self._advice()}")
        return metrics | further

    def _evaluate_further(self, model: nn.Module) -> dict[str, float]:
        """The figures on further images, which have no say in what is kept; NAME/METRIC."""
        run, figures = self.run, dict[str, float]()
        for evaluation in run.data.evaluations:
            meter, unreadable = evaluation.meter(), dict[str, str]()
            run.measure(model, _recorded(evaluation.loader, unreadable), meter, self._heed_stop)
            found_by_all = dict(run.processes.gather([*unreadable.items()]))
            for reason in sorted(set(found_by_all.values()) - self.told):
                self.display.note(f"left out of {evaluation.name}: {reason}")
                self.told.add(reason)
            check_unreadable(found_by_all.values(), evaluation.images, f"images of {evaluation.name}")
            found = meter.result(run.processes.together(meter.parts()))
            figures |= {f"{evaluation.name}/{name}": value for name, value in found.items()}
        return figures

    def _heed_stop(self, images: int) -> None:
        if self.stop.received and self.run.processes.count == 1:
            raise _StopDuringValidation

    def _seen_of_validation(self) -> Callable[[int], None]:
        """To be called with the number of images after each batch: shows it, and leaves where a stop was asked for."""
        run = self.run
        seen, total = 0, len(run.data.validation)

        def on_batch(images: int) -> None:
            nonlocal seen
            seen += images * run.processes.count
            self.display.validating(min(seen, total), total)
            self._heed_stop(images)

        return on_batch

    def _validation_batches(self) -> Iterator[Batch]:
        """The validation images of this process; those that cannot be read are left out."""
        return _recorded(self.run.data.validation_loader, self.left_out)

    def _tell_left_out(self) -> None:
        """Name the validation images that no process can read, and the classes that go with them, once each."""
        run, data = self.run, self.run.data.validation
        for file, reason in run.processes.gather([*self.left_out.items()]):
            self.left_out[file] = reason
        new = self.left_out.keys() - self.told
        for file in sorted(new):
            self.display.note(f"left out of the validation: {self.left_out[file]}")
        config = run.config.data
        where = f"validation images of {config.validation or config.source}"
        check_unreadable(self.left_out.values(), len(data), where)
        for line in run.room.left_out(data, self.left_out) if new else ():
            self.display.note(f"validation: {line}")
        self.told |= new

    def _log(self, metrics: dict[str, float], images_per_second: float, seconds: float) -> None:
        run, counters = self.run, self.run.counters
        means = {name: total / counters.images for name, total in counters.loss_sums.items() if counters.images}
        parts = {f"train_loss_{name}": mean for name, mean in means.items() if len(means) > 1 and UNSPLIT not in means}
        entry = {
            "epoch": counters.epoch + (counters.updates > 0),
            "step": counters.step,
            "train_loss": sum(means.values()) if means else math.nan,
            **parts,
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
        if self.trackers is not None:
            self.trackers.write(entry)
        if run.processes.is_main and self.on_log is not None:
            self.on_log(entry)
        shown_parts = parts if len(parts) <= _SHOWN_LOSSES else ()  # all are in the log
        self.display.validated(entry, [*shown_parts, *metrics], counters.step - counters.validated)

    def _finish_round(self, model: nn.Module, metrics: dict[str, float]) -> None:
        run, counters = self.run, self.run.counters
        counters.validated, counters.validations = counters.step, counters.validations + 1
        counters.images, counters.loss_sums = 0, {}
        first = run.room.metrics[0]
        result = metrics[first.name]
        if counters.best is None or first.is_better(result, counters.best):
            counters.best, counters.best_validation = result, counters.validations
        self.lock.check()
        if run.processes.is_main:
            if result == counters.best:  # of equals the last, which has learnt for longer
                save_model(model, run.folder / "best.safetensors", metrics=metrics)
            save_model(model, run.folder / "last.safetensors", metrics=metrics)
        self._save()
        if run.processes.is_main and self.on_validation is not None:
            self.on_validation(run.folder)

    def _save(self) -> None:
        self.lock.check()
        self.run.save()

    def _interrupt(self) -> None:
        self.run.end_epoch()  # if it is at its end, any batch size can go on with the next
        self._save()
        self._raise_interrupted()

    def _raise_interrupted(self) -> None:
        run = self.run
        message = f"stopped after step {run.counters.step}; go on with: convattn train --resume {run.folder}"
        self.display.note(message)
        raise Interrupted(message, self.stop.number or signal.SIGTERM)

    def _too_many_skipped(self, skipped: Skipped) -> str:
        counters = self.run.counters
        return (
            f"{counters.skipped_in_a_row} updates in a row were skipped (loop.max_skipped), the last is "
            f"{counters.step}: {skipped.reason}; {self._advice()}; replay it from {skipped.file}; "
            f"its images: {brief(skipped.paths, _NAMED)}"
        )

    def _advice(self) -> str:
        checkpoints = checkpoint_folders(self.run.folder)
        last = f"last good checkpoint: {checkpoints[0]}" if checkpoints else "no checkpoint was written yet"
        return f"{last}; lower optimizer.lr, or set optimizer.clip_grad"


def _recorded(loader: Iterable[Batch], unreadable: dict[str, str]) -> Iterator[Batch]:
    """The batches of a loader; what cannot be read is written down on the way."""
    with starting_workers():
        batches = iter(loader)
    for batch in batches:
        unreadable.update(batch.unreadable)
        yield batch
