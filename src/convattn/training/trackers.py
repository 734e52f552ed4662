"""Where else a run's figures go: the trackers that Accelerate knows, such as wandb and mlflow."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convattn.config_errors import ConfigError
from convattn.extras import MissingExtra, require
from convattn.nearest import nearest
from convattn.shown import reason

__all__ = ["Trackers", "check_trackers"]

_PROJECT = "convattn"


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that Accelerate does not know, MissingExtra where a tracker is not installed."""
    if not names:
        return
    tracking = require("accelerate.tracking", "train")
    installed = {str(getattr(name, "value", name)) for name in tracking.get_available_trackers()}
    for name in names:
        if name not in tracking.LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"output.trackers {name!r} is unknown; {nearest(name, tracking.LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise MissingExtra(f"output.trackers {name}: its package is not installed; pip install {name}")


class Trackers:
    """Sends each entry of the log on. One that fails is named once and left out: no run ends for it.

    The run folder names the run and takes what they write to disk; `settings` are those of the run, by dotted names.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any], note: Callable[[str], None]):
        self._note = note
        self._open: dict[str, Any] = {}
        plain = {
            name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()
        }
        for name in names:
            kind = require("accelerate.tracking", "train").LOGGER_TYPE_TO_CLASS[name]
            self._try(name, partial(self._start, name, kind, folder, plain))

    def _start(self, name: str, kind: Any, folder: Path, settings: dict[str, Any]) -> None:
        place = {"logging_dir": str(folder / "trackers")} if kind.requires_logging_directory else {}
        tracker = kind(_PROJECT if not place else folder.name, **place)
        tracker.start()
        self._open[name] = tracker
        tracker.store_init_configuration({"folder": str(folder), **settings})

    def write(self, entry: Mapping[str, float | None]) -> None:
        """Send on an entry of the log."""
        figures = {name: value for name, value in entry.items() if value is not None and name not in ("step", "epoch")}
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, figures, step=int(entry["step"] or 0)))

    def close(self) -> None:
        """Let them finish."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)
        self._open.clear()

    def _try(self, name: str, do: Callable[[], None]) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):
                do()
        except Exception as error:  # whatever a tracker's service raises
            self._open.pop(name, None)
            self._note(f"warning: tracker {name} gets no more figures: {reason(error, 200)}")
