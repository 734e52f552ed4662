"""Weights, gradients and optimiser spread over the processes by PyTorch's FSDP2, and their checkpoints."""

import dataclasses
import enum
import importlib
import io
import pathlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

__all__ = ["check_shards", "full_state", "load_shards", "save_shards", "shard"]

_METADATA = ".metadata"
_THEIRS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread the parameters of `model`, in place, over all processes, each stage or layer by itself, as DTensors."""
    # Stages hand over views (channels-last maps); nothing in these networks writes into what a stage returned.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for unit in _units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights and buffers in every process, on the CPU. All processes call it."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {name: value.cpu() for name, value in state.items() if isinstance(value, Tensor)}


def save_shards(folder: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
    """Every process writes its part into `folder`; OSError if one of them cannot, naming folder and cause."""
    try:
        state_dict_saver.save(_state(model, ema, optimizer), checkpoint_id=str(folder))
    except CheckpointException as error:
        cause = _cause(error)
        if isinstance(cause, OSError):
            raise OSError(cause.errno, f"{folder} could not be written: {cause.strerror}") from None
        raise RuntimeError(f"{folder} could not be written: {cause}") from None


def load_shards(folder: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
    """Every process reads its part, however many there were when it was written; ValueError in all if one cannot."""
    state = _state(model, ema, optimizer)
    try:
        state_dict_loader.load(state, storage_reader=_Reader(folder), planner=_Planner())
    except CheckpointException as error:
        raise ValueError(f"{folder} could not be read: {_cause(error)}") from None
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    if ema is not None:
        set_model_state_dict(ema, state["ema"])


def _state(model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> dict:
    weights, moments = get_state_dict(model, optimizer)
    averaged = {} if ema is None else {"ema": get_model_state_dict(ema)}
    return {"model": weights, "optimizer": moments, **averaged}


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """What is called as a whole in a forward: the children, or their children where a list of stages is walked."""
    for child in model.children():
        inner = child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
        yield from (unit for unit in inner if any(True for _ in unit.parameters()))


def _cause(error: CheckpointException) -> BaseException:
    """What the first of the processes that failed raised."""
    return next(iter(error.failures.values()))[0]


def check_shards(folder: Path) -> None:
    """Raise ValueError where a part that the index of shards names is missing, or shorter than it says."""
    for part in _read_index(folder).storage_data.values():
        file = folder / part.relative_path
        if file.parent != folder or not file.is_file() or file.stat().st_size < part.offset + part.length:
            raise ValueError(f"{folder.name}/{part.relative_path} is missing or cut short")


def _read_index(folder: Path) -> Metadata:
    with open(folder / _METADATA, "rb") as file:
        found = _IndexUnpickler(file).load()
    if not isinstance(found, Metadata):
        raise ValueError(f"{folder.name}/{_METADATA} is no index of shards")
    return found


class _IndexUnpickler(pickle.Unpickler):
    """Reads the index, in which PyTorch trusts any pickle, without running what others may have put there."""

    def find_class(self, module: str, name: str) -> Any:
        """Only what holds data."""
        if (module, name) in {("torch", "Size"), ("torch.serialization", "_get_layout")}:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "pathlib" and name.endswith("Path"):
            return pathlib.PurePosixPath
        found = getattr(importlib.import_module(module), name, None) if module in _THEIRS else None
        if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)):
            return found
        raise pickle.UnpicklingError(f"{_METADATA} asks to load {module}.{name}, which could run code")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """As PyTorch's, but of data only."""
        found = _read_index(Path(self.path))
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """As PyTorch's, but what could run code is refused first."""
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no plain value and could run code") from None
        value.seek(0)
        super().load_bytes(read_item, value)
