import pytest
import torch
from torch import nn

from convattn.ops.fold import add_identity_tap, merge_depthwise
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
