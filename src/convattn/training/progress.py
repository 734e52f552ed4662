"""What a person sees while training runs: a live bar on a terminal, one line an epoch elsewhere."""

from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convattn.shown import shown

__all__ = ["TrainingDisplay"]

_NOT_METRICS = {"epoch", "step", "train_loss", "lr", "images_per_second", "seconds", "memory_gib", "skipped"}
_ESTIMATE_SECONDS = 600  # the time left goes by the speed of so many; an update may take a minute


class Place(Protocol):
    """Where a run stands."""

    epoch: int  # epochs finished
    step: int  # updates done


class TrainingDisplay:
    """Progress over all epochs, counted in updates so that the time left is that of the whole run.

    Args:
        updates: of the whole run.
        epochs: of the whole run.
        console: where to write; standard error by default, so that results can be piped.
    """

    def __init__(self, updates: int, epochs: int, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._epochs = epochs
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=_ESTIMATE_SECONDS,
        )
        self._task = self._progress.add_task("training", total=updates, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Before the first update behind `step`; those done earlier do not count as speed."""
        self._progress.reset(self._task, completed=step)

    def update(self, counters: Place, *, loss: float, lr: float, images_per_second: float, memory: int) -> None:
        """After an update; `memory` in bytes."""
        figures = f"loss {loss:.3f} · lr {lr:.1e} · {images_per_second:,.0f} images/s · {memory / 2**30:.1f} GiB"
        description = f"epoch {counters.epoch + 1}/{self._epochs}"
        self._progress.update(self._task, completed=counters.step, description=description, figures=figures)

    def validating(self, images: int, total: int) -> None:
        """While validation runs."""
        self._progress.update(self._task, figures=f"validating {images:,}/{total:,}")

    def epoch_done(self, entry: Mapping[str, Any]) -> None:
        """One line for the record; `entry` is that of the log, with whatever metrics the task has."""
        metrics = " · ".join(f"{name} {value:.4g}" for name, value in entry.items() if name not in _NOT_METRICS)
        skipped = f" · {entry['skipped']} updates skipped" if entry["skipped"] else ""
        left = timedelta(seconds=round((self._epochs - entry["epoch"]) * entry["seconds"]))
        self.note(
            f"epoch {entry['epoch']}/{self._epochs} · loss {entry['train_loss']:.4g} · {metrics} · "
            f"lr {entry['lr']:.1e} · {entry['images_per_second']:,.0f} images/s · {entry['memory_gib']:.1f} GiB · "
            f"{entry['seconds']:.1f} s, {left} left{skipped}"
        )

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(shown(text), markup=False, emoji=False, soft_wrap=True)
