"""The runs of a plan in turn, beside other processes and machines that take theirs from the same folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from convattn.ablation.arms import slug
from convattn.ablation.plan import PlannedRun
from convattn.atomic import write_atomically
from convattn.config_errors import RunFolderError
from convattn.report.run import RunError, read_run
from convattn.training.lock import FolderLock
from convattn.training.loop import TrainingError, train
from convattn.training.output import holds_run

__all__ = ["FAILED", "Sweep", "is_done", "run_sweep"]

FAILED = "failed.txt"  # in a run's folder: why it cannot be finished


@dataclass(frozen=True)
class Sweep:
    """How it went."""

    elsewhere: tuple[PlannedRun, ...]  # others are at work on these
    failed: tuple[tuple[PlannedRun, str], ...]  # and why


def run_sweep(
    runs: list[PlannedRun],
    output: Path,
    *,
    started: Callable[[PlannedRun], object] = lambda run: None,
    progress: Callable[[PlannedRun, int], object] = lambda run, step: None,
) -> Sweep:
    """Train what is open, and go on with what was stopped; a run that another process has is passed over.

    Args:
        output: the folder of all of them, which several machines may share.
        started: called with each run that is taken.
        progress: called with the updates done of a run, after each of its validations and for each that is done.

    Raises:
        ConfigError, DataError, OutOfMemory: as `train`. Interrupted: after a checkpoint was written.
    """
    elsewhere, failed = [], []
    for run in runs:
        if is_done(run):
            progress(run, run.updates)
            continue
        if (run.folder / FAILED).is_file():
            failed.append((run, (run.folder / FAILED).read_text().strip()))
            continue
        claim = output / "claims" / f"{run.folder.parent.parent.name}-{slug(run.design)}-seed{run.seed}"
        try:
            with FolderLock(claim):
                if not is_done(run):  # by another process, since
                    started(run)
                    _train(run, progress)
        except TrainingError as error:
            write_atomically(run.folder / FAILED, f"{error}\n".encode())
            failed.append((run, str(error)))
        except RunFolderError:
            if not _is_locked(claim):
                raise
            elsewhere.append(run)
    return Sweep(tuple(elsewhere), tuple(failed))


def is_done(run: PlannedRun) -> bool:
    """Whether a run has reached its end."""
    try:
        return read_run(run.folder).is_over and (run.folder / "last.safetensors").is_file()
    except RunError:
        return False


def _train(run: PlannedRun, progress: Callable[[PlannedRun, int], object]) -> None:
    def logged(entry: Mapping[str, float]) -> None:
        progress(run, int(entry["step"]))

    train(run.config, resume=holds_run(run.folder), console=Console(quiet=True), on_log=logged)


def _is_locked(claim: Path) -> bool:
    """Whether another process holds it."""
    try:
        with FolderLock(claim):
            return False
    except RunFolderError:
        return True
