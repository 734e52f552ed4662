"""The best of a row of numbers, as many as there are of them at most."""

import torch
from torch import Tensor

__all__ = ["best"]


def best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `most` greatest of each row (B, n) and their places, the greatest first; of fewer all.

    While a graph is traced for rows of any length there are `most` always: those that are lacking are minus infinity,
    at the place of the last.
    """
    count = scores.shape[1]
    if isinstance(count, int):
        values, index = scores.topk(min(most, count), dim=1)
        return values, index
    values, index = torch.nn.functional.pad(scores, (0, most), value=-torch.inf).topk(most, dim=1)
    return values, index.clamp(max=count - 1)
