"""Efficient attention against plain loops, pool by pool."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.nextvit import EfficientAttention as TimmEfficientAttention
from torch import nn
from torch.export import Dim

from convattn.mixers.efficient_attention import EfficientAttention, TokenPool
from toys import randomise_norms, relative_error


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def e_mhsa(dim: int = 12, head_dim: int = 4, **options) -> EfficientAttention:
    mixer = EfficientAttention(dim, head_dim=head_dim, **options).double().eval()
    randomise_norms(mixer)
    return mixer


def runs(positions: list, length: int, keep_rest: bool) -> list[list]:
    found = [positions[start : start + length] for start in range(0, len(positions), length)]
    return [run for run in found if len(run) == length or keep_rest]


# The pool


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 7), (3, 13), (1, 9), (6, 6)])
@pytest.mark.parametrize("sr_ratio", [1, 2, 3])
@pytest.mark.parametrize("kind", ["1d", "1d_full", "2d"])
def test_pool_averages_the_positions_it_says(kind, sr_ratio, size):
    x = maps(2, 3, *size)
    height, width = size
    if kind == "2d":
        groups = [
            [(i, j) for i in range(top, min(top + sr_ratio, height)) for j in range(left, min(left + sr_ratio, width))]
            for top in range(0, height, sr_ratio)
            for left in range(0, width, sr_ratio)
        ]
    else:
        rows = [(i, j) for i in range(height) for j in range(width)]
        groups = runs(rows, sr_ratio**2, keep_rest=kind == "1d_full")
    if not groups:
        with pytest.raises(ValueError, match="smaller than the run"):
            TokenPool(sr_ratio, kind)(x)
        return
    want = torch.stack([torch.stack([x[:, :, i, j] for i, j in group]).mean(0) for group in groups], dim=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert relative_error(TokenPool(sr_ratio, kind)(x.contiguous(memory_format=layout)).flatten(2), want) < 1e-12


def test_the_default_pool_leaves_the_last_positions_out():
    x = maps(1, 2, 5, 7)  # 35 positions: two runs of 16 and three left over
    moved = x.clone()
    moved[:, :, 4, 4:] += 1
    assert torch.equal(TokenPool(4)(moved), TokenPool(4)(x))
    for kind in ("1d_full", "2d"):
        assert not torch.equal(TokenPool(4, kind)(moved), TokenPool(4, kind)(x))


def test_pools_agree_where_every_window_is_a_run():
    column = maps(1, 2, 1, 8)  # in a map one position high, a window of 2 × 2 is cut to 1 × 2
    assert torch.equal(TokenPool(2, "1d")(column), TokenPool(2, "1d_full")(column))
    assert torch.allclose(TokenPool(2, "2d")(column), column.unflatten(3, (4, 2)).mean(4))


def test_a_map_smaller_than_a_run_is_refused_with_the_rule():
    message = r"a map of 3 x 5 positions is smaller than the run of sr² = 16 .* give it 16 positions or more, or choose"
    with pytest.raises(ValueError, match=message) as error:
        e_mhsa(sr_ratio=4)(maps(1, 12, 3, 5))
    assert "\n" not in str(error.value)
    for kind in ("1d_full", "2d"):
        assert e_mhsa(sr_ratio=4, token_pool=kind)(maps(1, 12, 3, 5)).isfinite().all()


# The attention


@pytest.mark.parametrize("token_pool", ["1d", "1d_full", "2d"])
@pytest.mark.parametrize("sr_ratio", [1, 2])
def test_equals_a_loop_over_images_heads_and_positions(sr_ratio, token_pool):
    mixer, x = e_mhsa(sr_ratio=sr_ratio, token_pool=token_pool), maps(2, 12, 3, 5)
    pooled = x
    if sr_ratio > 1:
        norm, averages = mixer.norm, TokenPool(sr_ratio, token_pool)(x)
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        pooled = (averages - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    query = x.flatten(2).transpose(1, 2) @ mixer.q.weight.flatten(1).T + mixer.q.bias
    tokens = pooled.flatten(2).transpose(1, 2)
    key, value = (tokens @ layer.weight.flatten(1).T + layer.bias for layer in (mixer.k, mixer.v))
    mixed = torch.zeros_like(query)
    for image in range(2):
        for head in range(3):
            own = slice(4 * head, 4 * head + 4)
            for position in range(15):
                scores = (key[image, :, own] * query[image, position, own]).sum(1) / 4**0.5
                weights = scores.exp() / scores.exp().sum()
                mixed[image, position, own] = (weights[:, None] * value[image, :, own]).sum(0)
    want = (mixed @ mixer.proj.weight.flatten(1).T + mixer.proj.bias).transpose(1, 2).unflatten(2, (3, 5))
    assert relative_error(mixer(x), want) < 1e-12


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("sr_ratio", "size"), [(1, (3, 4)), (2, (5, 7)), (4, (9, 11))])
def test_agrees_with_timms_on_the_same_weights(sr_ratio, size, training):
    theirs = TimmEfficientAttention(12, head_dim=4, sr_ratio=sr_ratio).double()
    ours = e_mhsa(sr_ratio=sr_ratio)
    theirs.load_state_dict({key: t.flatten(1) if t.ndim == 4 else t for key, t in ours.state_dict().items()})
    ours.train(training), theirs.train(training)
    x = maps(2, 12, *size)
    want = theirs(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, size)
    assert relative_error(ours(x), want) < 1e-12
    statistics = {key: tensor for key, tensor in theirs.state_dict().items() if key.startswith("norm.")}
    assert all(torch.allclose(ours.state_dict()[key].double(), tensor.double()) for key, tensor in statistics.items())


def test_equal_values_pass_through_whatever_the_scores():
    mixer = e_mhsa(sr_ratio=2)
    nn.init.zeros_(mixer.v.weight)
    out = mixer(maps(2, 12, 4, 4))
    want = F.linear(mixer.v.bias, mixer.proj.weight.flatten(1), mixer.proj.bias)
    assert relative_error(out, want.view(1, 12, 1, 1).expand(2, 12, 4, 4)) < 1e-12


def test_without_a_pool_shuffled_positions_give_shuffled_results():
    mixer, x, order = e_mhsa(), maps(1, 12, 1, 10), torch.randperm(10)
    assert relative_error(mixer(x[..., order]), mixer(x)[..., order]) < 1e-12


@pytest.mark.parametrize(("sr_ratio", "qkv_bias"), [(1, True), (2, True), (2, False)])
def test_parameters(sr_ratio, qkv_bias):
    mixer = EfficientAttention(12, head_dim=4, sr_ratio=sr_ratio, qkv_bias=qkv_bias)
    norm = 24 if sr_ratio > 1 else 0
    assert sum(p.numel() for p in mixer.parameters()) == 4 * 144 + 12 + 36 * qkv_bias + norm


@pytest.mark.parametrize("token_pool", ["1d", "1d_full", "2d"])
def test_gradients(token_pool):
    mixer = e_mhsa(4, 2, sr_ratio=2, token_pool=token_pool)
    assert torch.autograd.gradcheck(mixer, (maps(1, 4, 3, 2).requires_grad_(),))


@pytest.mark.parametrize("token_pool", ["1d", "1d_full", "2d"])
@pytest.mark.parametrize(
    "options", [dict(sr_ratio=1), dict(sr_ratio=2), dict(sr_ratio=2, qkv_bias=False), dict(sr_ratio=3)]
)
def test_fused_form_agrees_with_a_norm_in_front_and_without(options, token_pool):
    mixer, x = e_mhsa(**options, token_pool=token_pool), maps(2, 12, 7, 5)
    pre_norm = nn.BatchNorm2d(12).double().eval()
    randomise_norms(pre_norm)
    before = {key: tensor.clone() for key, tensor in mixer.state_dict().items()}
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last):
            held = x.contiguous(memory_format=layout)
            assert relative_error(mixer.fused()(held), mixer(x)) < 1e-12
            assert relative_error(mixer.fused(pre_norm)(held), mixer(pre_norm(x))) < 1e-12
    assert not any(isinstance(module, nn.BatchNorm2d) for module in mixer.fused(pre_norm).modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in mixer.state_dict().items())


@pytest.mark.parametrize("form", ["plain", "fused"])
def test_one_exported_graph_serves_every_batch_and_size(form):
    mixer = e_mhsa(sr_ratio=2) if form == "plain" else e_mhsa(sr_ratio=2).fused()
    shapes = [(2, 12, 10, 14), (1, 12, 10, 14), (1, 12, 13, 9), (3, 12, 5, 6)]
    images = [maps(*shape).contiguous(memory_format=torch.channels_last) for shape in shapes]
    dynamic = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    exported = torch.export.export(mixer, (images[0],), dynamic_shapes=dynamic).module()
    for x in images:
        assert relative_error(exported(x), mixer(x)) < 1e-12


def test_a_layer_norm_stays_in_the_fused_form():
    mixer, x = e_mhsa(sr_ratio=2, norm_layer=LayerNorm2d), maps(2, 12, 4, 6)
    fused = mixer.fused()
    assert isinstance(fused.norm, LayerNorm2d)
    assert relative_error(fused(x), mixer(x)) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(head_dim=5), "head_dim 5 does not divide dim 12; the nearest that does is 4"),
        (dict(sr_ratio=0), "sr_ratio 0 must be 1 or more"),
        (dict(sr_ratio=2, token_pool="3d"), "token_pool '3d' is unknown; choose one of 1d, 1d_full, 2d"),
        (dict(sr_ratio=1, token_pool="3d"), "token_pool '3d' is unknown"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientAttention(12, **{"head_dim": 4, **options})
