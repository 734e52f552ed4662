"""Folding batch norms forwards and backwards is exact on random statistics."""

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import nn

from convattn.ops.fold import TrunkBatchNorm2d, fold_chain, fold_norms_linear
from convattn.ops.linear import Linear2d
from toys import randomise_norms, relative_error


def evaluated(module: nn.Module) -> nn.Module:
    randomise_norms(module)
    return module.double().eval()


def maps(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, 5, 3, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_norms_in_front_fold_into_layers_side_by_side(count, bias):
    norms = [evaluated(nn.BatchNorm2d(6)) for _ in range(count)]
    layers = [evaluated(Linear2d(6, 4, bias=bias)), evaluated(nn.Conv2d(6, 3, 1, bias=bias))]
    folded = fold_norms_linear(norms, layers)
    x = maps(6)
    normed = nn.Sequential(*norms)(x)
    assert relative_error(folded(x), torch.cat([layer(normed) for layer in layers], 1)) < 1e-12


@pytest.mark.parametrize("conv", [nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 3, padding=1, groups=2)], ids=str)
def test_a_norm_behind_folds_into_the_convolution(conv):
    conv, norm = evaluated(conv), evaluated(nn.BatchNorm2d(4))
    (folded,) = fold_chain(nn.Sequential(conv, norm))
    assert isinstance(folded, Linear2d if conv.kernel_size == (1, 1) else nn.Conv2d)
    x = maps(6)
    assert relative_error(folded(x), norm(conv(x))) < 1e-12


def test_another_norm_is_kept():
    conv, norm = evaluated(nn.Conv2d(6, 4, 3)), evaluated(LayerNorm2d(4))
    form = fold_chain(nn.Sequential(conv, norm))
    x = maps(6)
    assert len(form) == 2 and form[1] is not norm
    assert relative_error(form(x), norm(conv(x))) < 1e-12


def test_a_norm_on_its_own_becomes_a_scale_and_shift():
    norm = evaluated(TrunkBatchNorm2d(6))
    fused = norm.fused()
    x = maps(6)
    assert not isinstance(fused, nn.BatchNorm2d)
    assert relative_error(fused(x), norm(x)) < 1e-12
