"""CoT and CoXt against their formulas, written without any of the package's layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.mixers.contextual_transformer import FUSIONS, CoTAttention, CoXtAttention
from convattn.ops.linear import Linear2d
from convattn.ops.local_aggregation import LocalAggregation
from toys import randomise_norms, relative_error

KINDS = [CoTAttention, CoXtAttention]


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def build(kind, dim=32, **options):
    mixer = kind(dim, **options).double().eval()
    randomise_norms(mixer)
    return mixer


def norm(x, layer):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)


def formula(mixer, x):
    """The block in the authors' order of channels, the aggregation by unfold."""
    batch, dim, height, width = x.shape
    halves = 2 if isinstance(mixer, CoXtAttention) else 1
    taps = mixer.key[0].kernel_size[0] ** 2
    key = norm(
        F.conv2d(x, mixer.key[0].weight, padding=mixer.key[0].kernel_size[0] // 2, groups=4 * halves), mixer.key[1]
    )
    key = key.relu()
    if mixer.fusion == "static":
        return key
    joined = torch.cat([x, key], 1) if halves == 1 else torch.stack([x, key], 2).reshape(batch, 2 * dim, height, width)
    hidden = norm(F.conv2d(joined, mixer.embed[0].weight, groups=halves), mixer.embed[1]).relu()
    weights = F.conv2d(hidden, mixer.embed[3].weight, mixer.embed[3].bias, groups=halves)
    weights = weights.reshape(batch, dim // 8, taps, height, width)
    mean, variance = weights.mean((2, 3, 4), keepdim=True), weights.var((2, 3, 4), correction=0, keepdim=True)
    weights = (weights - mean) / (variance + 1e-5).sqrt()
    affine = (mixer.embed[4].weight, mixer.embed[4].bias)
    scale, shift = (vector.view(1, dim // 8, taps, 1, 1) for vector in affine)
    weights = weights * scale + shift
    value = norm(F.conv2d(x, mixer.value[0].weight, groups=halves), mixer.value[1])
    neighbours = F.unfold(value, mixer.key[0].kernel_size, padding=mixer.key[0].padding)
    neighbours = neighbours.view(batch, dim, taps, height, width)
    part, kernels = dim // halves, dim // 8 // halves
    shared = [c // part * kernels + c % part % kernels for c in range(dim)]
    out = (neighbours * weights[:, shared]).sum(2)
    out = F.silu(norm(out, mixer.norm))
    if mixer.fusion == "dynamic":
        return out
    if mixer.fusion == "sum":
        return out + key
    squeezed = (out + key).mean((2, 3), keepdim=True)
    logits = norm(F.conv2d(squeezed, mixer.gate[0].weight, mixer.gate[0].bias), mixer.gate[1]).relu()
    logits = F.conv2d(logits, mixer.gate[3].weight, mixer.gate[3].bias).view(batch, dim, 2)
    shares = logits.softmax(2)[..., None, None]
    return shares[:, :, 0] * out + shares[:, :, 1] * key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_equals_its_formula(kind, fusion):
    mixer, x = build(kind, fusion=fusion), maps(2, 32, 5, 7)
    assert relative_error(mixer(x), formula(mixer, x)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_a_wider_kernel_equals_its_formula(kind):
    mixer, x = build(kind, kernel_size=5), maps(1, 32, 4, 6)
    assert relative_error(mixer(x), formula(mixer, x)) < 1e-12
    assert relative_error(mixer.fused()(x), mixer(x)) < 1e-12


def test_static_is_the_key_convolution_and_nothing_else():
    mixer = CoTAttention(32, fusion="static")
    assert {name.partition(".")[0] for name, _ in mixer.named_parameters()} == {"key"}
    assert sum(parameter.numel() for parameter in mixer.parameters()) == 32 * 8 * 9 + 2 * 32


def test_each_fusion_adds_exactly_its_parameters():
    counts = {
        fusion: sum(parameter.numel() for parameter in CoTAttention(64, fusion=fusion).parameters())
        for fusion in FUSIONS
    }
    assert counts["sum"] == counts["dynamic"]
    # 64 -> 32 with bias, its norm, 32 -> 128 with bias
    assert counts["attention"] - counts["sum"] == 64 * 32 + 32 + 64 + 32 * 128 + 128


def test_a_strong_gate_leaves_one_context():
    mixer, x = build(CoTAttention), maps(2, 32, 4, 5)
    nn.init.zeros_(mixer.gate[3].weight)
    with torch.no_grad():
        mixer.gate[3].bias.view(32, 2).copy_(torch.tensor([0.0, 1000.0]))
        assert torch.equal(mixer(x), mixer.key(x))
        mixer.gate[3].bias.zero_()
        mixer.fusion = "sum"
        total = mixer(x)
        mixer.fusion = "attention"
        assert relative_error(mixer(x), total / 2) < 1e-12


def test_the_weights_of_a_kernel_have_mean_0_and_variance_1_over_taps_and_positions():
    mixer, x = CoTAttention(32).double().eval(), maps(2, 32, 6, 5)
    weights = mixer.embed(torch.cat([x, mixer.key(x)], 1)).unflatten(1, (4, 9))
    assert weights.mean((2, 3, 4)).abs().max() < 1e-12
    assert (weights.var((2, 3, 4), correction=0) - 1).abs().max() < 1e-2


def test_the_result_depends_on_the_whole_map():
    mixer, x = build(CoTAttention, fusion="dynamic"), maps(1, 32, 12, 12)
    moved = x.clone()
    moved[..., 0, 0] += 1
    assert (mixer(moved) != mixer(x))[..., -1, -1].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_in_either_layout(kind, batch):
    mixer, x = build(kind), maps(batch, 32, 3, 4)
    incoming = maps(batch, 32, 3, 4)
    (want,) = torch.autograd.grad(formula(mixer, x.requires_grad_()), x, incoming)
    for layout in (torch.contiguous_format, torch.channels_last):
        (got,) = torch.autograd.grad(mixer(x.to(memory_format=layout)), x, incoming)
        assert relative_error(got, want) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    mixer, x = build(kind, dim=16), maps(1, 16, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_fused_form_agrees_in_either_layout(kind, fusion, size):
    mixer, x = build(kind, fusion=fusion), maps(2, 32, *size)
    before = {key: tensor.clone() for key, tensor in mixer.state_dict().items()}
    fused = mixer.fused()
    with torch.no_grad():
        assert relative_error(fused(x), mixer(x)) < 1e-12
        assert relative_error(fused(x.to(memory_format=torch.channels_last)), mixer(x)) < 1e-12
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in mixer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [dict(), dict(kernel_size=5), dict(fusion="sum"), dict(fusion="dynamic")], ids=str)
@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_form_for_graph_runtimes_agrees(kind, options, size):
    mixer, x = build(kind, **options), maps(2, 32, *size)
    form = mixer.fused().graph_form()
    assert not [module for module in form.modules() if isinstance(module, Linear2d)]
    with torch.no_grad():
        assert relative_error(form(x), mixer(x)) < 1e-12


def test_the_aggregation_is_a_layer_of_its_own_in_both_forms():
    for mixer in (CoTAttention(32), CoTAttention(32).eval().fused()):
        assert len([module for module in mixer.modules() if isinstance(module, LocalAggregation)]) == 1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (CoTAttention, dict(dim=20), "dim 20 must be a multiple of 8; the nearest is 16"),
        (CoTAttention, dict(dim=4), "dim 4 must be a multiple of 8; the nearest is 8"),
        (CoXtAttention, dict(dim=24), "dim 24 must be a multiple of 16; the nearest is 32"),
        (CoTAttention, dict(dim=16, kernel_size=4), "kernel_size 4 must be odd"),
        (CoTAttention, dict(dim=16, fusion="linear"), "fusion 'linear' is unknown; choose one of attention, sum"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
