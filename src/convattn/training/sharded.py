"""Weights, gradients and optimiser spread over the processes by PyTorch's FSDP2, and their checkpoints."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

__all__ = ["full_state", "load_shards", "save_shards", "shard"]


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread the parameters of `model` over all processes, each stage or layer by itself; they become DTensors.

    Args:
        model: on `device`, the same in every process; changed in place.
        device: of this process.
    """
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
    """Every process writes its part into `folder`."""
    state_dict_saver.save(_state(model, ema, optimizer), checkpoint_id=str(folder))


def load_shards(folder: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
    """Every process reads its part, however many there were when it was written."""
    state = _state(model, ema, optimizer)
    state_dict_loader.load(state, checkpoint_id=str(folder))
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
