"""Checkpoints: all that a run needs to go on as if it had never stopped.

checkpoints/step_00000390/
  model.safetensors   the weights in training, a model file
  ema.safetensors     their moving average, where there is one
  state.pt            optimiser, schedule, scaler, random states, place in the epoch, counters
  config.json         the run's configuration
  sha256.json         digests of the files above: what is not as it was written is not trusted
"""

import hashlib
import io
import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from convattn.atomic import write_atomically, write_folder_atomically
from convattn.saved import save_model
from convattn.weights.read import CheckpointError

__all__ = ["Checkpoint", "checkpoint_folders", "load_newest_checkpoint", "save_checkpoint"]

_MODEL, _EMA, _STATE, _CONFIG, _DIGESTS = (
    "model.safetensors",
    "ema.safetensors",
    "state.pt",
    "config.json",
    "sha256.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint."""

    folder: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]


def save_checkpoint(
    run: Path, step: int, *, model: nn.Module, ema: nn.Module | None, state: dict[str, Any], config: str, keep: int
) -> Path:
    """Write a checkpoint and remove all but the newest `keep`; a crash at any time leaves whole checkpoints only.

    Args:
        run: the run folder.
        step: updates done.
        model: the model in training.
        ema: the model that holds the moving average.
        state: everything else, in types that `torch.load(weights_only=True)` reads.
        config: the configuration as JSON.
        keep: how many to keep, this one included.

    Raises:
        OSError: naming the file and the cause; older checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"

    def fill(target: Path) -> None:
        save_model(model, target / _MODEL)
        if ema is not None:
            save_model(ema, target / _EMA)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(target / _STATE, buffer.getvalue())
        write_atomically(target / _CONFIG, config.encode())
        digests = {file.name: _digest(file) for file in sorted(target.iterdir())}
        write_atomically(target / _DIGESTS, json.dumps(digests, indent=2).encode())

    write_folder_atomically(folder, fill)
    for old in checkpoint_folders(run)[keep:]:
        shutil.rmtree(old)
    return folder


def load_newest_checkpoint(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest checkpoint that is whole, and one line about each newer one that is not.

    Raises:
        CheckpointError: if there is none.
    """
    problems: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            return _load(folder), problems
        except CheckpointError as error:
            problems.append(str(error))
    detail = f" ({'; '.join(problems)})" if problems else ""
    raise CheckpointError(f"{run}: no checkpoint to resume from{detail}")


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    return sorted((run / "checkpoints").glob("step_*"), reverse=True)


def _load(folder: Path) -> Checkpoint:
    try:
        digests = json.loads((folder / _DIGESTS).read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                raise CheckpointError(f"{folder}: damaged: {name} is not as it was written")
        ema = safetensors.torch.load_file(folder / _EMA) if _EMA in digests else None
        model = safetensors.torch.load_file(folder / _MODEL)
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except (OSError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: damaged ({error})") from None
    return Checkpoint(folder, model, ema, state)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
