"""Integrated gradients and occlusion, on models whose answer is known."""

import pytest
import torch
from torch import nn

from convattn.explain.integrated_gradients import integrated_gradients
from convattn.explain.occlusion import occlusion
from toys import build_toy


def linear(classes=2, side=4):
    """Logits Σ w x of images (B, 1, side, side)."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, classes))
    torch.manual_seed(5)
    nn.init.normal_(model[1].weight)
    return model, model[1].weight.detach().view(classes, side, side)


def test_a_linear_model_adds_what_its_weights_say():
    model, weights = linear()
    images, told = torch.randn(3, 1, 4, 4), []
    found = integrated_gradients(model, images, 1, steps=3, on_image=told.append)
    torch.testing.assert_close(found, images[:, 0] * weights[1])
    assert told == [1, 1, 1]
    shifted = integrated_gradients(model, images, 1, baseline=2.0, steps=3)
    torch.testing.assert_close(shifted, (images[:, 0] - 2) * weights[1])


def test_a_square_and_a_class_for_each_image():
    class Squares(nn.Module):
        def forward(self, x):
            squares = x.square().sum((1, 2, 3))
            return torch.stack([squares, -squares], 1)

    images = torch.randn(2, 3, 5, 5)
    want = images.square().sum(1)
    torch.testing.assert_close(
        integrated_gradients(Squares(), images, torch.tensor([0, 1])), torch.stack([want[0], -want[1]])
    )
    torch.testing.assert_close(integrated_gradients(Squares(), images), want)  # the predicted class


def test_the_sum_is_the_difference_of_the_scores():
    model = build_toy("smt_nano").train()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        model.eval()
        logits, blank = model(images), model(torch.zeros_like(images))
        model.train()
    classes = logits.argmax(1)
    found = integrated_gradients(model, images, steps=64)
    assert found.shape == (2, 32, 48)
    want = (logits - blank).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found.sum((1, 2)), want, rtol=2e-2, atol=2e-3)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.inference_mode():
        again = integrated_gradients(model, images + 0, steps=64)
    torch.testing.assert_close(again, found)
    with pytest.raises(ValueError, match=r"^steps 0 must be 1 or more$"):
        integrated_gradients(model, images, steps=0)


def test_hiding_a_window_takes_away_what_is_in_it():
    model, weights = linear()
    images, told = torch.randn(2, 1, 4, 4), []
    parts = images[:, 0] * weights[0]
    found = occlusion(model, images, 0, window=2, stride=2, on_image=told.append)
    sums = parts.unfold(1, 2, 2).unfold(2, 2, 2).sum((3, 4))
    torch.testing.assert_close(found, sums.repeat_interleave(2, 1).repeat_interleave(2, 2), rtol=1e-4, atol=1e-5)
    assert told == [1, 1]
    torch.testing.assert_close(occlusion(model, images, 0, window=1), parts, rtol=1e-4, atol=1e-5)


def test_rows_are_rows_and_overlapping_windows_are_averaged():
    model, _ = linear()
    nn.init.zeros_(model[1].weight)
    model[1].weight.data[0, 1 * 4 + 0] = 8.0  # row 1, column 0
    images = torch.ones(1, 1, 4, 4)
    found = occlusion(model, images, 0, window=2, stride=1)[0]
    # a pixel's windows, and those of them that hide (1, 0)
    want = torch.tensor([[8.0, 4, 0, 0], [8, 4, 0, 0], [4, 2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(found, want)


def test_all_channels_are_hidden_together_and_count_once():
    class Total(nn.Module):
        def forward(self, x):
            return x.sum((1, 2, 3))[:, None]

    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(occlusion(Total(), images, 0, window=1), images.sum(1), rtol=1e-4, atol=1e-5)


def test_windows_that_do_not_fit():
    model, _ = linear()
    images = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"^window 5 must be 1 to 4, the shorter side of the images$"):
        occlusion(model, images, window=5)
    with pytest.raises(ValueError, match=r"^stride 3 must be 1 to 2, the window, so that no pixel is left out$"):
        occlusion(model, images, window=2, stride=3)


def test_the_usual_window_of_a_model():
    model = build_toy("smt_nano").train()
    assert occlusion(model, torch.randn(1, 3, 16, 24)).shape == (1, 16, 24)
    assert all(module.training for module in model.modules())
