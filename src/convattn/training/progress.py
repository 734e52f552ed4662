"""What a person sees while training runs: a live bar on a terminal, one line an epoch elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from time import perf_counter
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convattn.shown import shown
from convattn.training.run import Counters

__all__ = ["Estimate", "TrainingDisplay"]

_ESTIMATE_SECONDS = 600  # the time left goes by the speed of so many; an update may take a minute
_TIMED = 5  # updates by which the time of a run is told
_LONG = 30.0  # seconds after which fewer are enough


class TrainingDisplay:
    """Progress over all epochs, counted in updates so that the time left is that of the whole run.

    Args:
        updates: of the whole run.
        epochs: of the whole run; None where its length is counted in updates.
        console: where to write; standard error by default, so that results can be piped.
    """

    def __init__(self, updates: int, epochs: int | None, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._updates, self._epochs = updates, epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=_ESTIMATE_SECONDS,
        )
        self._task = self._progress.add_task("training", total=updates, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, step: int) -> None:
        """Before the first update behind `step`; those done earlier do not count as speed."""
        self._progress.reset(self._task, completed=step)

    def update(self, counters: Counters, *, loss: float, lr: float, images_per_second: float, memory: int) -> None:
        """After an update; `memory` in bytes."""
        figures = f"loss {loss:.3f} · lr {lr:.1e} · {images_per_second:,.0f} images/s · {memory / 2**30:.1f} GiB"
        description = self._place(counters.epoch + 1, counters.step)
        self._progress.update(self._task, completed=counters.step, description=description, figures=figures)

    def validating(self, images: int, total: int) -> None:
        """While validation runs."""
        self._progress.update(self._task, figures=f"validating {images:,}/{total:,}")

    def validated(self, entry: Mapping[str, Any], figures: Sequence[str], updates: int) -> None:
        """One line for the record.

        Args:
            entry: that of the log.
            figures: the names in it of losses and metrics to show.
            updates: done since the validation before.
        """
        shown_figures = " · ".join(f"{name} {entry[name]:.4g}" for name in figures)
        skipped = f" · {entry['skipped']} updates skipped" if entry["skipped"] else ""
        left = timedelta(seconds=round((self._updates - entry["step"]) / max(1, updates) * entry["seconds"]))
        self.note(
            f"{self._place(entry['epoch'], entry['step'])} · loss {entry['train_loss']:.4g} · {shown_figures} · "
            f"lr {entry['lr']:.1e} · {entry['images_per_second']:,.0f} images/s · {entry['memory_gib']:.1f} GiB · "
            f"{entry['seconds']:.1f} s, {left} left{skipped}"
        )

    def _place(self, epoch: int, step: int) -> str:
        if self._epochs is None:
            return f"update {step:,}/{self._updates:,}"
        return f"epoch {min(epoch, self._epochs)}/{self._epochs}"

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(shown(text), markup=False, emoji=False, soft_wrap=True)


class Estimate:
    """Tells what time the rest of a run takes after a few updates, and again when all layers have begun to learn.

    Validation is left out, and so is the first update, which takes longer. `updates` are those of the whole run.
    """

    def __init__(self, updates: int, note: Callable[[str], None], clock: Callable[[], float] = perf_counter):
        self._updates, self._note, self._clock = updates, note, clock
        self._before, self._seconds, self._count = 0.0, 0.0, -1
        self._frozen: bool | None = None
        self._is_told = False

    def start(self) -> None:
        """Before an update that follows on something else."""
        self._before = self._clock()

    def update(self, step: int, *, frozen: bool) -> None:
        """After an update; `frozen`: the head alone learns."""
        now = self._clock()
        if frozen is not self._frozen:
            self._frozen, self._is_told, self._seconds, self._count = frozen, False, 0.0, -1
        self._count += 1
        if self._count:
            self._seconds += now - self._before
        self._before = now
        if self._is_told or not self._count or (self._count < _TIMED and self._seconds < _LONG):
            return
        self._is_told = True
        left = self._updates - step
        if left > 0:
            time = timedelta(seconds=round(left * self._seconds / self._count))
            more = "; more, since the head alone learns as yet" if frozen else ""
            self._note(f"about {time} for the {left:,} updates left, validation not counted{more}")
