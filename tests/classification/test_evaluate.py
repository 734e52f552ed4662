import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from convattn.classification.calibration import calibration_error
from convattn.classification.evaluate import Ranking, evaluate, wilson_interval
from convattn.classification.scores import Scores, widest_float
from convattn.evaluation import measure
from convattn.task import Batch


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


def score(model, made, join=lambda parts: parts, **how):
    """The figures of training's validation."""
    scores = Scores()
    measure(model, made, scores, **how)
    return scores.result(join(scores.parts()))


def test_figures_of_a_case_worked_by_hand():
    logits = [[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 1.0, 2.0]]
    result = evaluate(Logits(), batches(logits, [0, 1, 1], unreadable={"x.png": "x.png: the file is empty"}))
    assert result.top1 == pytest.approx(200 / 3)
    assert (result.top5, result.topk_size) == (100, 3)
    assert result.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert result.labels.tolist() == [0, 1, 1]
    assert result.paths == ["0.png", "1.png", "2.png"]
    losses = [
        math.log(math.e**2 + 1 + math.e) - 2,
        math.log(2 + math.e**3) - 3,
        math.log(1 + math.e + math.e**2) - 1,
    ]
    assert result.loss == pytest.approx(sum(losses) / 3)
    assert torch.allclose(result.probabilities, torch.tensor(logits).softmax(1).sort(descending=True).values)
    assert result.ranked[0].tolist() == [0, 2, 1]
    assert (result.num_classes, result.confidences.tolist()) == (3, result.probabilities[:, 0].tolist())
    assert result.predictions.tolist() == [0, 1, 2]


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


def old_figures(logits, labels):
    """As they were made of all logits at once."""
    probabilities = logits.softmax(dim=1)
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = ranked == labels[:, None]
    return dict(
        top1=100 * right[:, 0].double().mean().item(),
        top5=100 * right.any(dim=1).double().mean().item(),
        loss=F.cross_entropy(logits.double(), labels).item(),
        calibration_error=100 * calibration_error(probabilities.amax(1), right[:, 0]),
    )


@pytest.mark.parametrize(("count", "classes"), [(60, 3), (37, 40)])
def test_figures_are_those_of_all_logits_at_once(count, classes):
    logits = 3 * torch.randn(count, classes)
    labels = torch.where(torch.rand(count) < 0.5, logits.argmax(dim=1), torch.randint(classes, (count,)))
    made = batches(logits.tolist(), labels.tolist(), size=7)
    result, wanted = evaluate(Logits(), made), old_figures(logits, labels)
    for name in ("top1", "top5"):
        assert getattr(result, name) == wanted[name]
    assert result.calibration_error == pytest.approx(wanted["calibration_error"], abs=1e-12)
    assert result.loss == pytest.approx(wanted["loss"], rel=1e-6)
    counted = score(Logits(), made)
    assert (counted["top1"], counted["top5"]) == (result.top1, result.top5)
    assert counted["val_loss"] == pytest.approx(result.loss, rel=1e-12)


class Many(nn.Module):
    """Logits of as many classes as ImageNet-22k has."""

    def forward(self, x):
        return x.flatten(1)[:, :1] * torch.ones(21_841)


def test_what_is_kept_of_an_image_does_not_grow_with_the_classes():
    images = [Batch(torch.ones(2, 3, 1, 1), torch.zeros(2, dtype=torch.int64), ["a", "b"])] * 3
    result = evaluate(Many(), images)
    assert result.num_classes == 21_841
    kept = [value for value in vars(result).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() for value in kept) == 6 * (1 + 5 + 5)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_counting_waits_for_the_device_at_the_end_alone(monkeypatch):
    lists, whole = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(self.shape) or whole(self))
    made = batches([[1.0, 0.0]] * 6, [0, 1, 0, 0, 1, 0])
    with Waits() as waits:
        found = score(Logits(), made)
    assert (waits.count, lists) == (0, [(4,)])
    assert found["top1"] == pytest.approx(400 / 6)


class NoFloat64(TorchDispatchMode):
    """A device that has none, as Apple's GPUs, up to where figures are copied from it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        assert not (isinstance(result, torch.Tensor) and result.dtype == torch.float64), func
        return result


def test_a_device_without_float64_counts_alike(monkeypatch):
    assert widest_float(torch.device("mps")) == torch.float32
    assert widest_float(torch.device("cuda")) == widest_float(torch.device("cpu")) == torch.float64
    made = batches([[1.0, 0.0]] * 5, [0, 1, 0, 0, 1])
    expected = score(Logits(), made), evaluate(Logits(), made)
    for module in ("scores", "evaluate"):
        monkeypatch.setattr(f"convattn.classification.{module}.widest_float", lambda device: torch.float32)
    with NoFloat64():
        counted = score(Logits(), made)
    copied = torch.Tensor.cpu
    mode = NoFloat64()
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: [copied(self), mode.__exit__(None, None, None)][0])
    with monkeypatch.context() as patch:
        patch.setattr(Ranking, "update", lambda self, *args, add=Ranking.update: [mode.__enter__(), add(self, *args)])
        found = evaluate(Logits(), made)
    assert counted == pytest.approx(expected[0], rel=1e-6)
    assert (found.top1, found.top5) == (expected[1].top1, expected[1].top5)
    assert found.loss == pytest.approx(expected[1].loss, rel=1e-6)


def test_processes_sum_their_counts():
    made = batches([[1.0, 0.0]] * 5, [0, 1, 0, 0, 1])
    sent = []
    for share in (made[:1], made[1:], []):
        score(Logits(), share, lambda parts: sent.append(parts["sums"]) or parts)
    joined = score(Logits(), made[:1], lambda parts: {"sums": torch.stack(sent).sum(0)})
    assert joined == pytest.approx(score(Logits(), made), rel=1e-12)


@pytest.mark.parametrize("run", [evaluate, score])
def test_images_lie_in_memory_as_the_weights_do(run):
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = [Batch(torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), ["a", "b"])]
    for layout in (torch.contiguous_format, torch.channels_last):
        run(model, images, memory_format=layout)
        assert seen.pop().is_contiguous(memory_format=layout)


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
