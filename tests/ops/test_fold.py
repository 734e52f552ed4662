import pytest
import torch
from torch import nn

from convattn.ops.fold import add_identity_tap, merge_depthwise, rows_of_conv, widen_groups
from toys import relative_error


def depthwise(dim: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias).double()


def test_identity_tap_adds_the_input():
    conv = depthwise(6, 5)
    before = conv.weight.clone()
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    assert relative_error(add_identity_tap(conv)(x), x + conv(x)) < 1e-12
    assert torch.equal(conv.weight, before)


@pytest.mark.parametrize("kernels", [(3,), (3, 5, 7, 9), (7, 3)])
def test_merged_depthwise_equals_the_separate_ones(kernels):
    convs = [depthwise(4, kernel, bias=index % 2 == 0) for index, kernel in enumerate(kernels)]
    weight, bias = merge_depthwise(convs)
    dim, largest = 4 * len(kernels), max(kernels)
    assert weight.shape == (dim, 1, largest, largest) and bias.shape == (dim,)
    x = torch.randn(2, dim, 6, 5, dtype=torch.float64)
    want = torch.cat([conv(part) for conv, part in zip(convs, x.split(4, 1), strict=True)], 1)
    got = nn.functional.conv2d(x, weight, bias, padding=largest // 2, groups=dim)
    assert relative_error(got, want) < 1e-12


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "expected"),
    [(8, 4, 8, 2), (4, 16, 32, 4), (4, 40, 40, 2), (3, 4, 4, 3), (4, 4, 1, 4)],
)
def test_widened_groups_give_the_same_map(groups, inputs, outputs, expected):
    """Joined to sixteen channels and more at either end; as they are where they do not divide so."""
    conv = nn.Conv2d(groups * inputs, groups * outputs, 3, 2, 1, groups=groups).double()
    wide = widen_groups(conv, 16)
    assert wide.groups == expected
    x = torch.randn(2, groups * inputs, 5, 7, dtype=torch.float64)
    assert relative_error(wide(x), conv(x)) < 1e-12


def test_widened_groups_of_a_convolution_without_bias():
    conv = nn.Conv2d(16, 16, 1, groups=4, bias=False).double()
    wide = widen_groups(conv, 8)
    x = torch.randn(1, 16, 2, 3, dtype=torch.float64)
    assert wide.groups == 2 and wide.bias is None
    assert relative_error(wide(x), conv(x)) < 1e-12


@pytest.mark.parametrize("conv", [nn.Conv2d(6, 8, 1), depthwise(8, 3), nn.Conv2d(6, 8, 3, padding=1, bias=False)])
def test_rows_of_a_convolution_give_these_channels_of_its_map(conv):
    conv = conv.double()
    x = torch.randn(1, conv.in_channels, 5, 4, dtype=torch.float64)
    part = rows_of_conv(conv, slice(2, 5))
    read = x if conv.groups == 1 else x[:, 2:5]
    assert relative_error(part(read), conv(x)[:, 2:5]) < 1e-12
    assert part.out_channels == 3 and conv.out_channels == 8
