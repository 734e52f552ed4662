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
import re
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from convattn.atomic import unfinished, write_atomically, write_folder_atomically
from convattn.config_errors import RunFolderError
from convattn.model_files import save_model
from convattn.ops.linear import is_of_linear
from convattn.shown import reason, shown
from convattn.training.sharded import check_shards
from convattn.weights.read import CheckpointError

__all__ = [
    "Checkpoint",
    "checkpoint_folders",
    "read_checkpoint",
    "remove_unfinished",
    "reshape_moments",
    "save_checkpoint",
]

_MODEL, _EMA, _SHARDS = "model.safetensors", "ema.safetensors", "shards"
_STATE, _CONFIG, _DIGESTS = "state.pt", "config.json", "sha256.json"
_NAME = re.compile(r"epoch_(\d{5,})_image_(\d{9,})(\+*)")


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
    trusted: set[Path] | None = None,
) -> Path:
    """Write a checkpoint and remove all but the newest `keep` whole ones; a crash at any time leaves these.

    Damaged ones are removed and do not count. One that is newer and whole stays: the run will write it again.

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
        trusted: older checkpoints that are known to be whole; the others are read before they are kept, and added.

    Raises:
        OSError: naming the file and the cause; older checkpoints are untouched.
    """
    # Not named by updates: a run that goes on with larger batches counts fewer, and the new ones would look older.
    folder = _place(run, f"epoch_{epoch:05d}_image_{image:09d}")

    def fill(target: Path) -> None:
        names = [_STATE, _CONFIG]
        if shards is not None:
            shards.rename(target / _SHARDS)
            names += [f"{_SHARDS}/{file.name}" for file in (target / _SHARDS).iterdir()]
        for name, part in ((_MODEL, model), (_EMA, ema)):
            if part is not None:
                save_model(part, target / name)
                names.append(name)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(target / _STATE, buffer.getvalue())
        write_atomically(target / _CONFIG, config.encode())
        digests = {name: _digest(target / name) for name in sorted(names)}  # by name: one that has vanished is missed
        write_atomically(target / _DIGESTS, json.dumps(digests, indent=2).encode())

    write_folder_atomically(folder, fill)
    _remove_old(run, folder, keep, set() if trusted is None else trusted)
    return folder


def _place(run: Path, name: str) -> Path:
    """Where a checkpoint goes: never in the place of another one, which would be lost for a moment."""
    same = [folder.name for folder in checkpoint_folders(run) if folder.name.rstrip("+") == name]
    return run / "checkpoints" / (f"{max(same)}+" if same else name)  # sorts behind them


def _remove_old(run: Path, written: Path, keep: int, trusted: set[Path]) -> None:
    whole = 1
    for folder in checkpoint_folders(run):
        if folder == written:
            continue
        newer = _order(folder) > _order(written)
        if not newer and whole >= keep:
            _remove(folder)
        elif folder in trusted:
            whole += not newer
        elif (damaged := _is_damaged(folder)) is True:
            _remove(folder)
        elif damaged is False:
            trusted.add(folder)
            whole += not newer


def _remove(folder: Path) -> None:
    """Remove a checkpoint; one that cannot be is no reason to stop training."""
    try:
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        else:  # a link to where a person has put it, or a file
            folder.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        warnings.warn(f"{folder}: an old checkpoint that cannot be removed ({error.strerror}); it stays", stacklevel=4)


def _is_damaged(folder: Path) -> bool | None:
    """Whether a checkpoint cannot be used; None if disk or memory do not let it be known, which may pass."""
    try:
        _read(folder)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return True
    except (OSError, MemoryError):
        return None
    except Exception as error:  # as in `read_checkpoint`
        return None if "allocate memory" in str(error) else True  # how PyTorch says so
    return False


def checkpoint_folders(run: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first. What a person has put beside them under another name is none."""
    folders = (path for path in (run / "checkpoints").glob("epoch_*") if _NAME.fullmatch(path.name))
    return sorted(folders, key=_order, reverse=True)


def _order(folder: Path) -> tuple[int, int, int]:
    """Where a checkpoint stands among those of its run: by its numbers, which may outgrow their places in its name."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2]), len(match[3])


def reshape_moments(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> None:
    """Give what `optimizer` keeps of each of these weights that weight's shape, in place.

    Args:
        optimizer: with the state of an older checkpoint, in which a linear layer over maps has a weight of (C', C); now
            it is that of a 1×1 convolution.
        weights: of these layers.

    Raises:
        RunFolderError: if it keeps something that has another shape of a matrix than of a convolution, such as the
            means of its rows (Adafactor).
    """
    for weight in weights:
        kept = optimizer.state.get(weight, {})
        for key, value in kept.items():
            if not isinstance(value, Tensor) or value.numel() == 1 < weight.numel():
                continue
            if not is_of_linear(value.shape, weight.shape):
                raise RunFolderError(
                    f"{type(optimizer).__name__}: an earlier version of convattn kept {key} of {tuple(value.shape)} "
                    f"for a weight that is {tuple(weight.shape)} now; resume with that version, or begin a run with "
                    "model.pretrained_path last.safetensors"
                )
            kept[key] = value.view(weight.shape)


def remove_unfinished(run: Path) -> None:
    """Remove from a run folder what a killed process was writing."""
    for path in unfinished(run):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have been in a folder that is gone


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose files are as they were written, and open; CheckpointError if it is damaged."""
    try:
        return _read(folder)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader stumble on
        raise CheckpointError(f"{folder}: damaged ({reason(error)})") from None


def _read(folder: Path) -> Checkpoint:
    if (folder / _DIGESTS).exists() and not (folder / _DIGESTS).is_file():  # a pipe would be waited for
        raise CheckpointError(f"{folder}: damaged: {_DIGESTS} is no file")
    digests = json.loads((folder / _DIGESTS).read_text())
    parts = {name.partition("/")[0] for name in digests}
    needed = {_STATE, _SHARDS if _SHARDS in parts else _MODEL}
    strange = parts - {_STATE, _CONFIG, _MODEL, _EMA, _SHARDS}
    if strange or not needed <= parts:
        raise CheckpointError(f"{folder}: damaged: {_DIGESTS} names {shown(', '.join(sorted(parts))) or 'nothing'}")
    for name, digest in digests.items():
        if ".." in name or not (folder / name).is_file():  # nor a device, which may have no end
            raise CheckpointError(f"{folder}: damaged: {shown(name)} is missing")
        if _digest(folder / name) != digest:
            raise CheckpointError(f"{folder}: damaged: {name} is not as it was written")
    model, shards = {}, None
    if _SHARDS in parts:
        shards = folder / _SHARDS
        check_shards(shards)
    else:
        model = safetensors.torch.load_file(folder / _MODEL)
    ema = safetensors.torch.load_file(folder / _EMA) if _EMA in parts else None
    state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder}: damaged: {_STATE} holds {type(state).__name__}, not a dictionary")
    return Checkpoint(folder, model, ema, shards, state)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
