import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from convattn.ops.linear import Linear2d
from toys import relative_error


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_convolution_it_was_made_from(bias, stride):
    conv = nn.Conv2d(6, 4, 1, stride, bias=bias).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert relative_error(Linear2d.from_conv1x1(conv)(x), conv(x)) < 1e-12


def test_the_result_is_channels_last_and_reads_such_a_map_in_place():
    x = torch.randn(2, 6, 3, 5).to(memory_format=torch.channels_last)
    assert Linear2d(6, 4)(x).is_contiguous(memory_format=torch.channels_last)
    assert Linear2d(6, 4)(x.contiguous()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_form_for_graph_runtimes_is_the_convolution_again(bias, stride):
    conv = nn.Conv2d(6, 4, 1, stride, bias=bias).double()
    again = Linear2d.from_conv1x1(conv).graph_form()
    assert type(again) is nn.Conv2d
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    assert torch.equal(again(x), conv(x))


def test_it_is_a_convolution_to_others_and_starts_as_a_linear_layer_does():
    torch.manual_seed(0)
    linear = nn.Linear(6, 4)
    torch.manual_seed(0)
    layer = Linear2d(6, 4)
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer, nn.Linear)
    assert layer.weight.shape == (4, 6, 1, 1)
    assert torch.equal(layer.weight.flatten(1), linear.weight) and torch.equal(layer.bias, linear.bias)


def test_weights_of_a_linear_layer_load_and_are_left_as_they_are():
    layer, linear = nn.Sequential(Linear2d(6, 4)), nn.Sequential(nn.Linear(6, 4))
    state = linear.state_dict()
    layer.load_state_dict(state)
    assert state["0.weight"].shape == (4, 6)
    assert torch.equal(layer[0].weight.flatten(1), linear[0].weight)
    layer.load_state_dict(Linear2d(6, 4).state_dict(prefix="0."))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0.weight"):
        layer.load_state_dict(nn.Linear(5, 4).state_dict(prefix="0."))


def _kernels(layer: nn.Module, x: torch.Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x)
    return {event.key for event in profile.key_averages()} & {"mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_large_products_without_gradients_go_to_onednn_and_agree(layout, bias):
    layer = Linear2d(256, 512, bias=bias, stride=2)
    x = torch.randn(2, 256, 19, 15).to(memory_format=layout)
    plain = layer(x).detach()
    with torch.inference_mode():
        assert _kernels(layer, x) == {"mkldnn::_linear_pointwise"}
        assert relative_error(layer(x), plain) < 1e-6
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of PyTorch has no oneDNN")
def test_what_onednn_cannot_do_or_does_slower_stays_with_blas(monkeypatch):
    x = torch.randn(2, 256, 12, 12)
    layer, odd, small = Linear2d(256, 512), Linear2d(256, 503), Linear2d(256, 16)
    assert "mkldnn::_linear_pointwise" not in _kernels(layer, x)  # gradients are recorded
    with torch.no_grad():
        assert "mkldnn::_linear_pointwise" in _kernels(layer, x)
        assert "mkldnn::_linear_pointwise" not in _kernels(odd, x)
        assert "mkldnn::_linear_pointwise" not in _kernels(small, x)
        assert "mkldnn::_linear_pointwise" not in _kernels(layer.double(), x.double())
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        graph = torch.export.export(layer, (x,)).graph
        assert not [node for node in graph.nodes if "mkldnn" in str(node.target)]
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # a user's wish
        assert "mkldnn::_linear_pointwise" not in _kernels(layer, x)


class _Products(TorchDispatchMode):
    """Counts as the counters of other libraries do: what it knows, by the operator's name."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default):
            self.macs += result.numel() * args[-2 if func is torch.ops.aten.addmm.default else 0].shape[-1]
        return result


def test_counters_of_operators_see_large_products_without_gradients():
    layer, x = Linear2d(256, 512, bias=False), torch.randn(2, 256, 12, 12)
    macs = 2 * 144 * 256 * 512
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Products() as products:
        layer(x)
    assert counter.get_total_flops() == 2 * macs and products.macs == macs


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:FutureWarning")
def test_large_products_without_gradients_are_traced_mapped_and_differentiated():
    layer, x = Linear2d(256, 512), torch.randn(2, 256, 12, 12)
    with torch.no_grad():
        want = layer(x)
        traced = torch.jit.trace(layer, x)
        assert "mkldnn" not in str(traced.graph)
        assert relative_error(traced(x), want) < 1e-5
        assert relative_error(torch.func.vmap(lambda image: layer(image[None])[0])(x), want) < 1e-5
        value, slope = torch.func.jvp(layer, (x,), (x,))
    assert relative_error(value, want) < 1e-5
    assert relative_error(slope, want - layer.bias.view(-1, 1, 1)) < 1e-5
