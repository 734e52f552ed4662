"""Cross entropy of pixels in cases worked by hand; the golden files are in test_golden_networks."""

import math

import pytest
import torch
import torch.nn.functional as F

from convattn.segmentation.loss import pixel_accuracy, pixel_losses

LABELS = torch.tensor([[[0, 1], [255, 255]]])


def logits_of(probability, shape=(1, 2, 2, 2)):
    """Class 0 with this probability at every pixel."""
    logits = torch.zeros(shape, dtype=torch.float64)
    logits[:, 0] = math.log(probability / (1 - probability))
    return logits


def test_ignored_pixels_add_nothing_and_count_in_the_mean_over_all():
    logits = logits_of(0.8)
    total = -math.log(0.8) - math.log(0.2)
    assert pixel_losses({"decode": logits}, LABELS)["decode.loss_ce"].item() == pytest.approx(total / 4, rel=1e-12)
    valid = pixel_losses({"decode": logits}, LABELS, mean="valid")["decode.loss_ce"].item()
    assert valid == pytest.approx(total / (2 + 2**-23), rel=1e-12)


def test_the_second_head_counts_by_its_weight():
    logits = logits_of(0.6)
    losses = pixel_losses({"decode": logits, "auxiliary": logits}, LABELS, auxiliary_weight=0.25)
    assert [*losses] == ["decode.loss_ce", "aux.loss_ce"]
    assert losses["aux.loss_ce"] == 0.25 * losses["decode.loss_ce"]


@pytest.mark.parametrize("mean", ["all", "valid"])
def test_labels_that_all_are_ignored_give_zero_and_zero_gradients(mean):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_losses({"decode": logits}, torch.full((2, 8, 8), 255), mean=mean)["decode.loss_ce"]
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_logits_are_resized_to_the_labels():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 13, 17))
    large = F.interpolate(logits, size=(13, 17), mode="bilinear", align_corners=False)
    want = F.cross_entropy(large, labels)
    assert torch.allclose(pixel_losses({"decode": logits}, labels)["decode.loss_ce"], want)
    assert pixel_accuracy(logits, labels).item() == pytest.approx(
        100 * (large.argmax(1) == labels).double().mean().item()
    )


def test_the_guard_against_no_pixels_is_exact_where_few_count():
    labels = torch.tensor([[[0, 0, 0, 255]]])  # in float32, 3 and the guard are 3
    got = pixel_accuracy(logits_of(0.8, (1, 2, 1, 4)) * torch.tensor([1.0, 1.0, -1.0, 1.0]), labels)
    assert got.item() == pytest.approx(100 * (2 + 2**-23) / (3 + 2**-23), rel=1e-12)


def test_all_is_computed_in_float32_under_autocast():
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(3, (1, 8, 8))
    narrow = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = pixel_losses({"decode": narrow}, labels)["decode.loss_ce"]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, pixel_losses({"decode": narrow.float()}, labels)["decode.loss_ce"])


def test_accuracy_leaves_out_what_is_ignored():
    assert pixel_accuracy(logits_of(0.8), LABELS).item() == pytest.approx(50, abs=1e-5)
    assert pixel_accuracy(logits_of(0.8), torch.full((1, 2, 2), 255)).item() == 100
