from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data.loader import SeededSamples, TrainingLoader
from convattn.detection.annotations import Annotations
from convattn.detection.aspect_order import AspectOrder, aspect_order
from convattn.detection.batch_targets import ImageTargets
from convattn.detection.transforms import training_transform
from convattn.detection.variation import Variation

IMAGES = 1000
IS_WIDE = torch.rand(IMAGES, generator=torch.Generator().manual_seed(1)) < 0.7


def batches(epoch=0, skip=0, *, batch_size=8, seed=3, repeats=1, rank=0, replicas=1, is_wide=IS_WIDE):
    """The images of each batch."""
    order = AspectOrder(is_wide, batch_size, seed, repeats, rank, replicas)
    order.epoch, order.skip = epoch, skip
    return [[key[-1] for key in keys] for keys in order]


def mixed(found, is_wide=IS_WIDE):
    """How many of the batches hold both kinds."""
    return sum(len({bool(is_wide[image]) for image in batch}) > 1 for batch in found)


def test_an_epoch_shows_every_image_once_in_batches_of_one_kind():
    found = batches()
    assert sorted(image for batch in found for image in batch) == list(range(IMAGES))
    assert mixed(found) <= 1  # where the rests of both kinds meet
    kinds = [bool(IS_WIDE[batch[0]]) for batch in found]
    assert sum(one != other for one, other in pairwise(kinds)) > 5  # in turn, not one kind after the other


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 8, 12, 16])
def test_batches_that_divide_a_run_are_never_mixed_but_at_the_end(batch_size):
    assert mixed(batches(batch_size=batch_size)) <= 1


def test_other_batch_sizes_are_seldom_mixed():
    found = batches(batch_size=10)
    assert mixed(found) < len(found) / 5


def test_the_order_depends_on_seed_and_epoch_alone():
    assert batches(epoch=2) == batches(epoch=2)
    assert batches(epoch=2) != batches(epoch=3)
    assert batches(seed=4) != batches(seed=3)


def test_a_place_in_the_epoch_is_a_number_of_images():
    whole = batches(batch_size=8)
    assert batches(skip=40) == whole[40:]
    seen = {image for batch in whole[:40] for image in batch}
    assert seen == {image for batch in batches(batch_size=16)[:20] for image in batch}


def test_processes_share_an_epoch_and_each_has_batches_of_one_kind():
    alone = batches(batch_size=8)
    shares = [batches(batch_size=4, rank=rank, replicas=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares, strict=True)] == alone
    assert all(mixed(share) <= 1 for share in shares)


def test_repeats_follow_one_another():
    counts = Counter(image for batch in batches(repeats=2) for image in batch)
    assert set(counts.values()) == {2}
    assert len(counts) == IMAGES / 2


@pytest.mark.parametrize("is_wide", [torch.ones(5, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)])
def test_one_kind_alone_and_few_images_are_no_special_case(is_wide):
    found = batches(batch_size=2, is_wide=is_wide)
    assert len(found) == len(is_wide) // 2
    assert batches(epoch=1, batch_size=2, is_wide=is_wide) != found


def test_small_data_are_shuffled_from_epoch_to_epoch():
    is_wide = torch.arange(80) % 4 > 0
    found = [batches(epoch, batch_size=4, is_wide=is_wide) for epoch in range(6)]
    assert {bool(is_wide[epoch[0][0]]) for epoch in found} == {True, False}
    assert all(mixed(epoch, is_wide) <= 1 for epoch in found)


class Pictures:
    """Plain pictures of two shapes without objects."""

    def __init__(self, sizes):
        self.sizes, self.paths = sizes, [str(at) for at in range(len(sizes))]

    def __len__(self):
        return len(self.sizes)

    def read(self, index):
        return Image.new("RGB", tuple(map(int, self.sizes[index][::-1])))

    def target(self, index):
        nothing = np.zeros(0)
        size = tuple(self.sizes[index].tolist())
        return Annotations(np.zeros((0, 4)), nothing.astype(np.int64), nothing.astype(bool), nothing, size, None, index)


def test_the_loader_takes_it():
    sizes = np.array([[30, 40], [40, 30]] * 20)
    transform = training_transform(Variation((24,), longest_side=64), (0.5,) * 3, (0.5,) * 3, masks=False)
    samples = SeededSamples(Pictures(sizes), transform, seed=0)
    loader = TrainingLoader(samples, 4, targets=ImageTargets, order=aspect_order(sizes))
    assert loader.images == 40
    seen = [*loader.batches(epoch=1)]
    assert len(seen) == len(loader) == 10
    assert all(isinstance(batch.images, torch.Tensor) for batch in seen)  # of one size each
    assert [batch.paths for batch in loader.batches(epoch=1, skip=4)] == [batch.paths for batch in seen[4:]]
    assert len(seen[0].targets) == 4
