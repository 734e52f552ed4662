"""Spatial-reduction attention: ordinary attention to a reduced map."""

import pytest
import torch

from convattn.mixers.spatial_reduction_attention import SpatialReductionAttention
from convattn.ops.attention import multi_head_attention_reference
from toys import relative_error


@pytest.mark.parametrize(("sr_ratio", "size"), [(1, (3, 5)), (2, (6, 4)), (2, (7, 5)), (4, (4, 9))])
def test_attention_to_the_reduced_map(sr_ratio, size):
    mixer = SpatialReductionAttention(8, head_dim=4, sr_ratio=sr_ratio).double()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    attention = mixer.attention
    reduced = x
    if sr_ratio > 1:
        reduced = attention.norm(attention.sr(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert reduced.shape[2:] == (size[0] // sr_ratio, size[1] // sr_ratio)
    key, value = attention.kv(reduced.flatten(2).mT).chunk(2, -1)
    mixed = multi_head_attention_reference(attention.q(x.flatten(2).mT), key, value, 2)
    assert relative_error(mixer(x), attention.proj(mixed).mT.unflatten(2, size)) < 1e-12


def test_gradcheck():
    mixer = SpatialReductionAttention(4, head_dim=2, sr_ratio=2).double()
    assert torch.autograd.gradcheck(mixer, torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 24}, r"head_dim 24 does not divide dim 32; the nearest that does is"),
        ({"sr_ratio": 0}, r"sr_ratio 0 must be 1 or more"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialReductionAttention(32, **options)


def test_a_map_below_one_field_is_refused():
    with pytest.raises(ValueError, match=r"a map of 3 x 8 positions is smaller than one field of sr_ratio 4; give it"):
        SpatialReductionAttention(32, sr_ratio=4)(torch.randn(1, 32, 3, 8))
