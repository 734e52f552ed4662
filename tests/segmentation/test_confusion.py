import math

import numpy as np
import pytest
import torch

from convattn.segmentation.confusion import confusion, scores
from segmentation_golden import load_golden

NAMES = {"iou": "IoU", "acc": "Acc", "dice": "Dice", "precision": "Precision"}


@pytest.fixture(scope="module")
def golden():
    return load_golden("metrics")


@pytest.mark.parametrize(("prefix", "labels"), [("", "label"), ("zero_", "reduced")])
def test_figures_are_the_references(golden, prefix, labels):
    classes = golden.meta["classes"]
    if labels == "reduced":  # what was 0 counts for nothing, and class 1 is the first
        raw = golden.given("raw_label").to(torch.uint8)
        truth = torch.where(raw == 0, torch.tensor(255, dtype=torch.uint8), raw - 1)
        truth = torch.where(truth == 254, torch.tensor(255, dtype=torch.uint8), truth)
        assert golden.error("reduced_label", truth) == 0
    else:
        truth = golden.given("label")
    counts = sum(confusion(p, t, classes) for p, t in zip(golden.given("pred"), truth, strict=True))
    if not prefix:
        assert golden.error("confusion", counts) == 0
    found = scores(counts)
    for ours, theirs in NAMES.items():
        assert golden.error(prefix + theirs, getattr(found, ours) / 100) < 1e-12, theirs
    assert golden.error(f"{prefix}aAcc", found.aacc / 100) < 1e-12
    for ours, theirs in (("miou", "mIoU"), ("macc", "mAcc"), ("mdice", "mDice")):
        assert golden.error(prefix + theirs, getattr(found, ours) / 100) < 1e-12, theirs


def test_a_mean_over_images_is_another_number(golden):
    classes = golden.meta["classes"]
    pairs = [*zip(golden.given("pred"), golden.given("label"), strict=True)]
    each = [scores(confusion(p, t, classes)).miou for p, t in pairs]
    assert golden.error("per_image_mIoU_mean", np.mean(each) / 100) < 1e-12
    assert abs(np.mean(each) - scores(sum(confusion(p, t, classes) for p, t in pairs)).miou) > 0.5


def test_the_table_is_counted_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    predicted, labels = (torch.randint(0, 4, (2, 7, 5), generator=generator) for _ in range(2))
    labels[0, :2] = 255
    naive = torch.zeros(4, 4, dtype=torch.int64)
    for p, t in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if t != 255:
            naive[t, p] += 1
    assert torch.equal(confusion(predicted.to(torch.uint8), labels.to(torch.uint8), 4), naive)


def test_torchmetrics_agrees():
    torchmetrics = pytest.importorskip("torchmetrics")
    generator = torch.Generator().manual_seed(1)
    predicted, labels = (torch.randint(0, 5, (3, 40, 30), generator=generator) for _ in range(2))
    labels[:, :4] = 255
    labels[labels == 3] = 2  # a class that is predicted and never labelled
    theirs = torchmetrics.JaccardIndex(task="multiclass", num_classes=5, ignore_index=255, average="macro")
    assert scores(confusion(predicted, labels, 5)).miou == pytest.approx(
        100 * theirs(predicted, labels).item(), rel=1e-5
    )


def test_a_class_that_is_only_predicted_counts_as_nothing_found_and_an_absent_one_not_at_all():
    labels, predicted = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1])
    found = scores(confusion(predicted, labels, 3))
    assert found.iou.tolist()[:2] == [75.0, 0.0]
    assert math.isnan(found.iou[2])
    assert found.miou == 37.5
    assert found.macc == 75.0  # class 1 has no pixel that could have been found
    assert found.aacc == 75.0


def test_without_a_labelled_pixel_nothing_is_a_number():
    found = scores(confusion(torch.zeros(4), torch.full((4,), 255), 2))
    assert all(math.isnan(value) for value in (found.miou, found.macc, found.mdice, found.aacc))
