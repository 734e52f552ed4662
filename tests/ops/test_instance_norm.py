"""Instance norm against torch's."""

import pytest
import torch
from torch import nn

from convattn.ops.instance_norm import InstanceNorm2d
from toys import relative_error


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (1, 5), (2, 1)])
def test_equals_torchs(affine, size):
    ours, theirs = InstanceNorm2d(6, affine=affine).double(), nn.InstanceNorm2d(6, affine=affine).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    x = 3 + 2 * torch.randn(2, 6, *size, dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) < 1e-12
    assert relative_error(ours(x.to(memory_format=torch.channels_last)), theirs(x)) < 1e-12


def test_keeps_the_layout():
    x = torch.randn(2, 6, 5, 7).to(memory_format=torch.channels_last)
    assert InstanceNorm2d(6)(x).is_contiguous(memory_format=torch.channels_last)


def test_a_single_position_passes_as_it_is():
    x = torch.randn(2, 6, 1, 1)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        nn.InstanceNorm2d(6)(x)
    assert torch.equal(InstanceNorm2d(6, affine=True)(x), x)


def test_half_precision_computes_in_float32():
    x = (100 + torch.randn(1, 2, 16, 16)).bfloat16()
    got = InstanceNorm2d(2)(x)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, nn.InstanceNorm2d(2)(x.float())) < 0.01


def test_gradients():
    x = torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(InstanceNorm2d(2, affine=True).double(), (x,))
