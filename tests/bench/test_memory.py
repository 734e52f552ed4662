"""Peak memory in a process of its own, against sizes worked by hand."""

import sys

import pytest

from convattn.backbones.registry import create_model
from convattn.bench import memory
from convattn.bench.memory import MemoryMeter
from convattn.bench.runtimes import Setting

needs_linux = pytest.mark.skipif(not memory._can_reset_peak(), reason="no highest resident size to reset here")


@pytest.fixture(scope="module")
def meter():
    with MemoryMeter() as meter:
        yield meter


@needs_linux
def test_it_is_the_weights_and_what_a_call_needs(meter):
    model = create_model("timm:test_resnet")
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    small = meter.peak_bytes("timm:test_resnet", "eager", Setting(image_size=64), layout="contiguous")
    large = meter.peak_bytes("timm:test_resnet", "eager", Setting(image_size=1024), layout="contiguous")
    assert 0.8 * weights < small < weights + 16 * 2**20
    stem = 4 * model.conv1[0].out_channels * 1024**2 / 4  # bytes of the map behind the stem, halved in size
    assert stem < large - small < 12 * stem


@needs_linux
def test_what_fails_has_no_figure_and_the_next_one_has(meter):
    assert meter.peak_bytes("timm:test_resnet", "eager", Setting("int8"), layout="contiguous") is None
    assert meter.peak_bytes("timm:test_resnet", "fused", Setting(image_size=32), layout="channels_last") > 0
    assert meter.peak_bytes("timm:test_resnet", "compile", Setting(image_size=32)) is None


def test_without_a_way_to_measure_there_is_no_figure(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with MemoryMeter() as meter:
        assert meter.peak_bytes("timm:test_resnet", "eager", Setting(), layout="contiguous") is None
