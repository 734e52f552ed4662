"""Next-ViT against the authors' numbers and timm's model; each option of the paper in a case that can be worked out."""

import warnings

import pytest
import timm
import timm.data
import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models.nextvit import checkpoint_filter_fn as timms_names
from torch import nn

import convattn
from convattn.backbones.next_vit import NextConvBlock, NextTransformerBlock, NextViTConfig
from convattn.backbones.next_vit_blocks import BottleneckBlock, ConvNeXtStyleBlock, TransformerStyleBlock
from golden_file import float32_errors, golden_errors, smooth
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


# The authors' numbers


@pytest.mark.parametrize(
    ("variant", "gradient_tolerance"),
    # Attention saturates under random weights and amplifies rounding on the way back, the more so the deeper.
    [("nextvit_small", 1e-8), ("nextvit_small_extra_norm", 1e-8), ("nextvit_base", 1e-7), ("nextvit_large", 1e-4)],
)
def test_agrees_with_the_authors_model_in_float64(variant, gradient_tolerance):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the authors' code never reads it")
        errors = golden_errors(variant, torch.float64)
    assert errors.keys() == {"logits", "feat0", "feat1", "feat2", "feat3", "grad"}
    assert errors.pop("grad") < gradient_tolerance
    assert all(error < 1e-9 for error in errors.values()), errors


# Under these random weights attention saturates from stage 3 on: between two nearly equal scores rounding decides.
# Rounding weights and images alone moves the logits of small, base and large by 4e-6, 8e-5 and 1e-2 in float64. Float32
# moves them by 3e-5, 7e-3 and 1e-2, in timm's model by 6e-5, 2e-3 and 2e-2; level 4 by 7e-4, 5e-2 and 9e-2, in timm's
# by 8e-4, 2e-2 and 6e-2. The gradient has no digit left in any (0.1 in small, ours and timm's). So small is held to 4
# times what timm's shows, base and large to the levels in front; the next test compares the rest, on other weights.
@pytest.mark.parametrize(
    "variant",
    [
        "nextvit_small",
        *(pytest.param(f"nextvit_{form}", marks=pytest.mark.slow) for form in ("small_extra_norm", "base", "large")),
    ],
)
def test_outputs_agree_with_the_authors_model_in_float32(variant):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the authors' code never reads it")
        errors = golden_errors(variant, torch.float32)
    assert max(errors["feat0"], errors["feat1"]) < 1e-5, errors
    if "small" in variant:
        assert errors["feat2"] < 3e-4 and errors["feat3"] < 3e-3 and errors["logits"] < 3e-4, errors


@pytest.mark.parametrize(
    "variant", [AUTHORS[0], *(pytest.param(variant, marks=pytest.mark.slow) for variant in AUTHORS[1:])]
)
def test_float32_is_exact_where_attention_is_not_saturated(variant):
    model = convattn.create_model(variant).eval()
    randomise_norms(model)
    errors = float32_errors(smooth(model), torch.randn(1, 3, 96, 112))
    assert all(error < 1e-5 for error in errors.values()), errors


@pytest.mark.parametrize("variant", AUTHORS)
def test_timms_model_has_the_same_names_and_shapes(variant):
    with torch.device("meta"):
        theirs = timm.create_model(variant).state_dict()
    ours = on_meta(variant).state_dict()
    # its linear layers over tokens are 1×1 convolutions over maps here
    shapes = {key: t.shape for key, t in ours.items()}
    assert shapes == {
        key: (*t.shape, 1, 1) if ".e_mhsa." in key and t.ndim == 2 else t.shape for key, t in theirs.items()
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (75, 107)])
def test_timms_model_agrees_on_the_same_weights(size, training):
    depths = (1, 2, 5, 2)
    ours = convattn.create_model(
        "nextvit_small", depths=depths, convs_per_transformer=(1, 1, 4, 1), num_classes=9
    ).double()
    randomise_norms(lively(ours))
    theirs = timm.create_model("nextvit_small", depths=depths, num_classes=9, drop_path_rate=0).double()
    theirs.load_state_dict(timms_names(convattn.to_official(ours), theirs))
    ours.train(training), theirs.train(training)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    got, want = ours(images), theirs(images)
    assert relative_error(got, want) < 1e-9
    if training:
        got.square().sum().backward(), want.square().sum().backward()
        gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
        largest = max(gradient.abs().max() for gradient in gradients.values())
        for key, parameter in ours.named_parameters():  # (that of a key's bias is rounding: compare absolutely)
            assert (parameter.grad.view_as(gradients[key]) - gradients[key]).abs().max() < 1e-9 * largest, key


@pytest.mark.slow
@pytest.mark.parametrize("variant", AUTHORS)
def test_timms_whole_model_agrees_on_the_same_weights(variant):
    ours, theirs = convattn.create_model(variant).double().eval(), timm.create_model(variant).double().eval()
    randomise_norms(ours)
    theirs.load_state_dict(timms_names(convattn.to_official(ours), theirs))
    images = torch.randn(1, 3, 201, 267, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(ours(images), theirs(images)) < 1e-9
        levels = theirs.forward_intermediates(images, intermediates_only=True)
        for got, want in zip(ours.forward_intermediates(images, intermediates_only=True), levels, strict=True):
            assert relative_error(got, want) < 1e-9


def test_levels_round_up_as_the_authors_do():
    with torch.no_grad():
        levels = build_toy(TOY).forward_intermediates(torch.randn(1, 3, 201, 267), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in levels] == [(51, 67), (26, 34), (13, 17), (7, 9)]


@pytest.mark.slow
def test_a_detection_image_runs():
    model = convattn.create_model("nextvit_small_extra_norm", num_classes=0).eval()
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 800, 1333), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in levels] == [(200, 334), (100, 167), (50, 84), (25, 42)]
    assert all(level.isfinite().all() for level in levels)


def test_nano_has_levels_at_half_the_strides():
    model = convattn.create_model("nextvit_nano").eval()
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [level.shape[-1] for level in levels] == [16, 8, 4, 2]


@pytest.mark.parametrize(("variant", "entries"), [("small", 472), ("base", 692), ("large", 912)])
def test_state_entries(variant, entries):
    assert len(on_meta(f"nextvit_{variant}").state_dict()) == entries


# Sizes and the pool


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((24, 24), (25, 25)), ((16, 16), (25, 25)), ((1, 1), (25, 25)), ((8, 120), (8, 121)), ((20, 24), (20, 41))],
)
def test_a_size_that_the_pool_cannot_serve_is_refused_with_the_nearest_that_works(size, nearest):
    model = build_toy(TOY)
    message = rf"input of {size[0]} x {size[1]} pixels is too small; the nearest size that works is (\d+) x (\d+): "
    with pytest.raises(ValueError, match=message + "token_pool '1d' averages runs of (16|4) positions") as error:
        model(torch.zeros(1, 3, *size))
    assert "\n" not in str(error.value) and "any size works with token_pool '1d_full' or '2d'" in str(error.value)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, *nearest)).isfinite().all()
    named = tuple(map(int, str(error.value).partition("works is ")[2].partition(":")[0].split(" x ")))
    assert named == nearest if size[0] == size[1] else sum(named) <= sum(nearest)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, *named)).isfinite().all()


def test_the_remark_says_which_positions_are_left_out():
    remark = build_toy(TOY).remark
    assert "runs of positions (16 at stride 8 and 4 at stride 16)" in remark and "left out" in remark
    assert build_toy(TOY, token_pool="2d").remark == build_toy(TOY, stage_pattern="CCCT").remark == ""


@pytest.mark.parametrize("token_pool", ["1d_full", "2d"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (24, 24)])
def test_other_pools_take_any_size(token_pool, size):
    with torch.no_grad():
        assert build_toy(TOY, token_pool=token_pool)(torch.randn(1, 3, *size)).isfinite().all()


def test_pools_have_the_same_weights_and_agree_where_they_average_the_same():
    """Where nothing is averaged the pools are one; elsewhere the same weights give other numbers."""
    first = build_toy(TOY, sr_ratios=(1, 1, 1, 1)).double()
    images = torch.randn(1, 3, 33, 41, dtype=torch.float64)
    for token_pool in ("1d_full", "2d"):
        other = build_toy(TOY, sr_ratios=(1, 1, 1, 1), token_pool=token_pool).double()
        other.load_state_dict(first.state_dict())
        with torch.no_grad():
            assert torch.equal(other(images), first(images))
    pooled = [lively(build_toy(TOY, token_pool=token_pool)).double() for token_pool in ("1d", "1d_full", "2d")]
    for model in pooled[1:]:
        model.load_state_dict(pooled[0].state_dict())
    with torch.no_grad():
        default, full, windows = (model(images) for model in pooled)
    assert relative_error(full, default) > 1e-4 and relative_error(windows, default) > 1e-4


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


OTHERS = {"bottleneck": BottleneckBlock, "convnext": ConvNeXtStyleBlock, "transformer": TransformerStyleBlock}


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
    block = TransformerStyleBlock(64, 8) if conv_block == "transformer" else OTHERS[conv_block](64)
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


# Initialisation, preprocessing, errors


def test_initialisation_follows_the_authors():
    model = convattn.create_model("nextvit_small")
    for layer in (
        model.stem[1].conv,
        model.stages[2].blocks[4].e_mhsa.q,
        model.stages[3].blocks[0].mhca.group_conv3x3,
        model.stages[3].blocks[0].mlp.fc1,
        model.head.fc,
    ):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(p.any() for key, p in model.named_parameters() if key.endswith("bias"))


@pytest.mark.parametrize(
    ("name", "size"), [("nextvit_small", 224), ("nextvit_base.in1k_384", 384), ("nextvit_large.ssld_6m_in1k_384", 384)]
)
def test_preprocessing_is_the_authors(name, size):
    config = timm.data.resolve_data_config({}, model=on_meta(name))
    assert config["input_size"] == (3, size, size)
    assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == ("bicubic", 0.875, "center")


def test_timms_own_name_stays_timms():
    with torch.device("meta"):
        assert type(timm.create_model("nextvit_small")).__module__ == "timm.models.nextvit"
        assert type(timm.create_model("convattn_nextvit_small")).__module__ == "convattn.backbones.next_vit"
        assert type(convattn.create_model("timm:nextvit_small")).__module__ == "timm.models.nextvit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depths=(3, 4, 10)), r"depths \(3, 4, 10\), .* need 4 entries"),
        (dict(depths=(0, 4, 10, 3)), r"depths \(0, 4, 10, 3\) must be 1 or more"),
        (
            dict(depths=(3, 4, 12, 3)),
            "depth 12 of hybrid stage 3 is no multiple of its 4 .*; the nearest are 10 and 15",
        ),
        (dict(stage_pattern="CHH"), "stage_pattern 'CHH', .* need 4 entries"),
        (dict(stage_pattern="CHHX"), "stage_pattern 'CHHX' must be made of C, H and T, one a stage"),
        (dict(conv_block="resnet"), "conv_block 'resnet' is unknown; choose one of next, bottleneck, convnext, trans"),
        (dict(conv_block="convnext", conv_mlp_ratio=4), "conv_mlp_ratio 4 is of conv_block 'next', not 'convnext'"),
        (dict(mix_ratio=1.5), "mix_ratio 1.5 must be from 0 to 1"),
        (dict(token_pool="3d"), "token_pool '3d' is unknown; choose one of 1d, 1d_full, 2d"),
        (dict(norm="gn"), "norm 'gn' is unknown; choose one of bn, ln"),
        (dict(act="silu"), "act 'silu' is unknown; choose one of relu, gelu"),
        (dict(extra_norm=True, final_norm=False), "final_norm False contradicts extra_norm, .*; give one of them"),
        (dict(stem_stride=3), "stem_stride 3 must be 4, or 2 for small images"),
        (dict(conv_dims=(96, 190, 384, 768)), "conv_dims 190 is no multiple of head_dim 32; the nearest is 192"),
        (dict(head_dim=0), "head_dim 0 must be 1 or more"),
        (dict(sr_ratios=(8, 0, 2, 1)), r"sr_ratios \(8, 0, 2, 1\) must be 1 or more"),
        (dict(shrink_ratio=0.5), "unknown option 'shrink_ratio' of nextvit_small"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message) as error:
        on_meta("nextvit_small", **options)
    assert "\n" not in str(error.value)
