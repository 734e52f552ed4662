"""The profile names places and operators and counts their work; the limits are a machine's."""

import pytest
import torch
from torch import nn

import convattn
from convattn.bench.limits import Limits, probe_limits
from convattn.bench.profile import profile
from convattn.bench.runtimes import Setting, pytorch_form
from toys import build_toy

LIMITS = Limits(macs_per_second=1e9, product=(1, 1, 1), bytes_per_second=1e9)


def test_a_case_worked_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).eval()
    found = profile(model, torch.randn(2, 3, 8, 8), LIMITS, repeats=2, warmup=0)
    operations = {(one.module, one.operator): one for one in found.operations}
    convolution = operations["0", "aten.convolution"]
    assert convolution.shapes == ((2, 3, 8, 8), (8, 3, 3, 3), (8,))
    assert convolution.macs == 2 * 64 * 8 * 27
    assert convolution.moved_bytes == 4 * (2 * 3 * 64 + 8 * 27 + 8 + 2 * 8 * 64)
    assert convolution.limit_ms == pytest.approx(1000 * 2 * 64 * 8 * 27 / 1e9)  # arithmetic takes longer
    relu = operations["1", "aten.relu"]
    assert relu.macs == 0
    assert relu.limit_ms == pytest.approx(1000 * 2 * 4 * 2 * 8 * 64 / 1e9)  # memory does
    assert relu.times_limit == pytest.approx(relu.milliseconds / relu.limit_ms)
    assert operations["3", "aten.addmm"].macs == 2 * 8 * 64 * 10
    assert operations["2", "aten.view"].moved_bytes == 0
    times = [one.milliseconds for one in found.operations]
    assert times == sorted(times, reverse=True)
    assert found.operations_ms == pytest.approx(sum(times))
    assert {name for name, *_ in found.by_operator()} == {one.operator for one in found.operations}


@pytest.mark.parametrize("runtime", ["eager", "fused", "prepacked"])
@pytest.mark.parametrize("name", ["smt_nano", "cotnet_nano", "groupmixformer_nano", "nextvit_nano"])
def test_the_products_of_every_form_are_counted(name, runtime):
    """All of them but for the kernels that multiply elementwise, and merged kernels that have zeros."""
    model = build_toy(name)
    form, images = pytorch_form(model, runtime, Setting(image_size=64), "channels_last")
    found = profile(form, images, LIMITS, repeats=1, warmup=0)
    products = sum(one.macs for one in found.operations)
    counted = convattn.count(convattn.fuse(model) if runtime != "eager" else model, (3, 64, 64))
    assert 0.8 * counted.macs < products < 1.01 * counted.macs
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in form.modules())


def test_an_operation_is_bound_by_arithmetic_or_by_memory():
    limits = Limits(macs_per_second=1e9, product=(1, 1, 1), bytes_per_second=1e6)
    assert limits.milliseconds(macs=10**6, moved_bytes=10) == pytest.approx(1)
    assert limits.milliseconds(macs=10**6, moved_bytes=10**4) == pytest.approx(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_limits_are_probed(dtype, monkeypatch):
    monkeypatch.setattr("convattn.bench.limits._SHAPES", ((8, 16, 16), (16, 16, 16)))
    monkeypatch.setattr("convattn.bench.limits._COPIED", 2**16)
    limits = probe_limits(dtype)
    assert limits.macs_per_second > 0 and limits.bytes_per_second > 0
    assert limits.product in ((8, 16, 16), (16, 16, 16))


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="images are on meta; operators are profiled on the CPU"):
        profile(nn.Identity(), torch.empty(1, device="meta"), LIMITS)
