"""Next-ViT: each option of the paper in a case that can be worked out, and the inference form of each."""

import pytest
import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import Bottleneck
from torch import nn

import convattn
from convattn.backbones.next_vit import (
    OTHER_BLOCKS,
    NextConvBlock,
    NextTransformerBlock,
    NextViTConfig,
    TransformerStyleBlock,
)
from toys import build_toy, lively, randomise_norms, relative_error

TOY = "nextvit_small"
AUTHORS = ["nextvit_small", "nextvit_base", "nextvit_large"]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return convattn.create_model(name, **options)


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.stages for block in stage.blocks]


# Options of the paper


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, ["CCC", "CCCT", "CCCCTCCCCT", "CCT"]),
        (dict(depths=(3, 4, 20, 3)), ["CCC", "CCCT", "CCCCT" * 4, "CCT"]),
        (dict(convs_per_transformer=(3, 3, 1, 2)), ["CCC", "CCCT", "CTCTCTCTCT", "CCT"]),
        (dict(convs_per_transformer=(3, 0, 9, 2)), ["CCC", "TTTT", "CCCCCCCCCT", "CCT"]),
        (dict(stage_pattern="CCCT"), ["CCC", "CCCC", "C" * 10, "TTT"]),
        (dict(stage_pattern="CCTT"), ["CCC", "CCCC", "T" * 10, "TTT"]),
        (dict(stage_pattern="CTTT"), ["CCC", "TTTT", "T" * 10, "TTT"]),
        (dict(stage_pattern="TTTT"), ["TTT", "TTTT", "T" * 10, "TTT"]),
        (dict(stage_pattern="CCCC"), ["CCC", "CCCC", "C" * 10, "CCC"]),
    ],
)
def test_hybrid_strategies_put_the_blocks_where_they_say(options, stages):
    model = on_meta("nextvit_small", **options)
    kinds = {NextConvBlock: "C", NextTransformerBlock: "T"}
    assert ["".join(kinds[type(block)] for block in stage.blocks) for stage in model.stages] == stages
    cfg = NextViTConfig()
    widths = [cfg.width(index, blocks[-1]) for index, blocks in enumerate(stages)]
    assert [info["num_chs"] for info in model.feature_info] == widths
    assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_each_group_of_n_and_one_adds_the_same():
    """Growing L in stage 3 from 2 to 4 to 6 makes S, B and L; a group costs what its blocks have."""
    small, base, large = (num_parameters(on_meta(name)) for name in AUTHORS)
    group = sum(num_parameters(block) for block in on_meta("nextvit_small").stages[2].blocks[5:])
    assert base - small == large - base == 2 * group
    wider = on_meta("nextvit_small", depths=(3, 4, 12, 3), convs_per_transformer=(3, 3, 5, 2))  # N from 4 to 5
    one = num_parameters(on_meta("nextvit_small").stages[2].blocks[1])
    assert num_parameters(wider) - small == 2 * one


def transformer_block(ratio: float, dim: int = 64, head_dim: int = 8, **options) -> NextTransformerBlock:
    cfg = NextViTConfig(
        conv_dims=(dim,) * 4, transformer_dims=(dim,) * 4, head_dim=head_dim, mix_ratio=ratio, **options
    )
    return NextTransformerBlock(dim, dim, 1, cfg, sr_ratio=2, drop_path=0.4)


@pytest.mark.parametrize(
    ("ratio", "attention_dim"), [(0, 0), (0.05, 8), (0.25, 16), (0.5, 32), (0.75, 48), (0.8, 48), (0.9, 56), (1, 64)]
)
def test_the_shrink_ratio_divides_the_width(ratio, attention_dim):
    block, dim = transformer_block(ratio), 64
    conv_dim, first = dim - attention_dim, attention_dim or dim
    want = 2 * dim + (dim * 128 + 128) + (128 * dim + dim)  # norm2 and the MLP of twice the width
    if first != dim:
        want += dim * first + 2 * first  # patch_embed
    if attention_dim:
        want += 2 * attention_dim + 4 * (attention_dim**2 + attention_dim) + 2 * attention_dim
    if conv_dim:
        want += conv_dim * 8 * 9 + 2 * conv_dim + conv_dim**2
        if first != conv_dim:
            want += first * conv_dim + 2 * conv_dim  # projection
    assert num_parameters(block) == want
    assert block(torch.randn(2, dim, 6, 5)).shape == (2, dim, 6, 5)


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 1])
def test_a_transformer_block_is_its_formula(ratio):
    block = transformer_block(ratio).double().eval()
    randomise_norms(block)
    x = torch.randn(2, 64, 6, 5, dtype=torch.float64)
    got, fused = block(x), block.fused()(x)
    x = block.patch_embed(x)
    if ratio:
        x = x + block.e_mhsa(block.norm1(x))
    if ratio < 1:
        z = block.projection(x)
        z = z + block.mhca(z)
        x = torch.cat([x, z], 1) if ratio else z
    want = x + block.mlp(block.norm2(x))
    assert relative_error(got, want) < 1e-12 and relative_error(fused, want) < 1e-12


def test_a_convolution_block_is_its_formula():
    block = NextConvBlock(8, 16, 2, NextViTConfig(head_dim=8), 0.0).double().eval()
    randomise_norms(block)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    pooled = torch.stack(
        [x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in range(0, 5, 2) for j in range(0, 7, 2)], 2
    ).unflatten(2, (3, 4))
    y = block.patch_embed.norm(block.patch_embed.conv(pooled))
    y = y + block.mhca(y)
    assert relative_error(block(x), y + block.mlp(block.norm(y))) < 1e-12


def test_drop_path_rises_linearly_and_is_shared_out_by_the_ratio():
    model = build_toy(TOY, drop_path_rate=0.6)  # seven blocks
    for index, block in enumerate(blocks(model)):
        rate = 0.1 * index
        assert block.mlp_drop_path.drop_prob == pytest.approx(rate)
        if isinstance(block, NextTransformerBlock):
            assert block.mhsa_drop_path.drop_prob == pytest.approx(0.75 * rate)
            assert block.mhca_drop_path.drop_prob == pytest.approx(0.25 * rate)
        else:
            assert block.attn_drop_path.drop_prob == pytest.approx(rate)
    assert all(m.drop_prob == 0 for m in build_toy(TOY).modules() if isinstance(m, DropPath))


def test_drop_path_drops_a_branch_of_whole_images():
    block = transformer_block(0.75).train()
    x = torch.ones(256, 48, 2, 2)
    dropped = block.mhsa_drop_path(x).flatten(1)
    kept = dropped.any(1)
    assert 0.5 < kept.float().mean() < 0.9
    assert torch.equal(dropped[kept], torch.full_like(dropped[kept], 1 / 0.7))


@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["bn", "ln"])
def test_norm_and_activation_are_exchanged_everywhere(norm, act):
    model = build_toy(TOY, norm=norm, act=act)
    kinds = [type(module) for module in model.modules()]
    norms = {"bn": nn.BatchNorm2d, "ln": LayerNorm2d}
    count = sum(isinstance(module, norms[norm]) for module in model.modules())
    assert count == sum(issubclass(kind, nn.BatchNorm2d | nn.LayerNorm) for kind in kinds)
    assert count == sum(isinstance(m, nn.BatchNorm2d) for m in build_toy(TOY).modules())
    assert (nn.GELU in kinds, nn.ReLU in kinds) == (act == "gelu", act == "relu")
    assert num_parameters(model) == num_parameters(build_toy(TOY))


OTHERS = {"bottleneck": Bottleneck, "convnext": ConvNeXtBlock, "transformer": TransformerStyleBlock}


@pytest.mark.parametrize("conv_block", OTHERS)
def test_other_blocks_stand_where_the_convolution_blocks_are(conv_block):
    model = build_toy(TOY, conv_block=conv_block)
    kinds = [type(block) if isinstance(block, NextTransformerBlock) else type(block[1]) for block in blocks(model)]
    other = OTHERS[conv_block]
    assert kinds == [other, other, *[NextTransformerBlock, other] * 2, NextTransformerBlock]
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 41, 31), intermediates_only=True)
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 11, 8), (32, 6, 4), (32, 3, 2), (32, 2, 1)]


@pytest.mark.parametrize(
    ("conv_block", "parameters"),
    [
        # width 64: 1×1 to 16, 3×3, 1×1 back, a norm behind each
        ("bottleneck", 64 * 16 + 9 * 16 * 16 + 16 * 64 + 2 * (16 + 16 + 64)),
        # depthwise 7×7 with bias, a norm, 64 -> 256 -> 64 with biases
        ("convnext", 49 * 64 + 64 + 128 + (64 * 256 + 256) + (256 * 64 + 64)),
        # two norms, four projections, 64 -> 256 -> 64
        ("transformer", 256 + 4 * (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64)),
    ],
)
def test_other_blocks_are_what_the_field_calls_so(conv_block, parameters):
    block = OTHER_BLOCKS[conv_block](64, 8, 0.0)
    assert num_parameters(block) == parameters
    assert block(torch.randn(2, 64, 5, 3)).shape == (2, 64, 5, 3)


# The form for segmentation


def test_extra_norms_are_on_the_path_and_are_the_levels():
    model = build_toy("nextvit_small_extra_norm").double()
    assert isinstance(model.norm, nn.Identity)
    images = torch.randn(2, 3, 41, 31, dtype=torch.float64)
    with torch.no_grad():
        final, levels = model.forward_intermediates(images)
        x = model.stem(images)
        for stage, level in zip(model.stages, levels, strict=True):
            x = stage.norm(stage.blocks(x))
            assert torch.equal(level, x)
        assert torch.equal(final, x)


def test_a_plain_model_has_raw_levels_and_normalises_once_at_the_end():
    model = build_toy(TOY)
    images = torch.randn(2, 3, 41, 31)
    with torch.no_grad():
        final, levels = model.forward_intermediates(images)
        assert torch.equal(final, model.norm(levels[-1]))
    assert all(isinstance(stage.norm, nn.Identity) for stage in model.stages)


# The inference form


@pytest.mark.parametrize("size", [(32, 32), (37, 51), (75, 29)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(extra_norm=True),
        dict(token_pool="2d"),
        dict(token_pool="1d_full"),
        dict(norm="ln", act="gelu"),
        dict(norm="ln"),
        dict(act="gelu"),
        dict(mix_ratio=0),
        dict(mix_ratio=0.5),
        dict(mix_ratio=1),
        dict(mix_ratio=1, norm="ln"),
        dict(stage_pattern="CCTT", stem_stride=2),
        dict(conv_block="bottleneck"),
        dict(conv_block="convnext"),
        dict(conv_block="transformer"),
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "plain",
)
def test_fused_form_agrees_in_float64_on_random_statistics(options, size):
    model = lively(build_toy(TOY, **options)).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    fused = convattn.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-9
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_the_report_of_fusing_names_every_block():
    fused = convattn.fuse(build_toy(TOY))
    kinds = [part.kind for part in fused.fusion_report]
    assert kinds == ["ConvUnit"] * 4 + [type(block).__name__ for block in blocks(build_toy(TOY))] + ["TrunkBatchNorm2d"]
    assert all(part.form for part in fused.fusion_report)


SUFFIX_AND_POOL = [(suffix, pool) for suffix in (".onnx", ".pt2") for pool in ("1d", "1d_full", "2d")]


@pytest.mark.parametrize(
    ("suffix", "token_pool"),
    [SUFFIX_AND_POOL[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in SUFFIX_AND_POOL[1:])],
)
def test_exports_with_any_batch_and_size(suffix, token_pool, tmp_path):
    model = lively(build_toy(TOY, token_pool=token_pool, depths=(1, 2, 1, 1), convs_per_transformer=(1, 1, 0, 0)))
    report = convattn.export(model, tmp_path / f"model{suffix}", input_size=(75, 107), dynamic="all")
    assert {check.input_shape[0] for check in report.checks} == {1, 2, 3}
    assert report.max_relative_error < 1e-5
