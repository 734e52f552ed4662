import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.classification.distillation import distillation_loss, js_divergence
from convattn.classification.options import ClassificationOptions, DistillationConfig
from convattn.classification.task import Classification, balanced_weights
from convattn.evaluation import measure
from convattn.task import Batch


def task_of(num_classes=3, class_weights=None, teacher=None, **options):
    """A task as its options have it."""
    return Classification(num_classes, ClassificationOptions(**options), class_weights=class_weights, teacher=teacher)


def loss_of(task, model, batch):
    """What a step is taken on."""
    return sum(task.losses(model, batch).values())


@pytest.fixture
def batch():
    return Batch(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]), list("abcd"))


@pytest.fixture
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def test_without_options_the_loss_is_cross_entropy(model, batch):
    assert torch.allclose(loss_of(task_of(), model, batch), F.cross_entropy(model(batch.images), batch.targets))


def test_label_smoothing_spreads_the_target(model, batch):
    log_p = model(batch.images).log_softmax(1)
    target = F.one_hot(batch.targets, 3) * 0.7 + 0.1
    expected = -(target * log_p).sum(1).mean()
    assert torch.allclose(loss_of(task_of(label_smoothing=0.3), model, batch), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_changes_images_and_targets_alike(model, batch, kind):
    np.random.seed(0)
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    before = batch.images.clone()
    loss = loss_of(task_of(label_smoothing=0.1, **{kind: 1.0}), model, batch)
    assert torch.equal(batch.images, before)
    mixed, flipped = seen[0], before.flip(0)
    if kind == "mixup":
        share = ((mixed - flipped) / (before - flipped)).median()
        assert torch.allclose(mixed, share * before + (1 - share) * flipped, atol=1e-5)
    else:
        assert ((mixed == before) | (mixed == flipped)).all()
        share = (mixed == before).float().mean()
    target = share * F.one_hot(batch.targets, 3) + (1 - share) * F.one_hot(batch.targets.flip(0), 3)
    target = 0.9 * target + 0.1 / 3
    assert torch.allclose(loss, -(target * model(mixed).log_softmax(1)).sum(1).mean(), atol=1e-5)


def test_mixing_stops_after_its_epochs(model, batch):
    task = task_of(mixup=1.0, mix_epochs=2)
    plain = F.cross_entropy(model(batch.images), batch.targets)
    task.start_epoch(1)
    np.random.seed(0)
    assert not torch.allclose(loss_of(task, model, batch), plain)
    task.start_epoch(2)
    assert torch.allclose(loss_of(task, model, batch), plain)


def test_a_probability_of_0_mixes_nothing(model, batch):
    task = task_of(mixup=1.0, mix_probability=0.0)
    assert torch.allclose(loss_of(task, model, batch), loss_of(task_of(), model, batch))


def test_metrics_are_those_of_the_evaluation(model, batch):
    meter = task_of().meter()
    measure(model, [batch], meter)
    found = meter.result(meter.parts())
    assert list(found) == ["val_loss", "top1", "top5"]
    assert found["top5"] == 100
    assert found["val_loss"] == pytest.approx(F.cross_entropy(model(batch.images), batch.targets).item())


def teaching(loss="soft", temperature=1.0, weight=1.0):
    return DistillationConfig("teacher", loss, temperature, weight)


@pytest.fixture
def teacher():
    made = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 3))
    made.num_classes = 3
    return made


def softmax(logits, temperature=1.0):
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def js_of(p, q):
    return sum(a / 2 * math.log(2 * a / (a + b)) + b / 2 * math.log(2 * b / (a + b)) for a, b in zip(p, q, strict=True))


STUDENT, TEACHER = (0.3, -1.2, 2.0), (1.5, 0.1, -0.4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (teaching("js"), js_of(softmax(STUDENT), softmax(TEACHER))),
        (teaching("hard"), -math.log(softmax(STUDENT)[0])),
        (
            teaching("soft", 3.0),
            -9 * sum(p * math.log(q) for p, q in zip(softmax(TEACHER, 3), softmax(STUDENT, 3), strict=True)),
        ),
    ],
    ids=["js", "hard", "soft"],
)
def test_a_teachers_loss_is_its_formula(options, expected):
    student, taught = (torch.tensor([row, (0.0, 0.0, 0.0)], dtype=torch.float64) for row in (STUDENT, TEACHER))
    assert distillation_loss(student, taught, options)[0].item() == pytest.approx(expected, rel=1e-12)


def test_js_is_symmetric_0_for_the_same_and_at_most_log_2():
    left, right = torch.randn(5, 7), torch.randn(5, 7)
    assert torch.allclose(js_divergence(left, right), js_divergence(right, left), atol=1e-6)
    assert torch.allclose(js_divergence(left, left + 3), torch.zeros(5), atol=1e-6)
    certain = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    apart = js_divergence(certain, torch.tensor([[0.0, 1000.0]]))
    apart.sum().backward()
    assert apart.item() == pytest.approx(math.log(2))
    assert torch.isfinite(certain.grad).all()  # though a probability is 0


@pytest.mark.parametrize("loss", ["js", "soft", "hard"])
def test_only_the_student_learns_from_the_teacher(model, teacher, batch, loss):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    task = task_of(teacher=teacher, distillation=teaching(loss))
    found = loss_of(task, model, batch)
    expected = distillation_loss(model(batch.images), teacher(batch.images), task.options.distillation).mean()
    assert torch.allclose(found, expected)
    found.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_labels_and_teacher_share_the_loss(model, teacher, batch):
    logits = model(batch.images)
    task = task_of(label_smoothing=0.2, teacher=teacher, distillation=teaching("js", weight=0.3))
    from_teacher = js_divergence(logits, teacher(batch.images)).mean()
    from_labels = F.cross_entropy(logits, batch.targets, label_smoothing=0.2)
    assert torch.allclose(loss_of(task, model, batch), 0.3 * from_teacher + 0.7 * from_labels)


@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_an_image_without_a_label_learns_from_the_teacher_alone(model, teacher, weight):
    labels = torch.tensor([1, -1, -1, 2])
    batch = Batch(torch.rand(4, 3, 8, 8), labels, list("abcd"))
    smoothing = 0.1 if weight < 1 else 0.0
    task = task_of(label_smoothing=smoothing, teacher=teacher, distillation=teaching(weight=weight))
    logits = model(batch.images)
    taught = distillation_loss(logits, teacher(batch.images), task.options.distillation)
    labelled = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="none")
    expected = torch.where(labels < 0, taught, weight * taught + (1 - weight) * labelled).mean()
    assert torch.allclose(loss_of(task, model, batch), expected)


def test_a_mixture_goes_through_the_teacher_and_counts_as_far_as_it_is_labelled(model, teacher):
    np.random.seed(1)
    batch = Batch(torch.rand(2, 3, 8, 8), torch.tensor([1, -1]), list("ab"))
    task = task_of(label_smoothing=0.3, mixup=1.0, teacher=teacher, distillation=teaching(weight=0.4))
    seen = []
    for network in (model, teacher):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    found = loss_of(task, model, batch)
    mixed, of_teacher = seen
    assert torch.equal(mixed, of_teacher)
    left, right = batch.images
    share = ((mixed[0] - right) / (left - right)).median()
    shares = torch.stack([share, 1 - share])  # of the labelled image in each mixture
    logits = model(mixed)
    taught = distillation_loss(logits, teacher(mixed), task.options.distillation)
    labelled = F.cross_entropy(logits, torch.tensor([1, 1]), label_smoothing=0.3, reduction="none")
    expected = ((1 - 0.6 * shares) * taught + 0.6 * shares * labelled).mean()
    assert torch.allclose(found, expected, atol=1e-5)


def test_under_autocast_both_networks_run_in_lower_precision_and_the_loss_does_not(model, teacher, batch):
    seen = []
    for network in (model, teacher):
        network.register_forward_hook(lambda module, inputs, output: seen.append(output))
    task = task_of(label_smoothing=0.1, teacher=teacher, distillation=teaching("js", weight=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(task, model, batch)
    assert [output.dtype for output in seen] == [torch.bfloat16] * 2
    student, taught = (output.float() for output in seen)
    expected = js_divergence(student, taught).mean() + F.cross_entropy(student, batch.targets, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, expected / 2, rtol=1e-6)


def test_an_image_without_a_label_needs_a_teacher(model):
    for options in ({}, {"mixup": 1.0}):
        with pytest.raises(RuntimeError, match=r"Class values must be non-negative|index -1 is out of bounds"):
            loss_of(task_of(**options), model, Batch(torch.rand(2, 3, 8, 8), torch.tensor([0, -1]), list("ab")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_classes=5), r"the teacher has 3 classes and the data 5; take a teacher trained on the same classes"),
        (dict(label_smoothing=0.1), r"label smoothing and class weights have no effect with distillation.weight 1"),
        (dict(class_weights=torch.ones(3)), r"label smoothing and class weights have no effect"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(teacher, fields, message):
    with pytest.raises(ValueError, match=message):
        task_of(**{"teacher": teacher, "distillation": teaching(), **fields})


def test_weights_of_classes_multiply_their_part_of_the_target(model, batch):
    np.random.seed(3)
    weights = torch.tensor([0.5, 2.0, 3.0])
    log_p = model(batch.images).log_softmax(1)
    plain = loss_of(task_of(class_weights=weights), model, batch)
    assert torch.allclose(plain, -(weights[batch.targets] * log_p[range(4), batch.targets]).mean())
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    task = task_of(mixup=1.0, label_smoothing=0.2, class_weights=weights)
    found = loss_of(task, model, batch)
    share = ((seen[0] - batch.images.flip(0)) / (batch.images - batch.images.flip(0))).median()
    mixed = share * F.one_hot(batch.targets, 3) + (1 - share) * F.one_hot(batch.targets.flip(0), 3)
    target = 0.8 * mixed + 0.2 / 3
    assert torch.allclose(found, -(weights * target * model(seen[0]).log_softmax(1)).sum(1).mean(), atol=1e-5)


def test_balanced_weights_make_every_class_count_the_same():
    labels = [0] * 6 + [1] * 3 + [3] * 1 + [-1] * 5
    weights = balanced_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 24, 10 / 12, 0, 10 / 4])
    assert sum(weights[label] for label in labels if label >= 0).item() == pytest.approx(
        7.5
    )  # 10 images, 3 of 4 classes
    equal = balanced_weights([0, 1, 2] * 4, 3)
    assert equal.tolist() == [1, 1, 1]
