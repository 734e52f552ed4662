import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from convattn.classification.calibration import calibration_error


def naive(probabilities, labels, bins):
    """The definition, one bin and one image at a time."""
    total = 0.0
    for lower in range(bins):
        inside = []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            confidence = max(row)
            if lower / bins < confidence <= (lower + 1) / bins:
                inside.append((confidence, row.index(confidence) == label))
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            mean = sum(confidence for confidence, _ in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - mean)
    return total


def error_of(probabilities, labels, bins=15):
    confidences, predicted = probabilities.double().max(dim=1)
    return calibration_error(confidences, predicted == labels, bins)


def draws(count, classes, sharpness=2.0):
    generator = torch.Generator().manual_seed(count)
    probabilities = (sharpness * torch.randn(count, classes, generator=generator)).softmax(dim=1)
    return probabilities, torch.randint(classes, (count,), generator=generator)


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
@pytest.mark.parametrize(("count", "classes"), [(1, 3), (40, 2), (300, 10)])
def test_it_is_the_definition(bins, count, classes):
    probabilities, labels = draws(count, classes)
    assert error_of(probabilities, labels, bins) == pytest.approx(naive(probabilities, labels, bins))


def test_it_agrees_with_torchmetrics():
    probabilities, labels = draws(500, 7)
    want = multiclass_calibration_error(probabilities, labels, num_classes=7, n_bins=15).item()
    assert error_of(probabilities, labels) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("right", "error"), [(10, 0.2), (8, 0.0), (5, 0.3), (0, 0.8)])
def test_of_images_that_are_all_equally_sure_it_is_confidence_less_accuracy(right, error):
    probabilities = torch.tensor([[0.8, 0.2]]).expand(10, 2)
    labels = torch.tensor([0] * right + [1] * (10 - right))
    assert error_of(probabilities, labels) == pytest.approx(error, abs=1e-6)


def test_errors_of_one_sign_in_one_bin_do_not_hide_those_of_the_other_in_another():
    probabilities = torch.tensor([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])  # 0.5 where 0.9 is said, 1 where 0.6 is said
    assert error_of(probabilities, labels) == pytest.approx((0.4 + 0.4) / 2, abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]], dtype=torch.float64)
    # In one bin of (0, 0.5] and one of (0.5, 1]: |1 - 0.5| and |0 - 0.75|; together they would give |1 - 1.25|.
    assert error_of(probabilities, torch.tensor([0, 1]), bins=2) == pytest.approx((0.5 + 0.75) / 2)
