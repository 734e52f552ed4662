"""The DAS gate and its deformable convolution: published counts, closed-form cases, ablation forms."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.deploy.graph_form import graph_form
from convattn.mixers.deformable_conv import DeformableConv2d
from convattn.mixers.deformable_gate import ABLATIONS, DeformableGate
from convattn.mixers.sampled_grid import SampledFusion, SampledGate
from convattn.ops.deformable import deformable_conv2d_reference
from toys import randomise_norms, relative_error

every_form = pytest.mark.parametrize("form", sorted(ABLATIONS))

NORMS = ["in", "ln", "bn", "gn1", "none"]


def maps(*shape):
    return torch.randn(shape, dtype=torch.float64)


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def gate_of(dim, **options):
    """An evaluating gate in float64 whose offsets, norms and statistics are drawn at random."""
    gate = DeformableGate(dim, **options).double().eval()
    randomise_norms(gate)
    for module in gate.modules():
        if isinstance(module, DeformableConv2d):
            nn.init.normal_(module.offset.weight, std=0.3)
    return gate


# Counts


@pytest.mark.parametrize(
    ("dim", "width", "total"),
    [
        (64, 12, 11327),
        (128, 25, 39510),
        (256, 51, 145796),
        (512, 102, 552685),
        (1024, 204, 2149823),
        (2048, 409, 8498262),
    ],
)
def test_a_gate_has_the_published_parameters(dim, width, total):
    with torch.device("meta"):
        gate = DeformableGate(dim)
    parts = {key: parameter.numel() for key, parameter in gate.named_parameters()}
    assert parts == {
        "compress.depthwise.weight": 9 * dim,
        "compress.pointwise.weight": dim * width,
        "mixer.offset.weight": 243 * width,
        "mixer.offset.bias": 27,
        "mixer.weight": 9 * width * dim,
        "norm2.weight": dim,
        "norm2.bias": dim,
    }
    assert sum(parts.values()) == total


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(alpha=0.5), lambda c, h: 9 * c + c * 8 + 243 * 8 + 27 + 9 * 8 * c + 2 * c),
        (dict(alpha=1.0), lambda c, h: 9 * c + c * c + 243 * c + 27 + 9 * c * c + 2 * c),
        (dict(alpha=0.01), lambda c, h: 9 * c + c + 243 + 27 + 9 * c + 2 * c),  # one channel at least
        (dict(kernel_size=5), lambda c, h: 9 * c + c * h + 25 * h * 75 + 75 + 25 * h * c + 2 * c),
        (dict(kernel_size=1), lambda c, h: 9 * c + c * h + h * 3 + 3 + h * c + 2 * c),
        (dict(modulated=False), lambda c, h: 9 * c + c * h + 162 * h + 18 + 9 * h * c + 2 * c),
        (dict(norm1_affine=True), lambda c, h: 9 * c + c * h + 2 * h + 243 * h + 27 + 9 * h * c + 2 * c),
        (dict(norm2="none"), lambda c, h: 9 * c + c * h + 243 * h + 27 + 9 * h * c),
        (dict(ABLATIONS["d"]), lambda c, h: 243 * c + 27 + 9 * c * c + 2 * c),
        (dict(ABLATIONS["e"]), lambda c, h: 9 * c + c * c + 2 * c),
        (dict(ABLATIONS["f"]), lambda c, h: 9 * c + c * h + 9 * h + h * c + 2 * c),
        (dict(ABLATIONS["g"]), lambda c, h: 243 * c + 27 + 9 * c * c),
        (dict(ABLATIONS["h"]), lambda c, h: 9 * c + c * h + 243 * h + 27 + 9 * h * c + 2 * c),
        (dict(mixer="deform_dw"), lambda c, h: 9 * c + c * h + 243 * h + 27 + 9 * h + h * c + 2 * c),
        (dict(groups=3), lambda c, h: 9 * c + c * h + 243 * h + 27 + 3 * h * c + 2 * c),
        (dict(offset_groups=3), lambda c, h: 9 * c + c * h + 9 * h * 81 + 81 + 9 * h * c + 2 * c),
    ],
)
def test_options_change_the_count_as_they_should(options, expected):
    dim = 18 if "groups" in str(options) else 16
    width = int(0.2 * dim)
    assert num_parameters(DeformableGate(dim, **options)) == expected(dim, width)


@pytest.mark.parametrize("norm1", NORMS)
@pytest.mark.parametrize("norm2", NORMS)
def test_every_pair_of_norms_keeps_the_shape(norm1, norm2):
    gate = DeformableGate(10, norm1=norm1, norm2=norm2)
    assert gate(torch.randn(2, 10, 4, 5)).shape == (2, 10, 4, 5)
    assert num_parameters(gate) == num_parameters(DeformableGate(10)) - (20 if norm2 == "none" else 0)


# Values


def test_equals_its_formula():
    gate = gate_of(10, alpha=0.3)
    x = maps(2, 10, 6, 5)
    context = F.conv2d(x, gate.compress.depthwise.weight, padding=1, groups=10)
    context = torch.einsum("oi,bihw->bohw", gate.compress.pointwise.weight.flatten(1), context)
    context = F.gelu(nn.InstanceNorm2d(3).double()(context))
    predicted = F.conv2d(context, gate.mixer.offset.weight, gate.mixer.offset.bias, padding=1)
    offset, mask = predicted[:, :18], predicted[:, 18:].sigmoid()
    deformed = deformable_conv2d_reference(context, offset, gate.mixer.weight, mask, padding=1)
    normed = nn.functional.layer_norm(deformed.permute(0, 2, 3, 1), (10,), gate.norm2.weight, gate.norm2.bias, 1e-5)
    want = x * normed.permute(0, 3, 1, 2).sigmoid()
    assert offset.abs().max() > 0.5  # it does displace
    assert relative_error(gate(x), want) < 1e-12


def test_the_gate_lies_between_0_and_1_and_starts_around_a_half():
    gate = DeformableGate(64)
    x = torch.rand(2, 64, 8, 8) + 0.1
    with torch.no_grad():
        weights = gate(x) / x
    assert weights.min() > 0 and weights.max() < 1
    assert weights.mean().item() == pytest.approx(0.5, abs=0.02)
    assert weights.std().item() == pytest.approx(0.21, abs=0.02)


def test_starts_as_an_ordinary_convolution_halved_by_the_mask():
    layer = DeformableConv2d(4, 6).double()
    x = maps(1, 4, 5, 5)
    assert relative_error(layer(x), 0.5 * F.conv2d(x, layer.weight, padding=1)) < 1e-12
    plain = DeformableConv2d(4, 6, modulated=False).double()
    assert relative_error(plain(x), F.conv2d(x, plain.weight, padding=1)) < 1e-12


def test_depthwise_deformable_convolution_works_channel_by_channel():
    layer = DeformableConv2d(4, 4, groups=4, modulated=False).double()
    nn.init.zeros_(layer.offset.weight)
    nn.init.normal_(layer.offset.bias)
    x = maps(1, 4, 6, 6)
    for channel in range(4):
        offset = layer.offset(x)
        alone = deformable_conv2d_reference(
            x[:, channel : channel + 1], offset, layer.weight[channel : channel + 1], padding=1
        )
        assert relative_error(layer(x)[:, channel : channel + 1], alone) < 1e-12


def test_without_a_gate_the_logits_replace_the_map():
    gated, plain = gate_of(8, alpha=0.5), DeformableGate(8, alpha=0.5, gate=False).double().eval()
    plain.load_state_dict(gated.state_dict())
    x = maps(1, 8, 5, 5)
    assert relative_error(gated(x), x * plain(x).sigmoid()) < 1e-12


@every_form
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 4)])
def test_any_size_keeps_its_shape(form, size):
    gate = DeformableGate(8, alpha=0.5, **ABLATIONS[form]).eval()
    assert gate(torch.randn(2, 8, *size)).shape == (2, 8, *size)


def test_a_dim_of_one_channel_still_has_a_context():
    assert DeformableGate(4).compress.pointwise.out_channels == 1


@pytest.mark.parametrize("options", [{}, *ABLATIONS.values(), dict(mixer="deform_dw"), dict(norm2="bn", norm1="gn1")])
def test_gradients(options):
    gate = gate_of(4, alpha=0.5, **options)
    x = maps(1, 4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(gate, (x,), fast_mode=True)


def test_second_derivatives_by_grid_sampling():
    gate = gate_of(4, alpha=0.5, sampling="grid_sample")
    assert torch.autograd.gradgradcheck(gate, (maps(1, 4, 3, 3).requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("norm2", ["ln", "bn", "gn1", "in"])
def test_identity_start_passes_the_map_and_wakes_every_weight_in_two_steps(norm2):
    gate = DeformableGate(16, norm2=norm2, init="identity").train()
    x = torch.randn(2, 16, 6, 6)
    assert relative_error(gate(x), x) < 1e-6
    assert num_parameters(gate) == num_parameters(DeformableGate(16, norm2=norm2))
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.1)
    seen = set()
    for _ in range(2):
        optimizer.zero_grad()
        (gate(x) * torch.randn_like(x)).sum().backward()
        seen |= {key for key, parameter in gate.named_parameters() if parameter.grad.any()}
        optimizer.step()
    assert seen == {key for key, _ in gate.named_parameters()}


def test_identity_start_survives_copies_and_pickles():
    gate, x = DeformableGate(16, init="identity"), torch.randn(1, 16, 5, 5)
    for again in (copy.deepcopy(gate), pickle.loads(pickle.dumps(gate))):
        assert torch.equal(again(x), gate(x))


def test_autocast_and_bfloat16_stay_close():
    gate, x = gate_of(16).float(), torch.randn(2, 16, 7, 7)
    with torch.no_grad():
        want = gate(x)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = gate(x)
        low = copy.deepcopy(gate).bfloat16()(x.bfloat16())
    assert autocast.dtype == torch.float32 and low.dtype == torch.bfloat16
    assert relative_error(autocast, want) < 0.05 and relative_error(low, want) < 0.05


# The inference form


@pytest.mark.parametrize(
    "options",
    [
        *({"norm1": norm1, "norm2": norm2} for norm1 in NORMS for norm2 in ("ln", "bn")),
        *ABLATIONS.values(),
        dict(mixer="deform_dw"),
        dict(mixer="deform_dw", norm2="bn"),
        dict(mixer="dwsep", norm2="bn", norm1="bn", norm1_affine=True),
        dict(mixer="none", norm2="bn"),
        dict(init="identity"),
        dict(modulated=False, kernel_size=5),
    ],
)
def test_fused_form_agrees_and_leaves_the_gate_alone(options):
    gate = gate_of(10, alpha=0.3, **options)
    before = {key: tensor.clone() for key, tensor in gate.state_dict().items()}
    x = maps(2, 10, 6, 5)
    with torch.no_grad():
        fused = gate.fused()
        assert relative_error(fused(x), gate(x)) < 1e-12
        assert relative_error(fused(x.to(memory_format=torch.channels_last)), gate(x)) < 1e-12
        form = graph_form(fused)
        assert relative_error(form(x), gate(x)) < 1e-12
    assert all(module.sampling == "grid_sample" for module in form.modules() if isinstance(module, DeformableConv2d))
    assert all(module.sampling == "auto" for module in fused.modules() if isinstance(module, DeformableConv2d))
    left = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not left or options.get("mixer") == "none"  # nothing linear stands in front of it there
    assert all(torch.equal(tensor, before[key]) for key, tensor in gate.state_dict().items())


# Ablation (a) and (b)


def test_sampled_fusion_sees_the_map_twice_at_the_start():
    block = SampledFusion(6).double()
    x = maps(2, 6, 4, 5)
    assert relative_error(block(x), block.fuse(torch.cat([x, x], 1))) < 1e-12
    assert num_parameters(block) == 6 * 18 + 2 + 12 * 6 + 6


def test_sampled_fusion_reads_where_the_offset_says():
    block = SampledFusion(6).double()
    block.offset.bias.data = torch.tensor([0.0, 1.0], dtype=torch.float64)  # one pixel to the right
    x = maps(1, 6, 4, 5)
    right = F.pad(x, (0, 1))[..., 1:]
    assert relative_error(block(x), block.fuse(torch.cat([x, right], 1))) < 1e-12


def test_sampled_gate_suppresses_and_never_amplifies():
    block = SampledGate(10).double()
    assert num_parameters(block) == 9 * 10 + 10 * 2 + 2 * 18 + 2 + 4 * 10 + 10
    x = maps(2, 10, 5, 4)
    context = block.compress(x)
    want = x * block.weigh(torch.cat([context, context], 1)).sigmoid()
    assert relative_error(block(x), want) < 1e-12
    assert (block(x).abs() < x.abs()).all()


@pytest.mark.parametrize("kind", [SampledFusion, SampledGate])
def test_gradients_of_the_sampled_blocks(kind):
    block = kind(4).double()
    nn.init.normal_(block.offset.weight)
    nn.init.normal_(block.offset.bias)
    assert torch.autograd.gradcheck(block, (maps(1, 4, 3, 3).requires_grad_(),), fast_mode=True)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(alpha=0), "alpha 0 must be above 0 and at most 1"),
        (dict(alpha=1.5), "alpha 1.5 must be above 0 and at most 1"),
        (dict(kernel_size=4), "kernel_size 4 must be odd"),
        (dict(norm1="layer"), "norm1 'layer' is unknown; choose one of in, ln, bn, gn1, none"),
        (dict(norm2="layer"), "norm2 'layer' is unknown; choose one of in, ln, bn, gn1, none"),
        (dict(mixer="deforn"), "mixer 'deforn' is unknown; choose one of deform, deform_dw, dwsep, none"),
        (dict(init="zero"), "init 'zero' is unknown; choose one of paper, identity"),
        (dict(mixer="dwsep", kernel_size=5), "kernel_size 5, modulated True: mixer 'dwsep' is not deformable"),
        (dict(compress=False, mixer="dwsep"), "mixer 'dwsep' needs the compression"),
        (dict(init="identity", gate=False), "init 'identity' needs the gate"),
        (dict(init="identity", norm2="none"), "norm2, which cannot be 'none'"),
        (dict(groups=2), "groups 2 does not divide 3 and 16 channels; the nearest is 1"),
        (dict(offset_groups=2), "offset_groups 2 does not divide 3 channels; the nearest is 1"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message) as error:
        DeformableGate(16, **options)
    assert "\n" not in str(error.value)


def test_sampled_gate_refuses_a_wrong_alpha():
    with pytest.raises(ValueError, match="alpha 2 must be above 0 and at most 1"):
        SampledGate(8, alpha=2)
