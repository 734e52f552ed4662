import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_tensor

from convattn.classification.evaluate import evaluate, wilson_interval
from convattn.data.loader import Batch, Samples, evaluation_loader
from convattn.data.sources import open_evaluation
from tiny_runs import write_pictures


class Logits(nn.Module):
    """Hands its input on: an 'image' is its own logits."""

    def forward(self, x):
        return x


def batches(logits, labels, size=2, unreadable=None):
    logits, labels = torch.tensor(logits), torch.tensor(labels)
    paths = [f"{index}.png" for index in range(len(labels))]
    cut = range(0, len(labels), size)
    made = [Batch(logits[i : i + size], labels[i : i + size], paths[i : i + size]) for i in cut]
    return [*made, Batch(torch.empty(0), torch.empty(0), [], unreadable or {})]


def test_figures_of_a_case_worked_by_hand():
    logits = [[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 1.0, 2.0]]
    result = evaluate(Logits(), batches(logits, [0, 1, 1], unreadable={"x.png": "x.png: the file is empty"}))
    assert result.top1 == pytest.approx(200 / 3)
    assert (result.top5, result.topk_size) == (100, 3)
    assert result.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert result.labels.tolist() == [0, 1, 1]
    assert result.paths == ["0.png", "1.png", "2.png"]
    assert result.unreadable == {"x.png": "x.png: the file is empty"}
    losses = [
        math.log(math.e**2 + 1 + math.e) - 2,
        math.log(2 + math.e**3) - 3,
        math.log(1 + math.e + math.e**2) - 1,
    ]
    assert result.loss == pytest.approx(sum(losses) / 3)
    assert torch.allclose(result.probabilities, torch.tensor(logits).softmax(1))
    assert result.predictions.tolist() == [0, 1, 2]
    assert 0 < result.images_per_second < result.model_images_per_second


def test_top_5_counts_the_five_most_probable_of_many():
    logits = [[float(-index) for index in range(7)]] * 7
    result = evaluate(Logits(), batches(logits, list(range(7))))
    assert result.topk_size == 5
    assert result.top5 == pytest.approx(500 / 7)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_in_its_mode(training):
    model = nn.Dropout(0.9).train(training)
    result = evaluate(model, batches([[5.0, 0.0]], [0]))
    assert model.training is training
    assert result.probabilities[0, 0] == pytest.approx(1 / (1 + math.exp(-5)))


def test_progress_counts_every_image():
    seen = []
    evaluate(Logits(), batches([[1.0, 0.0]] * 3, [0, 0, 0], unreadable={"x": "y"}), on_batch=seen.append)
    assert seen == [2, 1, 1]


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_model_is_an_error(label):
    with pytest.raises(ValueError, match=rf"label {label} does not exist in a model of 2 classes"):
        evaluate(Logits(), batches([[1.0, 0.0]], [label]))


def test_each_class_that_has_images_has_its_share_and_what_it_is_taken_for():
    predicted, labels = [0, 0, 2, 1, 1, 3, 3, 1], [0, 0, 0, 1, 3, 3, 3, 3]
    logits = torch.eye(5)[predicted].tolist()
    found = [
        (row.label, row.images, row.right, row.confused_with, row.confused, row.top1)
        for row in evaluate(Logits(), batches(logits, labels)).per_class()
    ]
    assert found == [(0, 3, 2, 2, 1, pytest.approx(200 / 3)), (1, 1, 1, None, 0, 100.0), (3, 4, 2, 1, 2, 50.0)]


class MeanColour(nn.Module):
    """Logits of an image from its pixels alone, whatever shares the batch."""

    def forward(self, x):
        red, green, blue = x.double().mean(dim=(2, 3)).unbind(1)
        return torch.stack([7 * red + green, 5 * blue - green], dim=1)


@pytest.mark.parametrize("unreadable", [[], ["bright/000.png", "bright/003.png", "dark/002.png", "dark/003.png"]])
@pytest.mark.parametrize("processes", [1, 2, 3, 12])
def test_processes_that_share_the_images_find_what_one_finds(tmp_path, processes, unreadable):
    folder = write_pictures(tmp_path, val=5) / "val"
    for name in unreadable:
        (folder / name).write_bytes(b"")
    samples = Samples(open_evaluation(folder), to_tensor)
    whole = evaluate(MeanColour(), evaluation_loader(samples, 3))
    results = in_turn(processes, lambda rank: evaluation_loader(samples, 3, rank=rank, replicas=processes))
    for joined in results:
        figures = ("top1", "top5", "topk_size", "loss", "calibration_error", "paths", "unreadable")
        assert {name: getattr(joined, name) for name in figures} == {name: getattr(whole, name) for name in figures}
        for name in ("labels", "predictions", "probabilities", "confusion"):
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name


def in_turn(processes, loader_of):
    """Evaluations that share their images, each in a thread of its own that waits for the others to gather."""
    shares, everyone = [[]] * processes, threading.Barrier(processes, timeout=60)

    def one(rank):
        def gather(share):
            shares[rank] = share
            everyone.wait()
            return [entry for share in shares for entry in share]

        return evaluate(MeanColour(), loader_of(rank), gather=gather)

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, range(processes)))


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match=r"nothing to evaluate: the data set has no readable image"):
        evaluate(Logits(), [Batch(torch.empty(0), torch.empty(0), [], {"a": "b"})])


def test_wilsons_interval_is_that_of_the_textbook():
    low, high = wilson_interval(81.0, 263)
    share, n, z2 = 0.81, 263, 1.959964**2
    for bound in (low / 100, high / 100):  # the bounds solve (share - p)² = z² p (1 - p) / n
        assert (share - bound) ** 2 == pytest.approx(z2 * bound * (1 - bound) / n, rel=1e-6)
    assert low < 81 < high
    assert wilson_interval(100.0, 10)[1] == pytest.approx(100.0)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0)


def test_wilsons_interval_agrees_with_torchs_normal_quantile():
    assert torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.975)).item() == pytest.approx(1.959964, abs=1e-5)
