"""SMT against the authors' numbers, and each option of the paper in a case that can be worked out."""

import pytest
import timm
import timm.data
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

import convattn
from convattn.backbones.smt import EntryNorm, LocalSelfAttention, SMTConfig
from convattn.mixers.scale_aware_modulation import DenseAggregation, ScaleAwareAggregation, ScaleAwareModulation
from convattn.model_files import load_model, save_model
from convattn.ops.linear import Linear2d
from golden_file import golden_errors
from toys import build_toy, randomise_norms, relative_error

TOY = dict(dims=(8, 16, 16, 24), depths=(1, 1, 2, 1), attention_heads=(2, 2), mlp_ratios=(2, 2, 2, 2), num_classes=5)


def toy(**options):
    return convattn.create_model("smt_tiny", **{**TOY, **options})


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# The authors' numbers


# Small is a deeper tiny; whatever base has, large has too. Names, shapes and multiply-adds of all are tested elsewhere.
@pytest.mark.parametrize(
    "variant",
    [
        "smt_tiny",
        pytest.param("smt_small", marks=pytest.mark.slow),
        pytest.param("smt_base", marks=pytest.mark.slow),
        "smt_large",
    ],
)
def test_agrees_with_the_authors_model_in_float64(variant):
    errors = golden_errors(variant, torch.float64)
    assert errors.keys() == {"logits", "feat0", "feat1", "feat2", "feat3", "grad"}
    assert all(error < 1e-9 for error in errors.values()), errors


@pytest.mark.parametrize(
    "variant",
    ["smt_tiny", *(pytest.param(f"smt_{size}", marks=pytest.mark.slow) for size in ("small", "base", "large"))],
)
def test_agrees_with_the_authors_model_in_float32(variant):
    errors = golden_errors(variant, torch.float32)
    assert all(error < 1e-5 for error in errors.values()), errors


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((200, 264), [(50, 66), (25, 33), (13, 17), (7, 9)]),
        ((222, 253), [(55, 63), (28, 32), (14, 16), (7, 8)]),
    ],
)
def test_levels_round_as_the_authors_do(size, levels):
    with torch.no_grad():
        got = toy().eval().forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in got] == levels


@pytest.mark.slow
def test_a_detection_image_runs():
    model = convattn.create_model("smt_tiny", num_classes=0).eval()
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 800, 1333), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in levels] == [(200, 333), (100, 167), (50, 84), (25, 42)]
    assert all(level.isfinite().all() for level in levels)


def test_nano_has_levels_at_half_the_strides():
    model = build_toy("smt_nano")
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [level.shape[-1] for level in levels] == [16, 8, 4, 2]


# Counts


def test_the_22k_head_has_its_parameter_count():
    with torch.device("meta"):
        assert num_parameters(convattn.create_model("smt_large", num_classes=21841)) == 96_646_993


def test_layer_scale_adds_its_vectors_to_large():
    with torch.device("meta"):
        with_scale = convattn.create_model("smt_large")
        without = convattn.create_model("smt_large", layer_scale_init=0)
    assert num_parameters(with_scale) - num_parameters(without) == 30_720


@pytest.mark.parametrize(("variant", "entries"), [("tiny", 386), ("small", 758), ("base", 1112), ("large", 1232)])
def test_state_entries(variant, entries):
    with torch.device("meta"):
        assert len(convattn.create_model(f"smt_{variant}").state_dict()) == entries


# Options of the paper


@pytest.mark.parametrize(
    ("stacking", "stage3"),
    [("alternate", "MAMAM"), ("half", "MMMAA"), ("modulation", "MMMMM"), ("attention", "AAAAA")],
)
def test_stacking_chooses_the_mixers_of_stage_3(stacking, stage3):
    model = toy(stacking=stacking, depths=(1, 2, 5, 2))
    kinds = {ScaleAwareModulation: "M", LocalSelfAttention: "A"}
    mixers = ["".join(kinds[type(block.token_mixer)] for block in stage.blocks) for stage in model.stages]
    assert mixers == ["M", "MM", stage3, "AA"]


def test_stacking_of_every_stage():
    words = ("alternate", "attention", "half", "modulation")
    model = toy(stacking=words, depths=(2, 1, 3, 2), attention_heads=(2, 4, 2, 2))
    kinds = {ScaleAwareModulation: "M", LocalSelfAttention: "A"}
    mixers = ["".join(kinds[type(block.token_mixer)] for block in stage.blocks) for stage in model.stages]
    assert mixers == ["MA", "A", "MMA", "MM"]
    assert [model.stages[stage].blocks[-1].token_mixer.num_heads for stage in (0, 1)] == [2, 4]


@pytest.mark.parametrize(
    ("aggregation", "count"),
    [
        ("one_1x1", lambda c: c * c + c),
        ("two_1x1", lambda c: 2 * (c * c + c) + 2 * c),
        ("ungrouped", lambda c: 2 * c * c + 2 * c + 4 * c + 2 * c * c + c),
        ("inverted_bottleneck", lambda c: 2 * c * c + 2 * c + 4 * c + 2 * c * 9 + 2 * c + 4 * c + 2 * c * c + c),
    ],
)
def test_other_aggregations_count_by_hand_and_fuse(aggregation, count, tmp_path):
    model = toy(aggregation=aggregation)
    assert num_parameters(model) - num_parameters(toy(aggregation=False)) == count(8) + 2 * count(16)
    randomise_norms(model)
    model = model.double().eval()
    images = torch.randn(2, 3, 33, 47, dtype=torch.float64)
    fused = convattn.fuse(model)
    assert relative_error(fused(images), model(images)) < 1e-9
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    save_model(model.float(), tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(again(images.float()), model(images.float()))


def test_the_ungrouped_aggregation_is_the_papers_with_one_group():
    papers, ungrouped = ScaleAwareAggregation(12, num_heads=12), DenseAggregation("ungrouped", 12)
    values = dict(zip(ungrouped.state_dict(), papers.state_dict().values(), strict=True))
    ungrouped.load_state_dict(values)
    x = torch.randn(2, 12, 3, 5)
    assert relative_error(ungrouped(x), papers(x)) < 1e-6


def test_aggregation_off_removes_exactly_its_parameters():
    on, off = toy(), toy(aggregation=False)
    aggregation = {key for key, _ in on.named_parameters() if ".aggregation." in key}
    assert {key for key, _ in on.named_parameters()} - {key for key, _ in off.named_parameters()} == aggregation
    # per block of width C: 2C × 4 and 2C in the groups, 2 · 2C in the norm, C × 2C and C behind it
    per_block = {dim: 2 * dim * 4 + 2 * dim + 4 * dim + 2 * dim * dim + dim for dim in (8, 16)}
    assert num_parameters(on) - num_parameters(off) == per_block[8] + 2 * per_block[16]


def test_expansion_scales_the_width_inside_the_aggregation():
    def count(expansion: int, dim: int = 16, heads: int = 4) -> int:
        hidden = expansion * dim
        return hidden * heads + hidden + 2 * hidden + dim * hidden + dim

    for expansion in (1, 2, 3):
        assert num_parameters(ScaleAwareAggregation(16, 4, expansion)) == count(expansion)
    assert num_parameters(toy()) - num_parameters(toy(expansion_ratio=1)) == sum(
        num_parameters(ScaleAwareAggregation(dim, 4, 2)) - num_parameters(ScaleAwareAggregation(dim, 4, 1))
        for dim in (8, 16, 16)
    )


def test_heads_and_kernel_growth_reach_every_mixed_convolution():
    model = toy(num_heads=8, kernel_growth=4)
    mixers = [module for module in model.modules() if isinstance(module, ScaleAwareModulation)]
    assert len(mixers) == 3
    for mixer in mixers:
        assert [conv.kernel_size for conv in mixer.mixed_conv.heads] == [(3 + 4 * h,) * 2 for h in range(8)]


def test_layer_scales_of_zero_leave_the_identity_in_every_block():
    model = toy(layer_scale_init=1e-4).eval()
    for block in model.stages[2].blocks:
        assert torch.equal(block.layer_scale1.gamma, torch.full_like(block.layer_scale1.gamma, 1e-4))
        torch.nn.init.zeros_(block.layer_scale1.gamma)
        torch.nn.init.zeros_(block.layer_scale2.gamma)
    x = torch.randn(2, 16, 5, 7)
    assert torch.equal(model.stages[2].blocks(x), x)


def test_drop_path_rises_linearly_over_all_blocks():
    model = toy(depths=(1, 2, 3, 2), drop_path_rate=0.7)
    blocks = [block for stage in model.stages for block in stage.blocks]
    for index, block in enumerate(blocks):
        assert block.drop_path1.drop_prob == block.drop_path2.drop_prob == pytest.approx(0.1 * index)
    assert all(m.drop_prob == 0 for m in toy().modules() if isinstance(m, DropPath))


def test_drop_path_drops_a_branch_of_whole_images():
    block = toy(drop_path_rate=0.5).stages[3].blocks[0].train()
    assert block.drop_path1.drop_prob == 0.5
    x = torch.randn(64, 24, 3, 3)
    branch = block.token_mixer(block.norm1(x))
    dropped = block.drop_path1(branch)
    kept = dropped.flatten(1).any(1)
    assert 0 < kept.sum() < 64
    assert torch.equal(dropped[kept], branch[kept] / 0.5)


def test_nothing_depends_on_the_position_of_the_image_content():
    """Attention alone has no position code: with its convolutions zero, shuffled positions give shuffled results."""
    attention = LocalSelfAttention(8, 2).double()
    torch.nn.init.zeros_(attention.local_conv.weight)
    x, order = torch.randn(1, 8, 1, 12, dtype=torch.float64), torch.randperm(12)
    assert relative_error(attention(x[..., order]), attention(x)[..., order]) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stacking="mixed"), "stacking 'mixed' is unknown; choose one of alternate, half, modulation, attention"),
        (dict(stem_stride=3), "stem_stride 3 must be 4, or 2 for small images"),
        (dict(stem_kernel=4), "stem_kernel 4 must be odd"),
        (dict(dims=(8, 16, 16)), r"dims \(8, 16, 16\), depths .* need 4 entries"),
        (dict(depths=(1, 0, 2, 1)), r"depths \(1, 0, 2, 1\) must be 1 or more in every stage"),
        (dict(attention_heads=(2, 5)), "attention_heads 5 does not divide the stage's dim 24"),
        (dict(num_heads=3), "num_heads 3 does not divide dim 8; the nearest that does is 2"),
        (dict(kernel_growth=1), "kernel_growth 1 must be even and not negative"),
        (dict(expansion_ratio=0), "expansion_ratio 0 must be 1 or more"),
        (dict(expansion_ratio=1.5), "expansion_ratio 1.5 must be a whole number"),
        (dict(aggregation="off"), "aggregation 'off' must be True, False or one of one_1x1, two_1x1, ungrouped, inv"),
        (dict(aggregation="ungrouped", expansion_ratio=0), "expansion_ratio 0 must be 1 or more"),
        (dict(stacking=("attention", "half", "half")), r"stacking .* must be one word, of stage 3, or four, of every"),
        (dict(stacking=("attention",) * 4), r"attention in stage 1 needs four attention_heads, not \(2, 2\)"),
        (dict(attention_heads=(2, 2, 2)), r"attention_heads \(2, 2, 2\) must be two, of stages 3 and 4, or four"),
        (dict(drop_path_rate=2), "drop_path_rate 2 must be at least 0 and below 1"),
        (dict(drop_rate=1), "drop_rate 1 must be at least 0 and below 1"),
        (dict(num_classes=-3), r"num_classes -3 must be 0 \(no head\) or more"),
        (dict(global_pool="mean"), "global_pool 'mean' is unknown; choose one of timm's: 'avg', 'max'"),
        (dict(stackin="half"), "unknown option 'stackin' of smt_tiny; nearest: stacking"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message) as error:
        toy(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smt_tinny", "unknown model 'smt_tinny'; nearest: smt_tiny"),
        ("resnet50", "unknown model 'resnet50'; .*; timm has it as 'timm:resnet50'"),
        ("timm:resnet5", "unknown timm model 'resnet5'; nearest: .*resnet50"),
        ("smt_large.in21k", "smt_large has no weights 'in21k'; it has in22k_ft_in1k, in22k_ft_in1k_384, in22k$"),
        ("smt_nano.in1k", "smt_nano has no published weights"),
    ],
)
def test_an_unknown_name_is_met_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model(name)


def test_a_timm_name_gives_timms_model():
    model = convattn.create_model("timm:resnet10t", num_classes=3)
    assert type(model).__module__ == "timm.models.resnet"
    assert model.built_as == {"name": "timm:resnet10t", "options": {"num_classes": 3}}


# Initialisation and preprocessing


def test_initialisation_follows_the_authors():
    model = convattn.create_model("smt_tiny")
    block = model.stages[3].blocks[0]
    for layer, std in [
        (model.head.fc, 0.02),
        (block.channel_mixer.fc1, 0.02),
        (model.stages[3].downsample.conv, (2 / (9 * 512)) ** 0.5),
        (block.channel_mixer.conv, (2 / 9) ** 0.5),  # depthwise: one output a group
    ]:
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not any(p.any() for key, p in model.named_parameters() if key.endswith("bias") and p.ndim == 1)


@pytest.mark.parametrize(
    ("name", "size", "crop_ratio", "crop_mode"),
    [
        ("smt_tiny", 224, 0.875, "center"),
        ("smt_large", 224, 0.875, "center"),
        ("smt_large.in22k_ft_in1k_384", 384, 1.0, "squash"),
    ],
)
def test_preprocessing_is_the_authors(name, size, crop_ratio, crop_mode):
    with torch.device("meta"):
        model = timm.create_model(name)
    config = timm.data.resolve_data_config({}, model=model)
    assert config["input_size"] == (3, size, size)
    assert config["interpolation"] == "bicubic"
    assert (config["crop_pct"], config["crop_mode"]) == (crop_ratio, crop_mode)
    assert config["mean"] == pytest.approx((0.485, 0.456, 0.406)) and config["std"] == pytest.approx(
        (0.229, 0.224, 0.225)
    )


def test_the_22k_tag_has_its_classes():
    with torch.device("meta"):
        assert timm.create_model("smt_large.in22k").num_classes == 21841


# Attention


def test_local_self_attention_is_its_formula():
    attention = LocalSelfAttention(12, 3).double()
    x = torch.randn(2, 12, 4, 5, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    query = tokens @ attention.query.weight.flatten(1).T + attention.query.bias
    key, value = (tokens @ attention.key_value.weight.flatten(1).T + attention.key_value.bias).split(12, dim=2)
    mixed = torch.zeros_like(tokens)
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        for image in range(2):
            scores = query[image, :, own] @ key[image, :, own].T / 4**0.5
            mixed[image, :, own] = scores.softmax(1) @ value[image, :, own]
    values = value.transpose(1, 2).unflatten(2, (4, 5))
    local = F.conv2d(values, attention.local_conv.weight, attention.local_conv.bias, padding=1, groups=12)
    mixed = mixed + local.flatten(2).transpose(1, 2)
    want = (mixed @ attention.proj.weight.flatten(1).T + attention.proj.bias).transpose(1, 2).unflatten(2, (4, 5))
    assert relative_error(attention(x), want) < 1e-12


def test_local_self_attention_for_graph_runtimes_agrees_and_exports_with_dynamic_sizes():
    block = LocalSelfAttention(12, 3).double().eval()
    form = block.fused().graph_form()
    dynamic = {"x": dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)}
    exported = torch.export.export(form, (torch.randn(2, 12, 4, 6).double(),), dynamic_shapes=dynamic).module()
    with torch.no_grad():
        for shape in ((1, 12, 5, 7), (3, 12, 6, 4)):
            x = torch.randn(shape, dtype=torch.float64)
            assert relative_error(form(x), block(x)) < 1e-12
            assert relative_error(exported(x), block(x)) < 1e-12
    assert not any(isinstance(module, Linear2d) for module in form.modules())


def test_entry_norm_for_graph_runtimes_agrees():
    norm = EntryNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    form = norm.graph_form()
    assert relative_error(form(x), norm(x)) < 1e-12
    assert isinstance(form[-1], nn.Conv2d)


def test_local_self_attention_gradients():
    attention = LocalSelfAttention(4, 2).double()
    x = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,))


def test_config_lists_the_mixers_of_the_released_models():
    assert SMTConfig().mixers(2) == ["modulation", "attention"] * 4
    assert SMTConfig().mixers(3) == ["attention"]
