"""Training from WebDataset shards that can only be read from their beginning, such as the output of a command."""

import itertools
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from convattn.data.dataset import DataError
from convattn.data.file_names import is_shard_name
from convattn.data.images import ImageError, read_image
from convattn.data.known_classes import KnownClasses, LabelError
from convattn.data.labelled import Labelled
from convattn.data.loader import SeededSamples, collate
from convattn.data.shards import grouped, image_suffix, label_in, label_parts
from convattn.data.tars import members_of, problem_with
from convattn.data.workers import worker_options
from convattn.extras import require
from convattn.task import Batch, PairTransform

__all__ = ["StreamLoader"]

_BUFFER = 1000  # samples, as they lie in the shards, among which the next one is drawn


class StreamLoader:
    """Shuffled batches of equal size from shards that are read through pipes; offers what `TrainingLoader` does.

    In each epoch the shards are shuffled, dealt out to processes and their workers, and read one after the other, a
    second time where they are too few; samples are shuffled within a buffer of 1,000. All of this, and what is random
    about a sample, depends on the seed, the epoch, and the numbers of processes and workers alone. So the batches
    behind `skip` are those that the whole epoch would have had; the ones before are read but not decoded.

    What cannot be read or has no label is set aside by name, and another sample of its batch takes its place. A shard
    that fails is set aside as a whole.

    Args:
        source: `pipe:COMMAND {0000..0146}.tar` or paths of shards; braces stand for as many, `::` parts several.
        transform: from a picture and its label to a tensor and the label.
        classes: the classes in the order of the labels; a label is a number or one of these.
        batch_size: images in a batch of one process.
        images: that make an epoch; shards in a pipe cannot be counted. None is an error that says so.
        workers: processes that load; 0 loads in this one.
        seed: of the order and the transform.
        rank: this process's number among those that train together.
        replicas: how many they are.
        device: where the batches will go.

    Raises:
        DataError: if `images` is missing or fills no batch, or there are fewer shards than processes that read them.
        MissingExtra: if webdataset is not installed.
    """

    def __init__(
        self,
        source: str,
        transform: PairTransform,
        classes: Sequence[str],
        batch_size: int,
        *,
        images: int | None,
        workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        replicas: int = 1,
        device: torch.device | str = "cpu",
    ):
        shards = require("webdataset.shardlists", "train").expand_urls(source)
        readers = max(workers, 1) * replicas
        if images is None:
            raise DataError(f"{source}: a pipe cannot be counted; set data.epoch_images to the images of an epoch")
        if images < batch_size * replicas:
            raise DataError(f"{source}: data.epoch_images {images} does not fill a batch of {batch_size * replicas}")
        if len(shards) < readers:
            raise DataError(
                f"{source}: {len(shards)} shards for {readers} processes that read them; lower data.workers to "
                f"{len(shards) // replicas} or cut smaller shards"
            )
        self.images = images
        self._length = images // (batch_size * replicas)
        self._options = worker_options(workers, device)
        self._reader = _Reader(shards, KnownClasses(tuple(classes)), transform, batch_size, seed, rank, replicas)

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, without the first `skip`."""
        lanes = _Lanes(self._reader, epoch, skip, self._length)
        return iter(torch.utils.data.DataLoader(lanes, batch_size=None, **self._options))


@dataclass(frozen=True)
class _Sample:
    """What a shard holds of one sample."""

    name: str
    label: int = 0
    content: bytes = b""
    problem: str = ""  # why it is not to be used


class _Held(Labelled):
    """Samples in memory as a data set."""

    def __init__(self, samples: Sequence[_Sample]):
        self.labels = [sample.label for sample in samples]
        self.paths = [sample.name for sample in samples]
        self._samples = samples

    def read(self, index: int) -> Image.Image:
        sample = self._samples[index]
        if sample.problem:
            raise ImageError(f"{sample.name}: {sample.problem}")
        return read_image(sample.content, sample.name)


class _Lanes(IterableDataset):
    """An epoch's batches, in turn from as many lanes as there are workers."""

    def __init__(self, reader: "_Reader", epoch: int, skip: int, end: int):
        self._reader, self._epoch, self._skip, self._end = reader, epoch, skip, end

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        # PyTorch asks the first worker first, and the first batch behind the skipped ones is that of this lane.
        return self._reader.lane((self._skip + number) % count, count, self._epoch, self._skip, self._end)


@dataclass(frozen=True)
class _Reader:
    """Reads the share of one process."""

    shards: Sequence[str]
    known: KnownClasses
    transform: PairTransform
    batch_size: int
    seed: int
    rank: int
    replicas: int

    def lane(self, lane: int, lanes: int, epoch: int, skip: int, end: int) -> Iterator[Batch]:
        """Every `lanes`-th batch of an epoch from number `lane` on, those before `skip` left out."""
        passes = (self._once(lane, lanes, epoch, again) for again in itertools.count())
        samples = itertools.chain.from_iterable(passes)
        for number in range(lane, end, lanes):
            held = _Held(list(itertools.islice(samples, self.batch_size)))
            if number >= skip:
                seeded = SeededSamples(held, self.transform, self.seed)
                place = number * self.replicas + self.rank
                yield collate(seeded.__getitems__([(epoch, place, at) for at in range(len(held))]), fill=True)

    def _once(self, lane: int, lanes: int, epoch: int, again: int) -> Iterator[_Sample]:
        """One pass over a lane's shards; `again` counts the passes of the epoch before it."""
        key = (self.seed, epoch, again)
        shards = np.random.default_rng(key).permutation(len(self.shards))[self.rank :: self.replicas][lane::lanes]
        generator = random.Random(repr((key, self.rank, lane)))
        shuffle = require("webdataset.filters", "train").shuffle(_BUFFER, initial=_BUFFER, rng=generator)
        return iter(shuffle(self._in_order([self.shards[shard] for shard in shards])))

    def _in_order(self, shards: Sequence[str]) -> Iterator[_Sample]:
        failed = []
        for shard in shards:
            try:
                yield from self._samples_of(shard)
            except (DataError, OSError, tarfile.TarError) as error:
                failed.append(f"{shard}: {error}")
                yield _Sample(shard, problem=str(error))
        if len(failed) == len(shards):
            raise DataError(f"none of {len(shards)} shards could be read to its end: {failed[0]}")

    def _samples_of(self, shard: str) -> Iterator[_Sample]:
        found = False
        for key, parts in grouped(_members(shard)):
            found = True
            yield self._understood(f"{shard}/{key}", parts)
        if not found:
            raise DataError("no sample")

    def _understood(self, name: str, parts: dict[str, tuple[bytes, str]]) -> _Sample:
        suffix = image_suffix(parts)
        if suffix is None:
            return _Sample(name, problem="no image beside its label")
        name = f"{name}.{suffix}"
        content, problem = parts[suffix]
        if problem:
            return _Sample(name, problem=problem)
        try:
            label = self.known.of(label_in({kind: parts[kind][0] for kind in label_parts(parts)}))
        except LabelError as error:
            return _Sample(name, problem=str(error))
        return _Sample(name, label, content)


def _members(shard: str) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """The images and labels of a shard: name, content, and why the content is not given if it is not."""
    stream: Any = require("webdataset", "train").gopen(shard)
    with stream:
        with tarfile.open(fileobj=stream, mode="r|*", name=shard) as archive:
            for info in members_of(archive):
                if not is_shard_name(info.name) or info.isdir():
                    continue
                problem = problem_with(info)
                file = None if problem else archive.extractfile(info)
                yield info.name, (b"" if file is None else file.read(), problem)
        while stream.read(2**20):  # to the end, so that a command that fails is known to
            pass
