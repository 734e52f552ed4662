"""Scale-aware modulation against plain formulas, part by part."""

import pytest
import torch
import torch.nn.functional as F

from convattn.deploy.graph_form import graph_form
from convattn.mixers.scale_aware_modulation import MultiHeadMixedConv, ScaleAwareAggregation, ScaleAwareModulation
from convattn.ops.linear import Linear2d
from toys import randomise_norms, relative_error


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("num_heads", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("kernel_growth", [0, 2])
def test_kernels_grow_with_the_head(num_heads, kernel_growth):
    mixed = MultiHeadMixedConv(24, num_heads, kernel_growth)
    assert [conv.kernel_size[0] for conv in mixed.heads] == [3 + kernel_growth * head for head in range(num_heads)]
    assert mixed(torch.randn(1, 24, 5, 7)).shape == (1, 24, 5, 7)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_mixed_convolution_equals_a_loop_over_channels(num_heads):
    dim, head_dim = 8, 8 // num_heads
    mixed = MultiHeadMixedConv(dim, num_heads).double()
    x = maps(2, dim, 6, 5)
    want = torch.empty_like(x)
    for head, conv in enumerate(mixed.heads):
        for channel in range(head_dim):
            source = x[:, head * head_dim + channel : head * head_dim + channel + 1]
            result = F.conv2d(
                source, conv.weight[channel : channel + 1], conv.bias[channel : channel + 1], padding=1 + head
            )
            want[:, channel * num_heads + head] = result[:, 0]  # interleaved
    assert relative_error(mixed(x), want) < 1e-12


def test_interleave_puts_channel_g_of_head_h_at_g_times_heads_plus_h():
    mixed = MultiHeadMixedConv(12, 4)
    for conv in mixed.heads:  # each convolution becomes the identity
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
        conv.weight.data[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    x = torch.arange(12.0).reshape(1, 12, 1, 1)
    assert mixed(x).flatten().tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_each_group_of_the_aggregation_sees_one_channel_of_every_head():
    aggregation = ScaleAwareAggregation(12, 4, 2).double().eval()
    x = maps(1, 12, 2, 2)
    want = aggregation.group_mix(x)
    for channel in range(12):
        moved = x.clone()
        moved[:, channel] += 1
        changed = (aggregation.group_mix(moved) != want).any(dim=(0, 2, 3)).nonzero().flatten().tolist()
        group = channel // 4
        assert changed == list(range(8 * group, 8 * group + 8))


def test_aggregation_equals_its_formula():
    aggregation = ScaleAwareAggregation(8, 2, 3).double().eval()
    randomise_norms(aggregation)
    x = maps(2, 8, 3, 4)
    weight, norm = aggregation.group_mix.weight.flatten(1), aggregation.norm
    hidden = torch.cat(
        [torch.einsum("oi,bihw->bohw", weight[6 * g : 6 * g + 6], x[:, 2 * g : 2 * g + 2]) for g in range(4)], 1
    )
    hidden = hidden + aggregation.group_mix.bias.view(-1, 1, 1)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    hidden = (hidden - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    want = torch.einsum("oi,bihw->bohw", aggregation.proj.weight.flatten(1), hidden) + aggregation.proj.bias.view(
        -1, 1, 1
    )
    assert relative_error(aggregation(x), want) < 1e-12


def test_a_zero_modulator_leaves_only_the_bias_of_the_projection():
    mixer = ScaleAwareModulation(8).double()
    torch.nn.init.normal_(mixer.proj.bias)
    torch.nn.init.zeros_(mixer.aggregation.proj.weight)
    torch.nn.init.zeros_(mixer.aggregation.proj.bias)
    assert torch.equal(mixer(maps(2, 8, 5, 5)), mixer.proj.bias.view(1, 8, 1, 1).expand(2, 8, 5, 5))


def test_a_modulator_of_one_leaves_the_two_linear_layers():
    mixer = ScaleAwareModulation(8).double()
    torch.nn.init.zeros_(mixer.aggregation.proj.weight)
    torch.nn.init.ones_(mixer.aggregation.proj.bias)
    x = maps(2, 8, 5, 3)
    assert relative_error(mixer(x), mixer.proj(mixer.value(x))) < 1e-12


def test_without_aggregation_the_interleaved_heads_are_the_modulator():
    mixer = ScaleAwareModulation(8, aggregation=False).double()
    x = maps(1, 8, 6, 6)
    assert relative_error(mixer(x), mixer.proj(mixer.mixed_conv(mixer.context(x)) * mixer.value(x))) < 1e-12
    assert not list(mixer.aggregation.parameters())


def test_reach_is_the_largest_kernel():
    mixer = ScaleAwareModulation(8, num_heads=4).double().eval()
    x = maps(1, 8, 21, 21)
    moved = x.clone()
    moved[:, :, 10, 10] += 1
    changed = (mixer(moved) != mixer(x)).any(dim=1)[0].nonzero()
    assert changed.amin(0).tolist() == [6, 6] and changed.amax(0).tolist() == [14, 14]


def test_without_bias_for_value_and_context():
    mixer = ScaleAwareModulation(8, qkv_bias=False)
    assert mixer.value.bias is None and mixer.context.bias is None and mixer.proj.bias is not None


def test_gradients():
    mixer = ScaleAwareModulation(4, num_heads=2).double().eval()
    randomise_norms(mixer)
    x = maps(1, 4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize(
    "options", [{}, dict(aggregation=False), dict(qkv_bias=False), dict(num_heads=2, kernel_growth=4)]
)
def test_fused_form_agrees_in_the_layout_of_either_kind(options):
    mixer = ScaleAwareModulation(8, **options).double().eval()
    randomise_norms(mixer)
    before = {key: tensor.clone() for key, tensor in mixer.state_dict().items()}
    fused = mixer.fused()
    x = maps(2, 8, 7, 5)
    with torch.no_grad():
        assert relative_error(fused(x), mixer(x)) < 1e-12
        assert relative_error(fused(x.to(memory_format=torch.channels_last)), mixer(x)) < 1e-12
    assert all(torch.equal(tensor, before[key]) for key, tensor in mixer.state_dict().items())


@pytest.mark.parametrize(("dim", "groups"), [(32, 2), (24, 6)])
@pytest.mark.parametrize("options", [{}, dict(qkv_bias=False)])
def test_graph_form_agrees_with_groups_as_wide_as_a_vector(dim, groups, options):
    """Sixteen channels, where they divide so."""
    mixer = ScaleAwareModulation(dim, **options).double().eval()
    randomise_norms(mixer)
    fused = mixer.fused()
    form = graph_form(fused)
    x = maps(2, dim, 7, 5)
    with torch.no_grad():
        assert relative_error(form(x), mixer(x)) < 1e-12
        assert relative_error(fused(x), mixer(x)) < 1e-12
    assert form.aggregation[0].groups == groups
    assert not any(isinstance(module, Linear2d) for module in form.modules())


def test_graph_form_without_aggregation():
    mixer = ScaleAwareModulation(8, aggregation=False).double().eval()
    x = maps(2, 8, 7, 5)
    assert relative_error(graph_form(mixer.fused())(x), mixer(x)) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_heads=3), "num_heads 3 does not divide dim 8; the nearest that does is 2"),
        (dict(num_heads=0), "num_heads 0 does not divide dim 8; the nearest that does is 1"),
        (dict(kernel_growth=-2), "kernel_growth -2 must be even and not negative"),
        (dict(expansion_ratio=0), "expansion_ratio 0 must be 1 or more"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message):
        ScaleAwareModulation(8, **options)
