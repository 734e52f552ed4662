"""A progress bar for what may take long: it appears after two seconds, on a terminal only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from convattn.shown import shown

__all__ = ["late_progress"]

_PATIENCE = 2.0  # seconds


@contextmanager
def late_progress(what: str, total: float | None) -> Iterator[Callable[[float], None]]:
    """Call what this gives with how much is done; after two seconds a bar on standard error shows it.

    Args:
        what: stands before the bar.
        total: what done is out of, in any unit; None if that is not known.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
    task = progress.add_task(shown(what), total=total)
    start = time.monotonic()

    def update(done: float) -> None:
        if not progress.live.is_started and time.monotonic() - start > _PATIENCE:
            progress.start()
        progress.update(task, completed=done)

    try:
        yield update
    finally:
        progress.stop()
