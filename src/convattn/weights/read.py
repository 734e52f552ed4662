"""Reading a checkpoint file without running anything that is in it."""

import argparse
import collections
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

__all__ = ["CheckpointError", "read_state_dict"]

# What the authors' training scripts stored beside the weights. Allowed by name: a yacs node becomes a plain ordered
# dictionary (yacs itself is never imported), an argparse namespace and a set hold data only.
_HARMLESS: list[Any] = [(collections.OrderedDict, "yacs.config.CfgNode"), argparse.Namespace, set]

_WRAPPERS = ("model", "state_dict_ema", "state_dict", "model_state_dict", "module")  # averaged weights first
_PREFIXES = ("module.", "_orig_mod.", "backbone.")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not belong to the model."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a `.safetensors` file or a pickled PyTorch checkpoint, as they are named there.

    A wrapper (`model`, `state_dict`, …) around the weights and a prefix common to all of them (`module.`, `backbone.`)
    are taken off. Pickles are read with `weights_only=True`: a file that would run code is refused.

    Raises:
        CheckpointError: if the file is missing, damaged, refused, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return unwrap_state_dict(content, name=str(path))


def unwrap_state_dict(content: Any, *, name: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors of a loaded checkpoint, without the wrapper and the prefix around them."""
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if isinstance(content, Mapping) and not content:
        raise CheckpointError(f"{name}: holds no weights")
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name}: holds {type(content).__name__}, not a dictionary of weights")
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(f"{name}: entry {strangers[0]!r} is not a tensor; no known wrapper holds the weights")
    state = dict(content)
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from None


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if refused:
            raise CheckpointError(
                f"{path}: refused, because it asks to load {refused}, which could run code; "
                "have its author save the weights alone, or as .safetensors"
            ) from None
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged") from None
    except (KeyError, IndexError):  # what the old format's reader stumbles on in a text, say
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({str(error).splitlines()[0]})") from None
