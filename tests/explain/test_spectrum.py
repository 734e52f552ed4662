import math

import pytest
import torch
from torch import nn

from convattn.explain.feature_variance import draw_variances, feature_map_variance
from convattn.explain.figures import as_picture
from convattn.explain.spectrum import draw_high_frequencies, draw_spectra, fourier_spectrum, log_amplitude
from toys import build_toy


def spectrum(maps):
    """The curve of maps that a model of one layer hands on."""
    found = fourier_spectrum(nn.Sequential(nn.Identity()), maps, ["0"])
    return found.curve("0")


def test_a_constant():
    for value in (2.0, -2.0):
        _, curve = spectrum(torch.full((2, 3, 8, 8), value, dtype=torch.float64))
        assert curve.tolist() == pytest.approx([0] + [-18.667540829696392] * 3, abs=1e-9)
    assert math.log(1e-6) - math.log(64 * 2 + 1e-6) == pytest.approx(-18.667540829696392, abs=1e-12)


def test_an_impulse_has_all_frequencies():
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[0, 0, 3, 1] = 5
    assert spectrum(impulse)[1].tolist() == pytest.approx([0] * 4, abs=1e-6)


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_a_wave(frequency):
    i, j = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    wave = 1 + 0.5 * torch.cos(2 * math.pi * frequency * (i + j) / 8)
    _, curve = spectrum(wave[None, None])
    assert float(curve[frequency]) == pytest.approx(math.log(0.25), abs=1e-7)
    assert math.log(0.25) == pytest.approx(-1.386294, abs=1e-6)
    rest = [value for at, value in enumerate(curve.tolist()) if at not in (0, frequency)]
    assert max(rest) < -12


@pytest.mark.parametrize(("side", "count"), [(7, 4), (8, 4), (14, 7), (56, 28)])
def test_how_many_points(side, count):
    frequencies, curve = spectrum(torch.randn(1, 1, side, side))
    assert len(frequencies) == len(curve) == count
    assert (frequencies[0], frequencies[-1], curve[0]) == (0, 1, 0)


def test_means_are_of_logarithms_and_over_images_and_channels():
    maps = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    each = [torch.fft.fft2(maps[b, c]).abs().add(1e-6).log() for b in range(2) for c in range(3)]
    want = torch.stack(each).mean(0).roll((4, 4), (0, 1))
    torch.testing.assert_close(log_amplitude(maps), want)
    found = fourier_spectrum(nn.Sequential(nn.Identity()), maps, ["0"]).amplitudes["0"]
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("side", [7, 8])
def test_frequency_0_stands_in_the_middle(side):
    peak = int(log_amplitude(torch.ones(1, 1, side, side)).flatten().argmax())
    assert divmod(peak, side) == (side // 2, side // 2)


def test_rows_are_not_columns():
    stripes = torch.cos(2 * math.pi * torch.arange(8.0) / 8)[:, None].expand(8, 8)  # changes from row to row
    peak = log_amplitude(stripes[None, None].double()).flatten().argmax()
    assert divmod(int(peak), 8) in ((3, 4), (5, 4))


def test_a_model_block_by_block():
    model, told = build_toy("smt_nano").train(), []
    found = fourier_spectrum(model, torch.randn(2, 3, 64, 64), "blocks", on_image=told.append)
    assert [*found.amplitudes][:2] == ["stem", "stages.0.blocks.0"]
    assert found.high().shape == (6,)
    assert told == [1, 1]
    assert found.attends["stages.2.blocks.1"]
    assert not found.attends["stages.2.blocks.0"]
    levels = fourier_spectrum(model, torch.randn(1, 3, 64, 64))
    assert [tuple(map_.shape) for map_ in levels.amplitudes.values()] == [(side, side) for side in (32, 16, 8, 4)]
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert as_picture(draw_spectra({"a": found, "b": levels})).size == (880, 340)
    assert as_picture(draw_high_frequencies({"a": found, "b": levels})).size == (540, 340)


def test_maps_that_are_not_square():
    with pytest.raises(
        ValueError,
        match=r"^layer 'stages.0' gives a map of 16 x 24, and a spectrum needs a square one; give images of 32 x 32$",
    ):
        fourier_spectrum(build_toy("smt_nano"), torch.randn(1, 3, 32, 48))


def test_variance_is_unbiased_over_positions_and_a_mean_over_channels_and_images():
    maps = torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]], [[[5.0, 5.0]], [[0.0, 4.0]]]])
    assert feature_map_variance(nn.Sequential(nn.Identity()), maps, ["0"]) == {"0": (2 + 0 + 0 + 8) / 4}
    model = build_toy("smt_nano")
    images = torch.randn(2, 3, 32, 32)
    found = feature_map_variance(model, images)
    with torch.no_grad():
        stem = model.stem(images)
    assert found["stem"] == pytest.approx(float(stem.var((2, 3)).mean()), rel=1e-5)
    assert as_picture(draw_variances({"a": found})).size == (540, 340)
    with pytest.raises(ValueError, match=r"^layer 'stages.3' gives a map of one position, which has no variance; give"):
        feature_map_variance(model, images[..., :16, :16], "levels")
