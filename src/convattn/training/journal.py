"""The log of a run: `log.jsonl`, one JSON object an epoch, and TensorBoard events beside it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convattn.atomic import append_line, write_atomically
from convattn.extras import require

__all__ = ["Journal", "read_log"]

_FILE = "log.jsonl"


class Journal:
    """Appends to the log of a run folder.

    Args:
        folder: the run folder.
        epoch: epochs done so far; entries behind it, left by a run that went on past its last checkpoint, are removed.
        tensorboard: write TensorBoard events to `folder/tensorboard` too.
    """

    def __init__(self, folder: Path, *, epoch: int = 0, tensorboard: bool = True):
        self._path = folder / _FILE
        entries = [entry for entry in read_log(folder) if entry["epoch"] <= epoch]
        write_atomically(self._path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        self._writer = None
        if tensorboard:
            writer = require("torch.utils.tensorboard", "train").SummaryWriter
            self._writer = writer(str(folder / "tensorboard"), purge_step=epoch + 1 if epoch else None)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add one epoch; `entry` has `epoch`, from 1, and figures. One that is not finite becomes null."""
        entry = {name: value if math.isfinite(value) else None for name, value in entry.items()}
        append_line(self._path, json.dumps(entry))
        if self._writer is not None:
            for name, value in entry.items():
                if name != "epoch" and value is not None:
                    self._writer.add_scalar(name, value, entry["epoch"])
            self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The entries of a run folder's log, oldest first; an unfinished last line (of a killed process) is left out.

    Raises:
        ValueError: naming the file and the line that is no entry.
    """
    path = Path(folder) / _FILE
    if not path.is_file():
        return []
    *lines, unfinished = path.read_bytes().split(b"\n")
    del unfinished
    return [_entry(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _entry(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # no JSON, or no text
        entry = None
    if not isinstance(entry, dict) or type(entry.get("epoch")) is not int:
        raise ValueError(f"{place}: not an entry of a run's log; remove the line")
    return entry
