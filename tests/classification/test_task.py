import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.classification.task import Classification
from convattn.data.loader import Batch


@pytest.fixture
def batch():
    return Batch(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), list("abcd"))


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def test_without_options_the_loss_is_cross_entropy(model, batch):
    assert torch.equal(Classification(3).loss(model, batch), F.cross_entropy(model(batch.images), batch.labels))


def test_label_smoothing_spreads_the_target(model, batch):
    log_p = model(batch.images).log_softmax(1)
    target = F.one_hot(batch.labels, 3) * 0.7 + 0.1
    expected = -(target * log_p).sum(1).mean()
    assert torch.allclose(Classification(3, label_smoothing=0.3).loss(model, batch), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_changes_images_and_targets_alike(model, batch, kind):
    np.random.seed(0)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    before = batch.images.clone()
    loss = Classification(3, label_smoothing=0.1, **{kind: 1.0}).loss(model, batch)
    assert torch.equal(batch.images, before)
    mixed, flipped = seen[0], before.flip(0)
    if kind == "mixup":
        share = ((mixed - flipped) / (before - flipped)).median()
        assert torch.allclose(mixed, share * before + (1 - share) * flipped, atol=1e-5)
    else:
        assert ((mixed == before) | (mixed == flipped)).all()
        share = (mixed == before).float().mean()
    target = share * F.one_hot(batch.labels, 3) + (1 - share) * F.one_hot(batch.labels.flip(0), 3)
    target = 0.9 * target + 0.1 / 3
    assert torch.allclose(loss, -(target * model(mixed).log_softmax(1)).sum(1).mean(), atol=1e-5)


def test_mixing_stops_after_its_epochs(model, batch):
    task = Classification(3, mixup=1.0, mix_epochs=2)
    plain = F.cross_entropy(model(batch.images), batch.labels)
    task.start_epoch(1)
    np.random.seed(0)
    assert not torch.allclose(task.loss(model, batch), plain)
    task.start_epoch(2)
    assert torch.equal(task.loss(model, batch), plain)


def test_a_probability_of_0_mixes_nothing(model, batch):
    task = Classification(3, mixup=1.0, mix_probability=0.0)
    assert torch.allclose(task.loss(model, batch), Classification(3).loss(model, batch))


def test_metrics_are_those_of_the_evaluation(model, batch):
    found = Classification(3).metrics(model, [batch], torch.device("cpu"))
    assert list(found) == ["val_loss", "top1", "top5"]
    assert found["top5"] == 100
    assert found["val_loss"] == pytest.approx(F.cross_entropy(model(batch.images), batch.labels).item())
