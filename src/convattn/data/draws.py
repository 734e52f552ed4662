"""Random numbers for transforms: all from torch's global generator, so that a sample's key alone decides them."""

import torch

__all__ = ["chance", "uniform", "whole"]


def uniform(low: float, high: float) -> float:
    """A number from `low` to below `high`."""
    return low + (high - low) * torch.rand(()).item()


def chance(share: float) -> bool:
    """Whether something that happens so often happens; 0 is never, 1 always."""
    return torch.rand(()).item() < share


def whole(low: int, high: int) -> int:
    """A whole number from `low` to below `high`."""
    return int(torch.randint(low, high, ()))
