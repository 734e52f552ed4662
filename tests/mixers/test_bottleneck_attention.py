"""BAM against its formula and its published size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convattn.mixers.bottleneck_attention import BottleneckAttention
from toys import randomise_norms, relative_error


def attention(**options):
    block = BottleneckAttention(16, reduction_ratio=4, **options).double().eval()
    randomise_norms(block)
    return block


def normed(x, norm):
    shape = (-1, *[1] * (x.ndim - 2))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_equals_its_formula(combine):
    block = attention(combine=combine, dilation=2)
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64)
    first, norm, last = block.channel[2], block.channel[3], block.channel[5]
    channel = normed(x.mean((2, 3)) @ first.weight.T + first.bias, norm).relu() @ last.weight.T + last.bias
    spatial = x
    for index, dilation in ((0, 1), (3, 2), (6, 2)):
        conv = block.spatial[index]
        spatial = F.conv2d(spatial, conv.weight, conv.bias, padding=0 if index == 0 else dilation, dilation=dilation)
        spatial = normed(spatial, block.spatial[index + 1]).relu()
    spatial = F.conv2d(spatial, block.spatial[9].weight, block.spatial[9].bias)
    channel = channel[:, :, None, None]
    logits = channel + spatial if combine == "sum" else channel * spatial
    assert relative_error(block(x), x + x * logits.sigmoid()) < 1e-12


def test_three_of_them_in_resnet50_print_the_published_size():
    with torch.device("meta"):
        added = sum(p.numel() for dim in (256, 512, 1024) for p in BottleneckAttention(dim).parameters())
    assert f"{(25_557_032 + added) / 1e6:.2f}" == "25.92"


def test_amplifies_at_most_twice():
    block, x = attention(), torch.rand(2, 16, 5, 5, dtype=torch.float64) + 0.1
    ratio = block(x) / x
    assert ratio.min() > 1 and ratio.max() < 2


@pytest.mark.parametrize("combine", ["sum", "product"])
def test_fused_form_agrees(combine):
    block, x = attention(combine=combine), torch.randn(2, 16, 9, 8, dtype=torch.float64)
    fused = block.fused()
    assert relative_error(fused(x), block(x)) < 1e-12
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert isinstance(block.spatial[1], nn.BatchNorm2d)


def test_gradients():
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention(), (x,), fast_mode=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(reduction_ratio=32), "reduction_ratio 32 must be from 1 to the 16 channels"),
        (dict(dilation=0), "dilation 0 must be 1 or more"),
        (dict(combine="max"), "combine 'max' is unknown; choose sum or product"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message):
        BottleneckAttention(16, **options)
