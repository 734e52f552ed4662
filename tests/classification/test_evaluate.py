import math

import pytest
import torch
from torch import nn

from convattn.classification.evaluate import evaluate, wilson_interval
from convattn.data.loader import Batch


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


def test_a_label_outside_the_model_is_an_error():
    with pytest.raises(ValueError, match=r"label 4 does not exist in a model of 2 classes"):
        evaluate(Logits(), batches([[1.0, 0.0]], [4]))


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
