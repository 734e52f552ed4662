"""Batches of images that are all wide or all tall, so that little of a batch is padding."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from convattn.data.loader import EpochOrder

__all__ = ["AspectOrder", "aspect_order"]

_RUNS = (48, 24, 16, 8, 4)  # images; the first of which the data hold enough
_LEAST_RUNS = 8  # that the data must hold of them, or an epoch would be too little shuffled


class AspectOrder(EpochOrder):
    """A shuffled epoch in runs of images that are all wider than high, or all not.

    The stream is a function of seed and epoch alone, whatever the batch size or the number of processes, so the place
    in an epoch is a number of images here too. A run has 48 images (fewer in small data sets), and each process takes
    images that follow one another: where its batch size divides the run, as 1, 2, 3, 4, 6, 8, 12 and 16 do, all images
    of a batch are alike. What fills no run stands at the end of the epoch, where a batch may be mixed.

    Args:
        is_wide: (images,) bool.
        batch_size, seed, repeats, rank, replicas: as in `EpochOrder`.
    """

    def __init__(self, is_wide: Tensor, batch_size: int, seed: int, repeats: int, rank: int, replicas: int):
        super().__init__(len(is_wide), batch_size, seed, repeats, rank, replicas)
        self.is_wide, self.batch_size = is_wide, batch_size
        self.run = next((run for run in _RUNS if len(is_wide) >= _LEAST_RUNS * run), 1)

    def stream(self, generator: torch.Generator) -> Tensor:
        """The images of an epoch in order, (images,) int64."""
        order = super().stream(generator)
        wide = self.is_wide[order]
        groups = [order[wide], order[~wide]]
        whole = [len(group) // self.run * self.run for group in groups]
        runs = torch.cat([group[:end] for group, end in zip(groups, whole, strict=True)]).view(-1, self.run)
        rest = [group[end:] for group, end in zip(groups, whole, strict=True)]
        if torch.rand((), generator=generator) < 0.5:  # what fills no batch is left out: not always the same kind
            rest.reverse()
        return torch.cat([runs[torch.randperm(len(runs), generator=generator)].flatten(), *rest])

    def places(self, start: int) -> range:
        """The places in the stream that this process takes of the span from `start` on: next to one another."""
        first = start + self.rank * self.batch_size
        return range(first, first + self.batch_size)


def aspect_order(sizes: np.ndarray) -> Callable[[int, int, int, int, int, int], AspectOrder]:
    """What `TrainingLoader` takes as `order`, for images of these heights and widths, (images, 2)."""
    is_wide = torch.from_numpy(sizes[:, 1] > sizes[:, 0])
    return lambda images, *others: AspectOrder(is_wide, *others)
