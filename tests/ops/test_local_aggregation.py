"""Local aggregation against a direct loop, its reference, and its own derivatives."""

import pytest
import torch

from convattn.ops.local_aggregation import (
    LocalAggregation,
    aggregate_planes,
    local_aggregation,
    local_aggregation_reference,
)
from toys import relative_error

GEOMETRIES = [
    dict(),
    dict(groups=2),
    dict(kernel_size=5, dilation=2),
    dict(stride=2),
    dict(kernel_size=3, stride=3, dilation=2, groups=2),
    dict(kernel_size=1),
]
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)


def operands(height, width, *, heads=1, channels=8, num_weights=4, batch=2, kernel_size=3, stride=1, **_):
    value = torch.randn(batch, channels, height, width, dtype=torch.float64)
    size = (height - 1) // stride + 1, (width - 1) // stride + 1
    return value, torch.randn(batch, heads, kernel_size**2, num_weights, *size, dtype=torch.float64)


def loop(value, weight, kernel_size=3, stride=1, dilation=1, groups=1):
    """The definition, element by element."""
    batch, channels, height, width = value.shape
    heads, _, num_weights, out_height, out_width = weight.shape[1:]
    part, weights_of_part = channels // groups, num_weights // groups
    out = torch.zeros(batch, heads * channels, out_height, out_width, dtype=value.dtype)
    for head in range(heads):
        for c in range(channels):
            w = c // part * weights_of_part + c % part % weights_of_part
            for i in range(out_height):
                for j in range(out_width):
                    for u in range(kernel_size):
                        for v in range(kernel_size):
                            row = i * stride + (u - kernel_size // 2) * dilation
                            column = j * stride + (v - kernel_size // 2) * dilation
                            if 0 <= row < height and 0 <= column < width:
                                out[:, head * channels + c, i, j] += (
                                    weight[:, head, u * kernel_size + v, w, i, j] * value[:, c, row, column]
                                )
    return out


@every_geometry
def test_equals_a_direct_loop(geometry):
    value, weight = operands(4, 3, heads=2, **geometry)
    want = loop(value, weight, **geometry)
    assert relative_error(local_aggregation(value, weight, **geometry), want) < 1e-12
    assert relative_error(local_aggregation_reference(value, weight, **geometry), want) < 1e-12


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (1, 4), (2, 1)])
@pytest.mark.parametrize("geometry", [dict(), dict(groups=2), dict(kernel_size=5), dict(kernel_size=1)], ids=str)
def test_the_form_on_planes_equals_the_reference(geometry, size):
    value, weight = operands(*size, **geometry)
    got = aggregate_planes(value, weight[:, 0].transpose(1, 2), groups=geometry.get("groups", 1))
    assert got.is_contiguous()
    assert relative_error(got, local_aggregation_reference(value, weight, **geometry)) < 1e-12


@every_geometry
@pytest.mark.parametrize("heads", [1, 3])
def test_value_and_gradients_equal_the_reference(geometry, heads):
    inputs = [tensor.requires_grad_() for tensor in operands(9, 7, heads=heads, **geometry)]
    got, want = local_aggregation(*inputs, **geometry), local_aggregation_reference(*inputs, **geometry)
    assert relative_error(got, want) < 1e-12
    incoming = torch.randn_like(want)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, incoming), torch.autograd.grad(want, inputs, incoming), strict=True
    ):
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("geometry", [dict(), dict(stride=2, groups=2), dict(dilation=2)], ids=str)
def test_gradients_of_first_and_second_order(geometry):
    given = operands(3, 2, heads=2, channels=4, num_weights=2, batch=1, **geometry)
    inputs = [tensor.requires_grad_() for tensor in given]
    assert torch.autograd.gradcheck(lambda *args: local_aggregation(*args, **geometry), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: local_aggregation(*args, **geometry), inputs)


def test_only_the_gradients_asked_for():
    value, weight = operands(5, 4)
    value.requires_grad_()
    (got,) = torch.autograd.grad(local_aggregation(value, weight).square().sum(), value)
    (want,) = torch.autograd.grad(local_aggregation_reference(value, weight).square().sum(), value)
    assert relative_error(got, want) < 1e-12


@pytest.mark.parametrize("batch", [1, 2])
def test_layouts_agree_and_the_result_is_channels_last(batch):
    value, weight = operands(6, 5, batch=batch)
    want = local_aggregation_reference(value, weight)
    packed = weight[:, 0].permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)[:, None]
    for v in (value, value.to(memory_format=torch.channels_last)):
        for w in (weight, packed):
            got = local_aggregation(v, w)
            assert got.is_contiguous(memory_format=torch.channels_last)
            assert got.stride(0) == got[0].numel()  # a batch of 1 too: torch's batch norm relies on it
            assert relative_error(got, want) < 1e-12


def test_weights_may_come_with_their_groups_apart():
    value, weight = operands(5, 4)
    want = local_aggregation(value, weight, groups=2)
    assert torch.equal(local_aggregation(value, weight.unflatten(3, (2, 2)), groups=2), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_once(dtype):
    value, weight = (tensor.to(dtype) for tensor in operands(7, 6))
    got = local_aggregation(value, weight)
    assert got.dtype == dtype
    assert torch.equal(got, local_aggregation(value.float(), weight.float()).to(dtype))


def test_a_weight_of_one_at_one_tap_shifts_the_map():
    value, weight = operands(4, 5)
    weight.zero_()
    weight[:, :, 5] = 1  # row 1, column 2: the neighbour to the right
    want = torch.nn.functional.pad(value[..., 1:], (0, 1))
    assert torch.equal(local_aggregation(value, weight), want)


def test_channels_share_weights_with_a_stride():
    value, weight = torch.ones(1, 8, 1, 1), torch.arange(4.0).view(1, 1, 1, 4, 1, 1)
    assert local_aggregation(value, weight, kernel_size=1).flatten().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert local_aggregation(value, weight, kernel_size=1, groups=2).flatten().tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_functional_transforms_take_it():
    value, weight = operands(4, 3)
    gradient = torch.func.grad(lambda v: local_aggregation(v, weight).square().sum())(value)
    (want,) = torch.autograd.grad(local_aggregation(value.requires_grad_(), weight).square().sum(), value)
    assert relative_error(gradient, want) < 1e-12


def test_the_layer_counts_its_multiply_adds():
    value, weight = operands(6, 5, stride=2, heads=2)
    layer = LocalAggregation(stride=2)
    out = layer(value, weight)
    assert torch.equal(out, local_aggregation(value, weight, stride=2))
    assert layer.kernel_macs((value, weight), out) == 9 * 2 * 16 * 3 * 3


@pytest.mark.parametrize(
    ("value", "weight", "options", "message"),
    [
        ((8, 4, 4), (1, 1, 9, 4, 4, 4), {}, r"value of shape \(8, 4, 4\) .* expected \(B, C, H, W\)"),
        ((1, 8, 4, 4), (1, 1, 4, 4, 4, 4), dict(kernel_size=2), "kernel_size 2 must be odd"),
        ((1, 8, 4, 4), (1, 1, 9, 4, 4, 4), dict(kernel_size=5), "weight has 9 taps; a neighbourhood of 5 has 25"),
        ((1, 8, 4, 4), (1, 1, 9, 3, 4, 4), {}, "3 channels of weights must divide the 8 channels of values"),
        ((1, 8, 4, 4), (1, 1, 9, 1, 4, 4), dict(groups=2), "1 channels of weights must .* multiple of the 2 groups"),
        (
            (1, 8, 4, 4),
            (1, 1, 9, 4, 4, 4),
            dict(stride=2),
            r"weight is for \(4, 4\) positions; the output has \(2, 2\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_named(value, weight, options, message):
    with pytest.raises(ValueError, match=message) as error:
        local_aggregation(torch.zeros(value), torch.zeros(weight), **options)
    assert "\n" not in str(error.value)
