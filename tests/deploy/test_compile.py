"""A compiled model: same numbers, its convolutions and linear layers by oneDNN with packed weights."""

import types
from collections import Counter

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from convattn.deploy.compile import _as_convolution, compiled
from convattn.ops.linear import Linear2d
from convattn.walk import copied, exchange
from in_threads import worst_in_threads
from toys import relative_error


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")
def test_layers_over_maps_run_with_packed_weights_and_give_the_same_numbers():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Linear2d(16, 32), nn.ReLU(), Linear2d(32, 16)).eval()
    images = torch.randn(2, 3, 9, 8)
    run = compiled(model, images)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        got = run(images)
    with torch.no_grad():
        assert relative_error(got, model(images)) < 1e-5
    calls = Counter(event.name for event in seen.events())
    assert calls["mkldnn::_convolution_pointwise"] == 3
    assert not calls["aten::convolution"] + calls["aten::addmm"] + calls["mkl::_mkl_linear"] + calls["aten::relu"]
    assert isinstance(model[2], Linear2d)
    assert worst_in_threads(run, [torch.randn(2, 3, 9, 8) for _ in range(4)]) < 1e-5


def test_ties_and_what_hangs_on_layers_are_compiled_too():
    tied, hooked, patched = Linear2d(8, 8), Linear2d(8, 8), Linear2d(8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), tied, nn.ReLU(), nn.Sequential(hooked, tied), patched).eval()
    hooked.register_forward_hook(lambda module, inputs, output: 1.5 * output)
    hooked.register_forward_pre_hook(lambda module, inputs: (inputs[0] - 1,))
    patched.forward = types.MethodType(lambda self, x: type(self).forward(self, x) + 2, patched)
    images = torch.randn(2, 3, 5, 4)
    with torch.no_grad():
        want = model(images)
    assert relative_error(compiled(model, images)(images), want) < 1e-5
    exchanged = exchange(copied(model), _as_convolution)  # what is compiled
    assert type(exchanged[1]) is nn.Conv2d and exchanged[1] is exchanged[3][1]
    assert isinstance(exchanged[3][0], Linear2d) and isinstance(exchanged[4], Linear2d)
    assert model[1] is model[3][1] is tied


def test_later_changes_of_the_model_do_not_reach_it():
    model = nn.Conv2d(3, 4, 1).eval()
    images = torch.ones(1, 3, 2, 2)
    run, want = compiled(model, images), model(images).detach()
    nn.init.zeros_(model.weight)
    assert relative_error(run(images), want) < 1e-6
    assert relative_error(run(2 * images), want) > 0.01


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")
def test_what_was_compiled_for_another_network_of_the_class_is_not_taken():
    model, images = nn.Conv2d(3, 16, 3).eval(), torch.randn(1, 3, 9, 8)
    plain = torch.compile(model, dynamic=False)
    with torch.inference_mode():
        plain(images)  # without frozen weights
    run = compiled(model, images)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run(images)
    calls = Counter(event.name for event in seen.events())
    assert calls["mkldnn::_convolution_pointwise"] == 1 and not calls["aten::convolution"]
