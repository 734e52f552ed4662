"""What a run will take, found out by doing a little of it: speed, memory and disk."""

import itertools
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from convattn.data.dataset import DataError
from convattn.model_files import save_model
from convattn.training.config import RunConfig
from convattn.training.processes import Processes, peak_memory, without_settings
from convattn.training.run import Run
from convattn.training.update import update

__all__ = ["Probe", "probe"]

_UPDATES = 5  # the first is not timed
_SECONDS = 60.0  # after which it is enough


@dataclass(frozen=True)
class Probe:
    """What was found, and what follows for the whole run."""

    parameters: int
    images: int  # of an epoch, all processes together
    updates_per_epoch: int
    updates: int  # of the whole run
    images_per_second: float  # of training, loading included, all processes together
    memory: int  # bytes at the peak, of this process or its GPU, without loading workers
    disk: int  # bytes: checkpoints kept, one being written, best and last model
    problems: int  # updates that were not finite

    @property
    def hours(self) -> float:
        """Of training, without validation."""
        return self.images * self.updates / self.updates_per_epoch / self.images_per_second / 3600


def probe(config: RunConfig) -> Probe:
    """Build the run of `config`, do a few updates and write a checkpoint to a temporary folder. Leaves nothing behind.

    All layers learn in these updates, those too that the run freezes at first.

    Raises:
        ConfigError, DataError, OutOfMemory: as `train`.
    """
    with without_settings():
        return _probe(config, Processes(config.loop))


def _probe(config: RunConfig, processes: Processes) -> Probe:
    with _temporary_folder(processes) as folder:
        output, loop = replace(config.output, folder=str(folder)), replace(config.loop, freeze_epochs=0)
        run = Run(replace(config, output=output, loop=loop), folder, processes)
        run.start_epoch()
        images_per_second = _speed(run)
        model = run.result_model()
        batch = next(iter(run.data.validation_loader))
        if len(batch):
            run.measure(model, [batch], run.task.meter())
        run.save()
        checkpoint = _size(folder)
        if processes.is_main:
            save_model(model, folder / "last.safetensors")
        written = _size(folder) - checkpoint
        processes.accelerator.wait_for_everyone()  # the folder goes with the first that leaves
        return Probe(
            parameters=sum(p.numel() for p in run.bare_model.parameters()),
            images=run.data.train_loader.images,
            updates_per_epoch=run.updates_per_epoch,
            updates=run.updates,
            images_per_second=images_per_second,
            memory=peak_memory(processes.device),
            disk=checkpoint * (config.output.keep_checkpoints + 1) + 2 * written,
            problems=run.counters.skipped,
        )


def _speed(run: Run) -> float:
    """Images a second, of all processes."""
    accumulation = run.config.loop.accumulation
    batches = run.data.train_loader.batches(0)
    started = last = time.perf_counter()
    images, seconds = 0, 0.0
    for index in range(_UPDATES):
        group = list(itertools.islice(batches, accumulation))
        if not group:  # a short epoch
            break
        done = update(run, group)
        now = time.perf_counter()
        if index or run.updates_per_epoch == 1:
            images, seconds = images + done.images, seconds + now - last
        last = now
        if images and now - started > _SECONDS:
            break
    if not images:
        raise DataError(f"{run.config.data.source}: none of the first images can be read")
    return images / seconds


@contextmanager
def _temporary_folder(processes: Processes) -> Iterator[Path]:
    """A folder that all processes share and that is gone afterwards, whatever ends them but SIGKILL."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with tempfile.TemporaryDirectory(prefix="convattn-") as name:
        before = signal.signal(signal.SIGTERM, leave)
        folder = Path(processes.from_main(name))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            signal.signal(signal.SIGTERM, before)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
