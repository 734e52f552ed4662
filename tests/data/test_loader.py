import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from convattn.data.images import ImageError
from convattn.data.loader import Samples, evaluation_loader, start_epoch, training_loader


class Numbers:
    """Images that show their index; those in `broken` cannot be read."""

    classes = ("even", "odd")

    def __init__(self, count=12, broken=()):
        self.labels = [index % 2 for index in range(count)]
        self.paths = [f"{index}.png" for index in range(count)]
        self.broken = broken

    def __len__(self):
        return len(self.labels)

    def read(self, index):
        if index in self.broken:
            raise ImageError(f"{index}.png: the file is empty")
        return Image.new("L", (1, 1), index)


def noisy(image):
    """One draw of each generator, and the image."""
    return torch.tensor([random.random(), np.random.rand(), torch.rand(()), float(pil_to_tensor(image))])


def epoch(loader, number):
    start_epoch(loader, number)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_random_depends_on_seed_epoch_and_index_alone(workers):
    loader = training_loader(Samples(Numbers(), noisy, seed=3), 4, workers=workers, seed=3)
    first, second = epoch(loader, 0), epoch(loader, 1)
    alone = Samples(Numbers(), noisy, seed=3)
    for batch in first:
        for image, path in zip(batch.images, batch.paths, strict=True):
            assert torch.equal(image, alone[int(path[:-4])].image)
    alone.epoch = 1
    assert torch.equal(second[0].images[0], alone[int(second[0].paths[0][:-4])].image)
    assert [b.paths for b in first] != [b.paths for b in second]
    assert sorted(path for b in second for path in b.paths) == sorted(Numbers().paths)


def test_loading_leaves_the_random_states_of_the_process_alone():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = noisy(Image.new("L", (1, 1)))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    epoch(training_loader(Samples(Numbers(), noisy, seed=0), 4), 0)
    list(evaluation_loader(Samples(Numbers(), pil_to_tensor), 4))
    assert torch.equal(noisy(Image.new("L", (1, 1))), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_of_a_loader_is_its_place_in_the_epoch(workers):
    def fresh():
        return training_loader(Samples(Numbers(20), noisy, seed=0), 4, workers=workers)

    whole = epoch(fresh(), 2)
    stopped = fresh()
    start_epoch(stopped, 2)
    batches = iter(stopped)
    for _ in range(2):
        next(batches)
    state = stopped.state_dict()
    resumed = fresh()
    start_epoch(resumed, 2)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert [b.paths for b in rest] == [b.paths for b in whole[2:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[2:], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_in_training_another_sample_of_the_batch_takes_an_unreadable_ones_place(workers):
    loader = training_loader(Samples(Numbers(8, broken=(3,)), pil_to_tensor), 4, workers=workers)
    batches = epoch(loader, 0)
    assert [len(batch) for batch in batches] == [4, 4]
    (batch,) = (batch for batch in batches if batch.unreadable)
    assert batch.unreadable == {"3.png": "3.png: the file is empty"}
    assert "3.png" not in batch.paths
    assert batch.paths[3] == batch.paths[0]
    for image, label, path in zip(batch.images, batch.labels, batch.paths, strict=True):
        assert (int(image), int(label)) == (int(path[:-4]), int(path[:-4]) % 2)


def test_in_evaluation_an_unreadable_image_is_left_out_and_order_is_kept():
    batches = list(evaluation_loader(Samples(Numbers(5, broken=(1,)), pil_to_tensor), 2))
    assert [b.paths for b in batches] == [["0.png"], ["2.png", "3.png"], ["4.png"]]
    assert batches[0].unreadable == {"1.png": "1.png: the file is empty"}


def test_a_batch_without_a_readable_image_is_empty():
    (batch,) = epoch(training_loader(Samples(Numbers(2, broken=(0, 1)), pil_to_tensor), 2), 0)
    assert len(batch) == 0
    assert set(batch.unreadable) == {"0.png", "1.png"}
