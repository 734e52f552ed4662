"""Triplet attention against its formula and its published size."""

import pytest
import torch
import torch.nn.functional as F

from convattn.mixers.triplet_attention import PooledGate, TripletAttention
from toys import randomise_norms, relative_error


def attention(**options):
    block = TripletAttention(6, **options).double().eval()
    randomise_norms(block)
    return block


def weights_of(gate, pooled):
    """The weights of one gate from its pooled map (B, 2, ·, ·)."""
    kernel = gate.conv.weight
    hidden = F.conv2d(pooled, kernel, padding=kernel.shape[-1] // 2)[:, 0]
    norm = gate.norm
    return ((hidden - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias).sigmoid()


@pytest.mark.parametrize("spatial", [True, False])
def test_equals_its_formula(spatial):
    block = attention(kernel_size=3, spatial=spatial)
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    over_rows = torch.stack([x.amax(2), x.mean(2)], 1)  # (B, 2, C, W)
    over_columns = torch.stack([x.amax(3), x.mean(3)], 1).transpose(2, 3)  # (B, 2, H, C): the kernel sees it rotated
    parts = [
        x * weights_of(block.channel_width, over_rows)[:, :, None],
        x * weights_of(block.channel_height, over_columns).transpose(1, 2)[..., None],
    ]
    if spatial:
        over_channels = torch.stack([x.amax(1), x.mean(1)], 1)
        parts.append(x * weights_of(block.height_width, over_channels)[:, None])
    assert relative_error(block(x), sum(parts) / len(parts)) < 1e-12


def test_size_does_not_depend_on_the_width():
    for dim in (8, 2048):
        assert sum(p.numel() for p in TripletAttention(dim).parameters()) == 3 * (2 * 49 + 2)
    # Published: 25.56 M parameters for ResNet-50, which has 16 blocks and 25,557,032 of its own.
    assert round((25_557_032 + 16 * 300) / 1e6, 2) == 25.56


def test_fused_form_agrees():
    block = attention()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    fused = torch.nn.Sequential(block)
    before = block(x)
    for name, gate in list(fused[0].named_children()):
        setattr(fused[0], name, gate.fused())
    assert relative_error(fused(x), before) < 1e-12
    assert not [module for module in fused.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def test_gradients():
    gate = PooledGate(3).double().eval()
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gate, (x,))
    assert torch.autograd.gradcheck(attention(kernel_size=3), (torch.randn(1, 6, 3, 4).double().requires_grad_(),))


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size 4 must be odd"):
        TripletAttention(8, kernel_size=4)
