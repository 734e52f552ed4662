"""Checkpoints: all that a run needs to go on as if it had never stopped.

checkpoints/epoch_00002_image_000012800/   epochs finished, and images of the stream of the epoch under way
  model.safetensors   the weights in training, a model file
  ema.safetensors     their moving average, where there is one
  shards/             instead of these and the optimiser's state, where they are spread over the processes
  state.pt            optimiser, scaler, random states, place in the epoch, counters
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

from convattn.atomic import unfinished, write_atomically, write_folder_atomically
from convattn.saved import save_model
from convattn.weights.read import CheckpointError

__all__ = ["Checkpoint", "checkpoint_folders", "load_newest_checkpoint", "remove_unfinished", "save_checkpoint"]

_MODEL, _EMA, _SHARDS = "model.safetensors", "ema.safetensors", "shards"
_STATE, _CONFIG, _DIGESTS = "state.pt", "config.json", "sha256.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint."""

    folder: Path
    model: dict[str, Tensor]  # empty where there are shards
    ema: dict[str, Tensor] | None
    shards: Path | None
    state: dict[str, Any]


def save_checkpoint(
    run: Path,
    *,
    epoch: int,
    image: int,
    model: nn.Module | None,
    ema: nn.Module | None,
    shards: Path | None = None,
    state: dict[str, Any],
    config: str,
    keep: int,
) -> Path:
    """Write a checkpoint and remove all but the newest `keep`; a crash at any time leaves whole checkpoints only.

    Args:
        run: the run folder.
        epoch: epochs finished.
        image: images of the epoch under way that were trained on.
        model: the model in training; None with `shards`.
        ema: the model that holds the moving average.
        shards: a folder of `sharded.save_shards` on the same disk, which is moved into the checkpoint.
        state: everything else, in types that `torch.load(weights_only=True)` reads.
        config: the configuration as JSON.
        keep: how many to keep, this one included.

    Raises:
        OSError: naming the file and the cause; older checkpoints are untouched.
    """
    # Not named by updates: a run that goes on with larger batches counts fewer, and the new ones would look older.
    folder = run / "checkpoints" / f"epoch_{epoch:05d}_image_{image:09d}"

    def fill(target: Path) -> None:
        if shards is not None:
            shards.rename(target / _SHARDS)
        if model is not None:
            save_model(model, target / _MODEL)
        if ema is not None:
            save_model(ema, target / _EMA)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(target / _STATE, buffer.getvalue())
        write_atomically(target / _CONFIG, config.encode())
        files = sorted(path for path in target.rglob("*") if path.is_file())
        digests = {str(file.relative_to(target)): _digest(file) for file in files}
        write_atomically(target / _DIGESTS, json.dumps(digests, indent=2).encode())

    write_folder_atomically(folder, fill)
    for old in checkpoint_folders(run)[keep:]:
        shutil.rmtree(old)
    return folder


def load_newest_checkpoint(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and one line about each newer one that is not; None if none was written yet.

    Raises:
        CheckpointError: if there are some, and all are damaged.
    """
    problems: list[str] = []
    for folder in checkpoint_folders(run):
        try:
            return _load(folder), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{run}: no checkpoint to resume from ({'; '.join(problems)})")
    return None, []


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    return sorted((run / "checkpoints").glob("epoch_*"), reverse=True)


def remove_unfinished(run: Path) -> None:
    """Remove from a run folder what a killed process was writing."""
    for path in unfinished(run):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have been in a folder that is gone


def _load(folder: Path) -> Checkpoint:
    try:
        digests = json.loads((folder / _DIGESTS).read_text())
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                raise CheckpointError(f"{folder}: damaged: {name} is not as it was written")
        ema = safetensors.torch.load_file(folder / _EMA) if _EMA in digests else None
        shards = folder / _SHARDS if (folder / _SHARDS).is_dir() else None
        model = {} if shards else safetensors.torch.load_file(folder / _MODEL)
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except (OSError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{folder}: damaged ({error})") from None
    return Checkpoint(folder, model, ema, shards, state)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
