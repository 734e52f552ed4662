"""The most memory that this process has taken so far."""

import resource
import sys

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where `device` is one, otherwise of this process, without loading workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
