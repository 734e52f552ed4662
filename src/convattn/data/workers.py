"""What every loader here tells PyTorch's about its worker processes."""

import signal
from typing import Any

import torch

__all__ = ["worker_options"]


def worker_options(workers: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Keywords of `torch.utils.data.DataLoader` for so many worker processes (0 loads in this one) and a device."""
    return {
        "num_workers": workers,
        "worker_init_fn": _leave_signals_to_the_main_process,
        "pin_memory": torch.device(device).type == "cuda",
        # One of its own: starting an iterator draws from it, and must not disturb the state that training goes by.
        "generator": torch.Generator(),
    }


def _leave_signals_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
