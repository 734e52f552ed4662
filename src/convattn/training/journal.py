"""The log of a run: `log.jsonl`, one JSON object a validation, and TensorBoard events beside it."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convattn.atomic import append_line, write_atomically
from convattn.extras import require
from convattn.training.config_json import read_json

__all__ = ["Journal", "LogError", "read_log"]

_FILE = "log.jsonl"
_EVENTS = "tensorboard"
_LONGEST = 2**20  # bytes of a line; an entry has some 300
_LARGEST = 2**63  # figure: what is larger was never measured


class LogError(ValueError):
    """A run's log that is damaged."""


class Journal:
    """Appends to the log of a run folder.

    Args:
        folder: the run folder.
        validations: done so far; entries behind them, left by a run that went on past its last checkpoint, are removed.
        tensorboard: write TensorBoard events to `folder/tensorboard` too.
    """

    def __init__(self, folder: Path, *, validations: int = 0, tensorboard: bool = True):
        self._path = folder / _FILE
        entries = read_log(folder)[:validations]
        self._number = validations
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        self._writer = None
        self._events = folder / _EVENTS
        if tensorboard:
            writer = require("torch.utils.tensorboard", "train").SummaryWriter
            with self._naming_events():
                self._writer = writer(str(self._events), purge_step=validations + 1 if validations else None)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a validation; `entry` has `epoch`, from 1, `step` and figures. One that is not finite becomes null."""
        entry = {name: value if math.isfinite(value) else None for name, value in entry.items()}
        append_line(self._path, json.dumps(entry))
        self._number += 1
        if self._writer is not None:
            with self._naming_events():
                for name, value in entry.items():
                    if name != "epoch" and value is not None:
                        self._writer.add_scalar(name, value, self._number)
                self._writer.flush()

    def close(self) -> None:
        """Finish the files; every epoch written is in them already."""
        if self._writer is not None:
            with suppress(OSError):  # of the events that could not be written, which was told then
                self._writer.close()

    @contextmanager
    def _naming_events(self) -> Iterator[None]:
        """Errors of the disk with the name of the folder, which TensorBoard's own leave out."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"{self._events} could not be written: {error.strerror}") from None


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a run folder's log, oldest first; an unfinished last line (of a killed process) is left out.

    LogError names the file and the line that is no entry.
    """
    path = Path(folder) / _FILE
    if not path.is_file():
        return []
    entries: list[dict[str, Any]] = []
    with open(path, "rb") as file:
        while (line := file.readline(_LONGEST)).endswith(b"\n"):
            entries.append(_entry(line, f"{path}, line {len(entries) + 1}"))
    if len(line) == _LONGEST:
        raise LogError(f"{path}, line {len(entries) + 1}: too long for an entry of a run's log; remove the line")
    return entries


def _entry(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = read_json(line)
    except ValueError:  # no JSON, or no text
        entry = None
    if not isinstance(entry, dict) or type(entry.get("epoch")) is not int or not 1 <= entry["epoch"] < 2**31:
        raise LogError(f"{place}: not an entry of a run's log; remove the line")
    for name, value in entry.items():
        if value is not None and not (type(value) in (int, float) and abs(value) <= _LARGEST):
            raise LogError(f"{place}: {name!r} is no figure; remove the line")
    return entry
