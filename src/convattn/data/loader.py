"""Batches of images and their targets, from any data set, with the place in the epoch kept for resuming."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from convattn.data.images import ImageError
from convattn.data.workers import worker_options
from convattn.seeding import derived_seed, random_state, restore_random_state
from convattn.task import Batch, Dataset, PairTransform, Target

__all__ = [
    "Collate",
    "EpochOrder",
    "Key",
    "Sample",
    "Samples",
    "SeededSamples",
    "TrainingLoader",
    "collate",
    "evaluation_loader",
]


@dataclass(frozen=True)
class Sample:
    """One image as the transform left it; no image where the file could not be read."""

    path: str
    image: Tensor | None
    target: Any = None
    size: tuple[int, int] = (0, 0)  # height and width of the picture in the file
    problem: str = ""


Collate = Callable[[list[Any]], Target]  # the targets of one or more samples as those of a batch

Key = tuple[int, int, int]  # epoch, repeat, index: all that the randomness of a training sample depends on


class Samples(torch.utils.data.Dataset):
    """A data set seen through a transform that draws nothing, from picture and target to tensor and target."""

    def __init__(self, dataset: Dataset, transform: PairTransform):
        self.dataset = dataset
        self.transform = transform
        self._unreadable: dict[int, str] = {}  # not tried again by this process

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        path = self.dataset.paths[index]
        if index not in self._unreadable:
            try:
                picture = self.dataset.read(index)
                size = picture.height, picture.width
                return Sample(path, *self.transform(picture, self.dataset.target(index)), size)
            except ImageError as error:
                self._unreadable[index] = str(error)
        return Sample(path, None, problem=self._unreadable[index])


class SeededSamples(Samples):
    """A data set seen through a random transform, which may draw from the random states of Python, numpy and torch.

    What is random about a sample depends on the seed and its key alone: not on the number of workers or processes, nor
    on what was drawn before. So a resumed run sees the very same images.
    """

    def __init__(self, dataset: Dataset, transform: PairTransform, seed: int):
        super().__init__(dataset, transform)
        self.seed = seed

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample]:
        """Several samples at once; PyTorch's loader calls this, and the caller's random state is saved once a batch."""
        before = random_state(gpus=False)  # transforms run on the CPU; asking a GPU would make it wait
        try:
            return [self._seeded_sample(key) for key in keys]
        finally:
            restore_random_state(before)

    def _seeded_sample(self, key: Key) -> Sample:
        seed = derived_seed(self.seed, *key)  # numpy's SeedSequence takes 30 µs
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        return self[key[-1]]


class TrainingLoader:
    """Shuffled batches of equal size. The order is a function of the seed and the epoch, the same for all processes.

    The images of an epoch form one stream; the processes' next batches are its next `batch_size * replicas` images. So
    the place in an epoch is a number of images, whatever the batch size or the number of processes. What fills no batch
    at the end is left out. An unreadable image is set aside by name, and another of its batch takes its place.

    Args:
        samples: what to load.
        batch_size: images in a batch of one process.
        workers: processes that load; 0 loads in this one.
        seed: of the order.
        repeats: variants of an image that follow one another in the stream (repeated augmentation; Hoffer et al.,
            arXiv 1901.09335); the epoch has as many images as without, so fewer different ones.
        rank: this process's number among those that train together.
        replicas: how many they are.
        device: where the batches will go.
        targets: makes the targets of a batch out of those of its images.
        order: makes the order out of the number of images, `batch_size`, `seed`, `repeats`, `rank`, `replicas`.
    """

    def __init__(
        self,
        samples: SeededSamples,
        batch_size: int,
        *,
        targets: Collate = default_collate,
        order: "Callable[[int, int, int, int, int, int], EpochOrder] | None" = None,
        workers: int = 0,
        seed: int = 0,
        repeats: int = 1,
        rank: int = 0,
        replicas: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.images = len(samples)
        self._order = (order or EpochOrder)(self.images, batch_size, seed, repeats, rank, replicas)
        self._loader = torch.utils.data.DataLoader(
            samples,
            batch_sampler=self._order,
            collate_fn=partial(collate, fill=True, targets=targets),
            persistent_workers=workers > 0,
            **worker_options(workers, device),
        )

    def __len__(self) -> int:
        return self.images // self._order.span

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip`."""
        self._order.epoch, self._order.skip = epoch, skip
        return iter(self._loader)


class EpochOrder:
    """Which keys make up each batch of this process; iterated anew for each epoch."""

    def __init__(self, images: int, batch_size: int, seed: int, repeats: int, rank: int, replicas: int):
        self.images, self.seed, self.repeats = images, seed, repeats
        self.rank, self.replicas = rank, replicas
        self.span = batch_size * replicas  # images of the stream that a batch of each process takes
        self.epoch = self.skip = 0

    def stream(self, generator: torch.Generator) -> Tensor:
        """The images of an epoch in order, (images,) int64; a function of the generator alone."""
        return torch.randperm(self.images, generator=generator)

    def places(self, start: int) -> range:
        """The places in the stream that this process takes of the span from `start` on."""
        return range(start + self.rank, start + self.span, self.replicas)

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.stream(torch.Generator().manual_seed(derived_seed("order", self.seed, self.epoch)))
        for start in range(self.skip * self.span, self.images - self.span + 1, self.span):
            yield [(self.epoch, at % self.repeats, int(order[at // self.repeats])) for at in self.places(start)]


def evaluation_loader(
    samples: Samples,
    batch_size: int,
    *,
    targets: Collate = default_collate,
    workers: int = 0,
    rank: int = 0,
    replicas: int = 1,
    device: torch.device | str = "cpu",
) -> Any:
    """Every image once, in order; of several processes each takes every `replicas`-th, beginning at its rank.

    Unreadable images are left out and named in their batch.
    """
    return torch.utils.data.DataLoader(
        samples,
        batch_size,
        sampler=range(rank, len(samples), replicas),
        collate_fn=partial(collate, fill=False, targets=targets),
        **worker_options(workers, device),
    )


def collate(samples: Sequence[Sample], *, fill: bool, targets: Collate = default_collate) -> Batch:
    """Stack samples; an unreadable one is left out, or with `fill` replaced by a readable one of the same batch.

    Images of several sizes are left in a list. A batch without any readable image is empty.
    """
    readable = [sample for sample in samples if sample.image is not None]
    unreadable = {sample.path: sample.problem for sample in samples if sample.image is None}
    if fill and readable:
        spare = len(samples) - len(readable)
        readable += [readable[index % len(readable)] for index in range(spare)]
    images = [sample.image for sample in readable if sample.image is not None]
    several = len({image.shape for image in images}) > 1
    return Batch(
        images if several else default_collate(images) if images else torch.empty(0),  # in a worker without a copy
        targets([sample.target for sample in readable]) if readable else torch.empty(0),
        [sample.path for sample in readable],
        unreadable,
        [sample.size for sample in readable],
    )
