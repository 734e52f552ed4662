"""The processes that train together: who this one is, and how they agree. Alone, all of it is trivial."""

import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from convattn.config_errors import ConfigError
from convattn.extras import require
from convattn.training.config import LoopConfig

__all__ = ["Processes", "end_processes", "is_main_process", "peak_memory", "without_settings"]

# How the variables begin by which Accelerate lets the environment, or `accelerate launch`, change what is trained.
_SETTINGS = ("ACCELERATE_", "FSDP_", "FP8_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")


class Processes:
    """Accelerate's handle on device, precision and processes, and what the loop asks of it.

    The configuration alone says what is trained: call it, and train, within `without_settings`.

    Args:
        loop: device and precision. The processes are those that `torchrun` (or Slurm, or MPI) started.

    Raises:
        ConfigError: for fp16 without a GPU, or sharding with one process. MissingExtra: if Accelerate is not installed.
    """

    def __init__(self, loop: LoopConfig):
        accelerate = require("accelerate", "train")
        on_cpu = loop.device == "cpu" or not torch.cuda.is_available()
        if loop.precision == "fp16" and on_cpu:
            raise ConfigError("loop.precision fp16 needs a GPU; use bf16 or fp32 on the CPU")
        if not torch.distributed.is_initialized():
            # Accelerate keeps device and precision of the first run in a process; another run may want others.
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
            if _restarts() and os.environ.get("GROUP_WORLD_SIZE") == "1":
                _meet_anew("gloo" if on_cpu else "nccl")
        precision = loop.precision
        if precision == "auto":
            precision = "fp32" if on_cpu or not torch.cuda.is_bf16_supported(including_emulation=False) else "bf16"
        self.accelerator = accelerate.Accelerator(
            cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision
        )
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.device: torch.device = self.accelerator.device
        self._gather: Callable[[list], list] = accelerate.utils.gather_object
        self._broadcast: Callable[[list], list] = accelerate.utils.broadcast_object_list
        if loop.sharding != "none" and self.count == 1:
            raise ConfigError(f"loop.sharding {loop.sharding} needs several processes; start them with torchrun")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def restarted(self) -> bool:
        """Whether torchrun has started these processes anew after one of them was lost (`--max-restarts`).

        All processes ask: only the machine that lost one is told.
        """
        return self.total([_restarts()])[0] > 0

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        if self.count == 1:
            return list(values)
        return self.summed(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def summed(self, values: Tensor) -> Tensor:
        """The same of values on the device, for which nobody waits yet; `values` may be changed."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def together(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """What the meters of all processes have: tensors summed, lists joined."""
        return {
            name: self.summed(part.to(self.device)) if isinstance(part, Tensor) else self.gather(part)
            for name, part in parts.items()
        }

    def gather(self, items: list) -> list:
        """The items of all processes, in order of their ranks."""
        return self._gather(items) if self.count > 1 else items

    def from_main(self, value: Any) -> Any:
        """What the main process passes in here; the others pass anything."""
        return self._broadcast([value])[0] if self.count > 1 else value

    def align(self, model: nn.Module) -> None:
        """Give every process the buffers that the main one has (each has batch statistics of its own images)."""
        if self.count > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def gradient_norm(self, parameters: Sequence[Tensor], largest: float | None) -> Tensor:
        """The norm of the gradient before it is clipped to `largest`, a scalar on the device."""
        if largest is not None:
            norm = self.accelerator.clip_grad_norm_(parameters, largest)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


@contextmanager
def without_settings() -> Iterator[list[str]]:
    """Within this context the environment holds nothing by which Accelerate would train otherwise than configured.

    Yields:
        A line for the user, if there was something.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}
    for name in found:
        del os.environ[name]
    names = ", ".join(f"{name}={value}" for name, value in sorted(found.items()))
    try:
        yield [f"not heeded: {names}; the configuration alone says what is trained"] if found else []
    finally:
        os.environ.update(found)


def end_processes() -> None:
    """Leave the group of processes, if there is one: NCCL warns of one that is left at the end of a program."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the process that speaks, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def _restarts() -> int:
    """How often torchrun has started the processes of this machine anew because one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meet_anew(backend: str) -> None:
    """Form the group of processes under a name of its own.

    The store in which they find one another is torchrun's; it outlives a restart and still has the addresses of those
    that are gone. On several machines the counts differ, and a fresh store is asked for: docs/distributed.md.
    """
    store, rank, count = next(rendezvous("env://"))
    store = PrefixStore(f"restart_{_restarts()}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count)


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has taken so far, bytes: of the GPU where `device` is one.

    On the CPU that of the process itself, without loading workers.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
