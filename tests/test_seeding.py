import io
import random

import numpy as np
import pytest
import torch

from convattn.seeding import random_state, restore_random_state, seed_everything


def draw():
    return random.gauss(0, 1), np.random.normal(), torch.randn(()).item()


def test_a_seed_starts_every_generator():
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_state_survives_a_file_that_is_read_safely():
    draw()  # leaves half a pair of normals cached in Python's and numpy's generators
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    expected = draw(), draw()
    buffer.seek(0)
    restore_random_state(torch.load(buffer, weights_only=True))
    assert (draw(), draw()) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_state_of_a_gpu_is_restored():
    torch.randn(1, device="cuda")
    state = random_state()
    expected = torch.randn(4, device="cuda")
    restore_random_state(state)
    assert torch.equal(torch.randn(4, device="cuda"), expected)


def test_the_states_of_more_gpus_than_there_are_now_are_restored(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(state.item()))
    kept = {**random_state(gpus=False), "cuda": [torch.tensor(gpu) for gpu in range(4)]}  # of an older checkpoint
    for gpu, state in ((0, 0), (3, 3), (5, 3)):
        monkeypatch.setattr(torch.cuda, "current_device", lambda gpu=gpu: gpu)
        assert restore_random_state(kept)
        assert restored.pop() == state
    assert not restore_random_state({**kept, "cuda": []})  # taken without a GPU
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not restore_random_state(kept)
    assert restored == []
