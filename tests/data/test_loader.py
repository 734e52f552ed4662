import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from convattn.data.images import ImageError
from convattn.data.labelled import Labelled
from convattn.data.loader import Samples, SeededSamples, TrainingLoader, evaluation_loader
from convattn.data.transforms import PictureAlone
from convattn.data.workers import worker_options
from convattn.seeding import derived_seed


class Numbers(Labelled):
    """Images that show their index; those in `broken` cannot be read."""

    classes = ("even", "odd")

    def __init__(self, count=12, broken=()):
        self.labels = [index % 2 for index in range(count)]
        self.paths = [f"{index}.png" for index in range(count)]
        self.broken = broken

    def read(self, index):
        if index in self.broken:
            raise ImageError(f"{index}.png: the file is empty")
        return Image.new("L", (1, 1), index)


def noisy(image):
    """One draw of each generator, and the image."""
    return torch.tensor([random.random(), np.random.rand(), torch.rand(()), float(pil_to_tensor(image))])


def training_loader(dataset, transform, batch_size, *, seed=0, **options):
    return TrainingLoader(SeededSamples(dataset, PictureAlone(transform), seed), batch_size, seed=seed, **options)


def paths(batches):
    return [batch.paths for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_random_depends_on_seed_epoch_and_index_alone(workers):
    loader = training_loader(Numbers(), noisy, 4, workers=workers, seed=3)
    first, second = list(loader.batches(0)), list(loader.batches(1))
    alone = SeededSamples(Numbers(), PictureAlone(noisy), seed=3)
    for epoch, batches in enumerate((first, second)):
        for batch in batches:
            for image, path in zip(batch.images, batch.paths, strict=True):
                assert torch.equal(image, alone.__getitems__([(epoch, 0, int(path[:-4]))])[0].image)
    assert paths(first) != paths(second)
    assert sorted(path for batch in second for path in batch.paths) == sorted(Numbers().paths)


def test_neighbouring_seeds_and_epochs_share_no_order():
    # Sums would: seed 0 in epoch 1 is then seed 1 in epoch 0.
    orders = [
        tuple(path for batch in training_loader(Numbers(), noisy, 4, seed=seed).batches(epoch) for path in batch.paths)
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len(set(orders)) == 16


def test_a_derived_seed_depends_on_every_part_and_its_place():
    parts = [(0, 1), (1, 0), ("order", 0, 1), ("noise", 0, 1), ("order", 1, 0), (10, 1), (1, 1), (0,)]
    seeds = {derived_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("order", 0, 1) == 8556750900509299915  # the same in every process and version


@pytest.mark.parametrize(("device", "pins"), [("cuda", True), ("cpu", False)])
def test_batches_are_pinned_where_the_device_asks_for_it(monkeypatch, device, pins):
    assert worker_options(0, device)["pin_memory"] is pins
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(tuple(self.shape)) or self)
    (batch,) = evaluation_loader(Samples(Numbers(3, broken=(1,)), PictureAlone(pil_to_tensor)), 3)
    again = batch.pin_memory()
    assert pinned == [(2, 1, 1, 1), (2,)]
    assert (again.paths, again.unreadable) == (batch.paths, batch.unreadable)
    for loader in (
        training_loader(Numbers(), pil_to_tensor, 4, device=device)._loader,
        evaluation_loader(Samples(Numbers(), PictureAlone(pil_to_tensor)), 4, device=device),
    ):
        assert loader.pin_memory is pins


def test_loading_leaves_the_random_states_of_the_process_alone():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = noisy(Image.new("L", (1, 1)))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    list(training_loader(Numbers(), noisy, 4).batches(0))
    list(evaluation_loader(Samples(Numbers(), PictureAlone(pil_to_tensor)), 4))
    assert torch.equal(noisy(Image.new("L", (1, 1))), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_taken_up_anywhere(workers):
    loader = training_loader(Numbers(20), noisy, 4, workers=workers)
    whole = list(loader.batches(2))
    rest = list(training_loader(Numbers(20), noisy, 4, workers=workers).batches(2, skip=2))
    assert paths(rest) == paths(whole[2:])
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[2:], strict=True))
    assert list(loader.batches(2, skip=5)) == []


@pytest.mark.parametrize("repeats", [1, 3])
def test_processes_share_the_batches_of_one(repeats):
    one = list(training_loader(Numbers(22), noisy, 6, repeats=repeats).batches(1))
    shares = [
        list(training_loader(Numbers(22), noisy, 2, repeats=repeats, rank=rank, replicas=3).batches(1))
        for rank in range(3)
    ]
    assert len(training_loader(Numbers(22), noisy, 2, rank=0, replicas=3)) == len(one) == len(shares[0]) == 3
    for number, batch in enumerate(one):
        for rank in range(3):
            assert torch.equal(shares[rank][number].images, batch.images[rank::3])
            assert shares[rank][number].paths == batch.paths[rank::3]


def test_repeats_are_other_variants_of_one_image_in_the_same_update():
    batches = list(training_loader(Numbers(24), noisy, 6, repeats=3).batches(0))
    assert len(batches) == 4
    for batch in batches:
        assert len(set(batch.paths)) == 2
        assert batch.paths[0] == batch.paths[1] == batch.paths[2]
        assert len({float(image[2]) for image in batch.images}) == 6
    assert len({path for batch in batches for path in batch.paths}) == 8


def test_processes_share_an_evaluation():
    samples = Samples(Numbers(7), PictureAlone(pil_to_tensor))
    shares = [paths(evaluation_loader(samples, 2, rank=rank, replicas=2)) for rank in range(2)]
    assert shares == [[["0.png", "2.png"], ["4.png", "6.png"]], [["1.png", "3.png"], ["5.png"]]]


@pytest.mark.parametrize("workers", [0, 1])
def test_in_training_another_sample_of_the_batch_takes_an_unreadable_ones_place(workers):
    batches = list(training_loader(Numbers(8, broken=(3,)), pil_to_tensor, 4, workers=workers).batches(0))
    assert [len(batch) for batch in batches] == [4, 4]
    (batch,) = (batch for batch in batches if batch.unreadable)
    assert batch.unreadable == {"3.png": "3.png: the file is empty"}
    assert "3.png" not in batch.paths
    assert batch.paths[3] == batch.paths[0]
    for image, label, path in zip(batch.images, batch.targets, batch.paths, strict=True):
        assert (int(image), int(label)) == (int(path[:-4]), int(path[:-4]) % 2)


def test_in_evaluation_an_unreadable_image_is_left_out_and_order_is_kept():
    batches = list(evaluation_loader(Samples(Numbers(5, broken=(1,)), PictureAlone(pil_to_tensor)), 2))
    assert [b.paths for b in batches] == [["0.png"], ["2.png", "3.png"], ["4.png"]]
    assert batches[0].unreadable == {"1.png": "1.png: the file is empty"}


def test_a_batch_without_a_readable_image_is_empty():
    (batch,) = training_loader(Numbers(2, broken=(0, 1)), pil_to_tensor, 2).batches(0)
    assert len(batch) == 0
    assert set(batch.unreadable) == {"0.png", "1.png"}
