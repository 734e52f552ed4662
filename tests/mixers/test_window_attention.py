"""Window attention: each window by itself, cut at the edges, shifted or not; timm's Swin where it divides the map."""

import copy

import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from convattn.mixers.window_attention import WindowAttention
from convattn.ops.attention import multi_head_attention_reference
from toys import relative_error


def windows(size, side, shift):
    """The slices along one side that a map is cut into."""
    starts = [0, *range(shift, size, side)] if shift else list(range(0, size, side))
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True) if start < stop]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (9, 6), (3, 5), (1, 1)])
def test_every_window_by_itself(size, shift):
    mixer = WindowAttention(8, head_dim=4, window_size=4, shift=shift).double()
    nn.init.zeros_(mixer.attention.relative_position_bias_table)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    want = torch.empty_like(x)
    attention = mixer.attention
    for rows in windows(size[0], 4, 2 * shift):
        for columns in windows(size[1], 4, 2 * shift):
            part = x[:, :, rows, columns]
            query, key, value = attention.qkv(part.flatten(2).mT).chunk(3, -1)
            mixed = attention.proj(multi_head_attention_reference(query, key, value, 2))
            want[:, :, rows, columns] = mixed.mT.unflatten(2, part.shape[2:])
    assert relative_error(mixer(x), want) < 1e-12


@pytest.mark.parametrize("shift", [False, True])
def test_is_swins_where_the_window_divides_the_map(shift):
    block = SwinTransformerBlock(16, (8, 12), num_heads=2, window_size=4, shift_size=2 * shift).double()
    mixer = WindowAttention(16, head_dim=8, window_size=4, shift=shift).double()
    mixer.attention.load_state_dict(block.attn.state_dict())
    x = torch.randn(2, 16, 8, 12, dtype=torch.float64)
    with torch.no_grad():
        want = block._attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert relative_error(mixer(x), want) < 1e-12


def test_gradcheck():
    mixer = WindowAttention(4, head_dim=2, window_size=2, shift=True).double()
    assert torch.autograd.gradcheck(mixer, torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True))


def test_exports_for_any_size():
    mixer = WindowAttention(8, head_dim=4, window_size=4, shift=True).eval()
    sides = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(copy.deepcopy(mixer), (torch.randn(2, 8, 9, 10),), dynamic_shapes=(sides,)).module()
    other = torch.randn(3, 8, 14, 7)
    with torch.no_grad():
        assert relative_error(program(other), mixer(other)) < 1e-5


@pytest.mark.parametrize(
    ("dim", "options", "message"),
    [
        (40, {}, r"head_dim 32 does not divide dim 40; the nearest that does is 40"),
        (32, {"window_size": 0}, r"window_size 0 must be 1 or more"),
    ],
)
def test_refusals(dim, options, message):
    with pytest.raises(ValueError, match=message):
        WindowAttention(dim, **options)
