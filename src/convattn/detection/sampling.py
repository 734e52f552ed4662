"""A part of many boxes to learn from: so many for objects, the rest for background."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Choose", "Sample", "Sampler", "choose_randomly"]

Choose = Callable[[Tensor, int], Tensor]  # candidates (n,), how many -> those chosen


def choose_randomly(candidates: Tensor, count: int) -> Tensor:
    """So many of the candidates, in their order, by torch's generator."""
    if count >= len(candidates):
        return candidates
    chosen = torch.randperm(len(candidates), device=candidates.device)[:count]
    return candidates[chosen.sort().values]


@dataclass(frozen=True)
class Sample:
    """Numbers of boxes, rising."""

    positive: Tensor  # (p,) int64
    negative: Tensor  # (n,) int64


@dataclass(frozen=True)
class Sampler:
    """So many boxes of an image.

    Args:
        count: all together.
        share: of these, how many may stand for objects; background fills up.
        choose: takes some of many.
    """

    count: int
    share: float
    choose: Choose = choose_randomly

    def __call__(self, assigned: Tensor) -> Sample:
        """Of boxes that stand for objects (above 0) or background (0)."""
        (positive,) = (assigned > 0).nonzero(as_tuple=True)
        (negative,) = (assigned == 0).nonzero(as_tuple=True)
        positive = self.choose(positive, min(len(positive), int(self.count * self.share)))
        return Sample(positive, self.choose(negative, min(len(negative), self.count - len(positive))))
