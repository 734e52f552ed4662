"""Batches of labelled images, from any data set, with the place in the epoch kept for resuming."""

import random
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from convattn.data.dataset import ImageDataset
from convattn.data.images import ImageError
from convattn.data.transforms import Transform
from convattn.extras import require
from convattn.seeding import random_state, restore_random_state

__all__ = ["Batch", "Samples", "evaluation_loader", "training_loader"]


@dataclass(frozen=True)
class Batch:
    """Images with their labels and files."""

    images: Tensor  # (B, 3, H, W), normalised
    labels: Tensor  # (B,) int64
    paths: list[str]  # B names
    unreadable: dict[str, str] = field(default_factory=dict)  # file -> why; these are not among the B images

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> "Batch":
        """The same batch on another device, its images in `memory_format`."""
        images = self.images.to(device, memory_format=memory_format, non_blocking=True)
        return replace(self, images=images, labels=self.labels.to(device, non_blocking=True))

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Sample:
    """One image as the transform left it; no image where the file could not be read."""

    path: str
    label: int
    image: Tensor | None
    problem: str = ""


class Samples(Dataset):
    """A data set seen through a transform.

    With a seed, what is random about a sample depends on the seed, the epoch and its index alone: not on the number of
    workers, nor on what was drawn before. So a resumed run sees the very same images.

    Args:
        dataset: the images.
        transform: from PIL to a tensor.
        seed: of the random transforms; None for a transform that draws nothing.
    """

    def __init__(self, dataset: ImageDataset, transform: Transform, seed: int | None = None):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples at once; PyTorch's loader calls this, and the caller's random state is saved once a batch."""
        if self.seed is None:
            return [self._sample(index) for index in indices]
        before = random_state(gpus=False)  # transforms run on the CPU; asking a GPU would make it wait
        try:
            return [self._seeded_sample(index, self.seed) for index in indices]
        finally:
            restore_random_state(before)

    def _seeded_sample(self, index: int, seed: int) -> Sample:
        # Mixed by numpy's hash, so that neighbouring epochs and indices share nothing.
        words = np.random.SeedSequence((seed, self.epoch, index)).generate_state(2)
        random.seed(int(words[0]))
        np.random.seed(words[0])
        torch.default_generator.manual_seed(int(words[1]))
        return self._sample(index)

    def _sample(self, index: int) -> Sample:
        path, label = self.dataset.paths[index], self.dataset.labels[index]
        try:
            return Sample(path, label, self.transform(self.dataset.read(index)))
        except ImageError as error:
            return Sample(path, label, None, str(error))


def training_loader(samples: Samples, batch_size: int, *, workers: int = 0, seed: int = 0, **shard: int) -> Any:
    """Shuffled batches of equal size; a `StatefulDataLoader` whose state is the place in the epoch.

    The order is a function of the seed and the epoch (`start_epoch`). An unreadable image is set aside by name, and
    another sample of its batch takes its place.

    Args:
        samples: what to load.
        batch_size: images in a batch; the rest of an epoch that fills no batch is left out.
        workers: processes that load; 0 loads in this one.
        seed: of the order.
        **shard: `num_replicas` and `rank`, where several processes share an epoch.
    """
    stateful = require("torchdata.stateful_dataloader", "train")
    sampler = require("torchdata.stateful_dataloader.sampler", "train").StatefulDistributedSampler(
        samples, **{"num_replicas": 1, "rank": 0, **shard}, seed=seed
    )
    with warnings.catch_warnings():
        # torchdata 0.11 calls a function of torch that warns from torch 2.13 on.
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")
        return stateful.StatefulDataLoader(
            samples,
            batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=partial(collate, fill=True),
            **_options(workers),
        )


def start_epoch(loader: Any, epoch: int) -> None:
    """Tell a training loader which epoch comes next, before iterating over it."""
    loader.dataset.epoch = epoch
    loader.sampler.set_epoch(epoch)


def evaluation_loader(samples: Samples, batch_size: int, *, workers: int = 0) -> Any:
    """Every image once, in order. Unreadable images are left out and named in their batch."""
    return torch.utils.data.DataLoader(
        samples, batch_size, collate_fn=partial(collate, fill=False), **_options(workers)
    )


def collate(samples: Sequence[Sample], *, fill: bool) -> Batch:
    """Stack samples; an unreadable one is left out, or with `fill` replaced by a readable one of the same batch.

    A batch without any readable image is empty.
    """
    readable = [sample for sample in samples if sample.image is not None]
    unreadable = {sample.path: sample.problem for sample in samples if sample.image is None}
    if fill and readable:
        spare = len(samples) - len(readable)
        readable += [readable[index % len(readable)] for index in range(spare)]
    images = [sample.image for sample in readable if sample.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0),
        torch.tensor([sample.label for sample in readable]),
        [sample.path for sample in readable],
        unreadable,
    )


def _options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "worker_init_fn": _leave_signals_to_the_main_process,
        "pin_memory": torch.cuda.is_available(),
        # One of its own: starting an iterator draws from it, and must not disturb the state that training goes by.
        "generator": torch.Generator(),
    }


def _leave_signals_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
