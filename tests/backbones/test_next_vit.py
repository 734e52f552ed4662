"""Next-ViT against the authors' numbers and timm's model; its sizes, initialisation and errors."""

import warnings

import pytest
import timm
import timm.data
import torch
from timm.models.nextvit import checkpoint_filter_fn as timms_names
from torch import nn

import convattn
from golden_file import float32_errors, golden_errors, smooth
from toys import build_toy, lively, randomise_norms, relative_error

TOY = "nextvit_small"
AUTHORS = ["nextvit_small", "nextvit_base", "nextvit_large"]


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return convattn.create_model(name, **options)


# The authors' numbers


@pytest.mark.parametrize(
    ("variant", "gradient_tolerance"),
    # Attention saturates under random weights and amplifies rounding on the way back, the more so the deeper. Base and
    # large differ from small in depth alone; their names, shapes and multiply-adds are tested anyway.
    [
        ("nextvit_small", 1e-8),
        ("nextvit_small_extra_norm", 1e-8),
        pytest.param("nextvit_base", 1e-7, marks=pytest.mark.slow),
        pytest.param("nextvit_large", 1e-4, marks=pytest.mark.slow),
    ],
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
