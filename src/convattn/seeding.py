"""The random states that training draws from: Python's, numpy's, torch's on the CPU and on the GPU of this process."""

import hashlib
import random
from typing import Any

import numpy as np
import torch

__all__ = ["derived_seed", "random_state", "restore_random_state", "seed_everything"]


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits from a seed and what it is for.

    By a hash: sums would let one run's seed, epoch or process meet those of another, `0 + 1` those of `1 + 0`.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1


def seed_everything(seed: int) -> None:
    """Start every generator from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state(*, gpus: bool = True) -> dict[str, Any]:
    """The state of every generator (without `gpus`: of the CPU), in types that a safe `torch.load` reads."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "python": random.getstate(),
        "numpy": (kind, words, int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if gpus and torch.cuda.is_initialized() else [],
    }


def restore_random_state(state: dict[str, Any]) -> bool:
    """Put every generator where `random_state` found it.

    Returns:
        Whether the GPU's could be put there too; not without a GPU, or if the state was taken without one.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    saved, in_use = state["cuda"], torch.cuda.is_initialized()
    if saved and in_use:  # older checkpoints have the states of all GPUs that a process saw
        torch.cuda.set_rng_state(saved[min(torch.cuda.current_device(), len(saved) - 1)])
    return bool(saved) == in_use
