"""Against OpenCV's arithmetic by the golden file, and Python's own colour conversions."""

import colorsys

import numpy as np
import pytest
import torch

from convattn.segmentation.photometric import (
    distorted,
    rgb_from_hsv,
    scaled,
    shifted,
    to_hsv,
    with_hue,
    with_saturation,
)
from segmentation_golden import load_golden

GOLDEN = load_golden("pipeline")
IMAGE = GOLDEN.given("rgb").permute(2, 0, 1)
BETA, ALPHA, SATURATION = (GOLDEN.meta[name] for name in ("beta", "alpha", "saturation"))
LEVEL = 1 / 255


def levels(key, image):
    """The largest difference from the golden file, in levels of 8 bits."""
    return GOLDEN.error(key, image.permute(1, 2, 0)) * float(GOLDEN.arrays[f"{key}_peak"])


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("brightness", shifted(IMAGE, BETA[0])),
        ("brightness_down", shifted(IMAGE, BETA[1])),
        ("contrast", scaled(IMAGE, ALPHA[0])),
        ("contrast_up", scaled(IMAGE, ALPHA[1])),
    ],
)
def test_brightness_and_contrast_are_the_references(key, image):
    assert image.dtype == torch.uint8
    assert GOLDEN.error(key, image.permute(1, 2, 0)) < 1e-9


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("hsv", torch.stack(to_hsv(IMAGE))),
        ("saturation", with_saturation(IMAGE, SATURATION[0])),
        ("saturation_down", with_saturation(IMAGE, SATURATION[1])),
        ("hue", with_hue(IMAGE, GOLDEN.meta["hue"])),
    ],
)
def test_saturation_and_hue_are_the_references_but_for_rounding(key, image):
    assert levels(key, image) <= 1


def test_hue_saturation_and_value_are_those_of_the_definition():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image[:, 0] = image[:1, 0]  # greys, which have no hue
    hue, saturation, value = to_hsv(image)
    pixels = image.permute(1, 2, 0).reshape(-1, 3).tolist()
    want = np.array([colorsys.rgb_to_hsv(*(part / 255 for part in pixel)) for pixel in pixels]) * (180, 255, 255)
    got = torch.stack([hue, saturation, value], -1).reshape(-1, 3).numpy()
    gap = np.abs(got - want)
    gap[:, 0] = np.minimum(gap[:, 0], 180 - gap[:, 0])  # a circle
    assert gap.max() <= 0.5 + 0.16  # a number of OpenCV's tables is half a 4096th off, and taken up to 1275 times
    assert (hue < 180).all()


def test_hue_and_saturation_are_rounded_as_opencv_rounds_them():
    steps = torch.arange(0, 256, 5)
    image = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij")).flatten(2).to(torch.uint8)
    red, green, blue = image.numpy().astype(np.int64)
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    tables = [np.rint((most << 12) / np.arange(1, 256)).astype(np.int64) for most in (30, 255)]
    of_hue, of_saturation = (np.concatenate([[0], table]) for table in tables)
    sector = np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = np.where(value == red, green - blue, sector) * of_hue[spread] + 2**11 >> 12
    want = np.stack([np.where(hue < 0, hue + 180, hue), spread * of_saturation[value] + 2**11 >> 12, value])
    assert np.array_equal(torch.stack(to_hsv(image)).numpy(), want)


def test_colours_come_back_from_their_hue_saturation_and_value():
    hue, saturation, value = (
        torch.randint(0, high, (40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(high))
        for high in (180, 255, 256)
    )
    image = rgb_from_hsv(hue, saturation, value)
    triples = torch.stack([hue, saturation, value], -1).reshape(-1, 3).tolist()
    want = [colorsys.hsv_to_rgb(h / 180, s / 255, v / 255) for h, s, v in triples]
    gap = image.permute(1, 2, 0).reshape(-1, 3).double() - 255 * torch.tensor(want, dtype=torch.float64)
    assert gap.abs().max() <= 0.5 + 1e-3


def test_the_hue_turns_through_the_whole_circle():
    red = torch.tensor([200, 0, 0], dtype=torch.uint8)[:, None, None]
    assert with_hue(red, 60).flatten().tolist() == [0, 200, 0]
    assert with_hue(red, -60).flatten().tolist() == [0, 0, 200]
    assert torch.equal(with_hue(with_hue(red, 60), -60), red)


def test_each_property_is_varied_in_half_of_the_cases_and_contrast_in_half_of_these_last(monkeypatch):
    from convattn.segmentation import photometric

    calls = []
    for name in ("shifted", "scaled", "with_saturation", "with_hue"):
        monkeypatch.setattr(photometric, name, lambda image, by, name=name: calls.append((name, by)) or image)
    torch.manual_seed(0)
    rounds = []
    for _ in range(2000):
        calls.clear()
        distorted(IMAGE)
        rounds.append(dict(calls))
        order = [name for name, _ in calls]
        assert len(order) == len({*order})
        inner = [name for name in order if name != "scaled"]
        assert inner == [name for name in ("shifted", "with_saturation", "with_hue") if name in order]
    ranges = {"shifted": (-32, 32), "scaled": (0.5, 1.5), "with_saturation": (0.5, 1.5), "with_hue": (-18, 17)}
    for name, (low, high) in ranges.items():
        drawn = [each[name] for each in rounds if name in each]
        assert abs(len(drawn) / 2000 - 0.5) < 0.05
        assert low <= min(drawn) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(drawn) <= high
    both = [[*each] for each in rounds if {"scaled", "with_hue"} <= {*each}]
    assert abs(sum(order.index("scaled") > order.index("with_hue") for order in both) / len(both) - 0.5) < 0.08
