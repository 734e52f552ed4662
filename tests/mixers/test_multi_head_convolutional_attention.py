"""Multi-head convolutional attention against a plain loop, and what it promises of heads and reach."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import nn

from convattn.mixers.multi_head_convolutional_attention import MultiHeadConvolutionalAttention
from toys import randomise_norms, relative_error


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def mhca(dim: int = 12, head_dim: int = 4, **options) -> MultiHeadConvolutionalAttention:
    mixer = MultiHeadConvolutionalAttention(dim, head_dim=head_dim, **options).double().eval()
    randomise_norms(mixer)
    return mixer


def test_equals_a_loop_over_positions_heads_and_taps():
    mixer, x = mhca(), maps(2, 12, 3, 4)
    weight, norm = mixer.group_conv3x3.weight, mixer.norm
    hidden = torch.zeros_like(x)
    for i in range(3):
        for j in range(4):
            for channel in range(12):
                head = slice(channel // 4 * 4, channel // 4 * 4 + 4)
                for u in range(max(0, i - 1), min(3, i + 2)):
                    for v in range(max(0, j - 1), min(4, j + 2)):
                        taps = weight[channel, :, u - i + 1, v - j + 1]
                        hidden[:, channel, i, j] += (x[:, head, u, v] * taps).sum(1)
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    hidden = (hidden - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    want = torch.einsum("oi,bihw->bohw", mixer.projection.weight.flatten(1), hidden.clamp(min=0))
    assert relative_error(mixer(x), want) < 1e-12


def test_a_head_sees_its_own_channels_only():
    mixer, x = mhca(), maps(1, 12, 2, 2)
    for channel in range(12):
        moved = x.clone()
        moved[:, channel] += 1
        changed = (mixer.group_conv3x3(moved) != mixer.group_conv3x3(x)).any(dim=(0, 2, 3)).nonzero().flatten()
        assert set(changed.tolist()) <= set(range(channel // 4 * 4, channel // 4 * 4 + 4))


def test_reach_is_one_position_each_way():
    mixer, x = mhca(), maps(1, 12, 9, 9)
    moved = x.clone()
    moved[:, :, 4, 4] += 1
    changed = (mixer(moved) != mixer(x)).any(dim=1)[0].nonzero()
    assert changed.amin(0).tolist() == [3, 3] and changed.amax(0).tolist() == [5, 5]


def test_a_zero_projection_writes_zero():
    mixer = mhca()
    nn.init.zeros_(mixer.projection.weight)
    assert not mixer(maps(1, 12, 3, 3)).any()


@pytest.mark.parametrize(("dim", "head_dim"), [(32, 32), (64, 32), (48, 16), (12, 1)])
def test_parameters(dim, head_dim):
    mixer = MultiHeadConvolutionalAttention(dim, head_dim=head_dim)
    assert sum(p.numel() for p in mixer.parameters()) == dim * head_dim * 9 + 2 * dim + dim * dim


def test_gradients():
    mixer = mhca(4, 2, act_layer=nn.GELU)  # ReLU has no derivative at 0
    assert torch.autograd.gradcheck(mixer, (maps(1, 4, 3, 3).requires_grad_(),))


@pytest.mark.parametrize("options", [{}, dict(act_layer=nn.GELU), dict(norm_layer=LayerNorm2d)])
def test_fused_form_agrees_in_the_layout_of_either_kind(options):
    mixer, x = mhca(**options), maps(2, 12, 7, 5)
    before = {key: tensor.clone() for key, tensor in mixer.state_dict().items()}
    fused = mixer.fused()
    with torch.no_grad():
        assert relative_error(fused(x), mixer(x)) < 1e-12
        assert relative_error(fused(x.to(memory_format=torch.channels_last)), mixer(x)) < 1e-12
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in mixer.state_dict().items())


def test_the_border_counts_as_zero_in_the_fused_form_too():
    """A norm behind the convolution folds exactly at the border; one in front of it would not."""
    mixer, x = mhca(), maps(1, 12, 1, 1)
    centre = F.conv2d(x, mixer.group_conv3x3.weight[:, :, 1:2, 1:2], groups=3)
    want = mixer.projection(mixer.norm(centre).relu())
    assert relative_error(mixer.fused()(x), want) < 1e-12


@pytest.mark.parametrize(
    ("head_dim", "message"),
    [
        (5, "head_dim 5 does not divide dim 12; the nearest that does is 4"),
        (0, "head_dim 0 does not divide dim 12; the nearest that does is 1"),
        (24, "head_dim 24 does not divide dim 12; the nearest that does is 12"),
    ],
)
def test_a_wrong_head_dim_is_named_with_its_rule(head_dim, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadConvolutionalAttention(12, head_dim=head_dim)
