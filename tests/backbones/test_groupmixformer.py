"""GroupMixFormer against the authors' numbers, and each option of the paper in a case that can be worked out."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

import convattn
from convattn.mixers.group_mix_attention import GroupMixAttention, SegmentAggregator
from convattn.mixers.spatial_reduction_attention import SpatialReductionAttention
from convattn.mixers.window_attention import WindowAttention
from convattn.model_files import load_model, save_model
from golden_file import golden_errors
from toys import build_toy, randomise_norms, relative_error

VARIANTS = ["mobile", "tiny", "small", "base", "large"]
TOY = dict(dims=(10, 20, 20, 20), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2), num_classes=5)


def toy(**options):
    return convattn.create_model("groupmixformer_tiny", **{**TOY, **options})


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def attentions(model):
    return [module for module in model.modules() if isinstance(module, GroupMixAttention)]


# The authors' numbers


one_by_default = pytest.mark.parametrize(
    "size", [v if v == "mobile" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)


@one_by_default
def test_agrees_with_the_authors_model_in_float64(size):
    errors = golden_errors(f"groupmixformer_{size}", torch.float64)
    assert errors.keys() == {"logits", "feat0", "feat1", "feat2", "feat3", "grad"}
    assert all(error < 1e-9 for error in errors.values()), errors


@one_by_default
def test_agrees_with_the_authors_model_in_float32(size):
    errors = golden_errors(f"groupmixformer_{size}", torch.float32)
    # Through the 58 blocks of large and back, rounding alone reaches 1.06e-5 in the gradient: float64 with weights and
    # images rounded to float32 is off by 2.2e-6 already.
    limits = {"grad": 2e-5} if size == "large" else {}
    assert all(error < limits.get(key, 1e-5) for key, error in errors.items()), errors


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((222, 253), [(56, 64), (28, 32), (14, 16), (7, 8)]),  # a size that the authors' code takes
        ((200, 264), [(50, 66), (25, 33), (13, 17), (7, 9)]),  # and one that it does not
        ((1, 5), [(1, 2), (1, 1), (1, 1), (1, 1)]),
    ],
)
def test_every_step_rounds_up(size, levels):
    with torch.no_grad():
        got = toy().eval().forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    assert [tuple(level.shape[2:]) for level in got] == levels


def test_nano_has_levels_at_half_the_strides():
    model = build_toy("groupmixformer_nano")
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16]
    with torch.no_grad():
        levels = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [level.shape[-1] for level in levels] == [16, 8, 4, 2]


ENTRIES = {"mobile": 1149, "tiny": 1249, "small": 1149, "base": 1849, "large": 2949}


@pytest.mark.parametrize(("size", "entries"), ENTRIES.items())
def test_state_entries(size, entries):
    with torch.device("meta"):
        assert len(convattn.create_model(f"groupmixformer_{size}").state_dict()) == entries


@pytest.mark.parametrize(("size", "macs"), [("small", 15.08), pytest.param("large", 111.9, marks=pytest.mark.slow)])
def test_multiply_adds_at_384_pixels(size, macs):
    with torch.device("meta"):
        model = convattn.create_model(f"groupmixformer_{size}")
    assert convattn.count(model, (3, 384, 384)).macs / 1e9 == pytest.approx(macs, rel=1e-3)


# Options of the paper


def test_each_branch_has_its_parameters():
    """Width 20 has segments of 4: 4·k² depthwise, 4² pointwise and 2·4 of the norm; 12·9, 12·4 and 2·4 beside."""
    branches = {1: 4 * 9 + 16 + 8, 2: 4 * 25 + 16 + 8, 3: 4 * 49 + 16 + 8}
    everything = num_parameters(GroupMixAttention(20, aggregators="dwconv"))
    for branch, size in branches.items():
        kinds = ["identity", "dwconv", "dwconv", "dwconv", "dwconv"]
        kinds[branch] = "identity"
        assert everything - num_parameters(GroupMixAttention(20, aggregators=kinds)) == size - 8
        kinds[branch] = "off"
        assert everything - num_parameters(GroupMixAttention(20, aggregators=kinds)) == size
        kinds[branch] = "avg"
        assert everything - num_parameters(GroupMixAttention(20, aggregators=kinds)) == size - 8
        assert (
            everything - num_parameters(GroupMixAttention(20, aggregators=kinds, pool_pointwise=True)) == size - 8 - 16
        )


def test_without_the_branch_beside_it_the_attention_spans_all_channels():
    with_branch = GroupMixAttention(40)
    without = GroupMixAttention(40, aggregators=("identity", "dwconv", "dwconv", "dwconv", "off"))
    assert without.aggregator.non_attention is None
    # its convolutions and norm go; position kernels of 8 more channels (one a head: 2, 3, 3) come
    beside, position = 24 * 9 + 24 * 8 + 16, (2 * 9 + 3 * 25 + 3 * 49) + 8
    assert num_parameters(without) == num_parameters(with_branch) - beside + position


def test_kernels_per_branch_and_stage_reach_the_convolutions():
    def found(model):
        return [
            [branch.mix.kernel_size[0] for branch in attention.aggregator.branches[1:]]
            for attention in attentions(model)
        ]

    assert found(toy()) == [[3, 5, 7]] * 5
    assert found(toy(kernels=(5, 5, 3))) == [[5, 5, 3]] * 5
    per_stage = ((5, 7, 9), (3, 5, 7), (3, 3, 3), (1, 3, 5))
    assert found(toy(kernels=per_stage)) == [[5, 7, 9], [3, 5, 7], [3, 3, 3], [3, 3, 3], [1, 3, 5]]
    for attention in attentions(toy(non_attention_kernel=5)):
        assert attention.aggregator.non_attention.mix.kernel_size == (5, 5)


@pytest.mark.parametrize(("kind", "pool"), [("avg", nn.AvgPool2d), ("max", nn.MaxPool2d), ("min", nn.MaxPool2d)])
def test_pooling_aggregators_reach_every_block_and_keep_norm_and_activation(kind, pool):
    for attention in attentions(toy(aggregators=kind)):
        for branch, kernel in zip(attention.aggregator.branches[1:], (3, 5, 7), strict=True):
            assert isinstance(branch.mix, pool) and branch.mix.kernel_size == kernel
            assert isinstance(branch.norm, nn.BatchNorm2d) and isinstance(branch.pointwise, nn.Identity)


def test_the_control_has_its_convolutions_once_in_front():
    model = toy(placement="before", dims=(8, 16, 16, 24))
    for attention in attentions(model):
        assert [branch.mix.kernel_size[0] for branch in attention.convs.branches[1:]] == [3, 5, 7]
        assert not list(attention.aggregator.parameters())
    # width 24, quarters of 6: 6·k² depthwise, 6² pointwise, four norms
    (last,) = attentions(model.stages[3])
    assert num_parameters(last.convs) == 6 * (9 + 25 + 49) + 3 * 36 + 4 * 12


@pytest.mark.parametrize(
    ("attention", "kind"), [("window_mhsa", WindowAttention), ("sr_mhsa", SpatialReductionAttention)]
)
def test_another_attention_stands_in_the_same_skeleton(attention, kind):
    model = toy(dims=(16, 24, 24, 32), attention=attention, attention_options={"head_dim": 8})
    names, ours = model.state_dict().keys(), toy().state_dict().keys()
    assert all(type(block.token_mixer) is kind for stage in model.stages for block in stage.blocks)
    assert {n for n in names if ".token_mixer." not in n} == {n for n in ours if ".token_mixer." not in n}
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 45, 61)).shape == (1, 5)


def test_another_attention_has_options_of_its_stage_and_block(tmp_path):
    ratios = tuple({"head_dim": 8, "sr_ratio": ratio} for ratio in (4, 2, 2, 1))
    model = toy(dims=(16, 24, 24, 32), depths=(1, 1, 2, 1), attention="sr_mhsa", attention_options=ratios)
    assert [[b.token_mixer.sr_ratio for b in stage.blocks] for stage in model.stages] == [[4], [2], [2, 2], [1]]
    window = {"head_dim": 8, "window_size": 4}
    turns = [[window, {**window, "shift": True}]] * 4
    model = toy(dims=(16, 24, 24, 32), depths=(1, 2, 3, 1), attention="window_mhsa", attention_options=turns).eval()
    assert [[b.token_mixer.shift for b in stage.blocks] for stage in model.stages] == [[0], [0, 2], [0, 2, 0], [0]]
    save_model(model, tmp_path / "model.safetensors")
    images = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model.safetensors")(images), model(images))


def test_drop_path_rises_linearly_over_all_blocks():
    model = toy(depths=(1, 2, 3, 2), drop_path_rate=0.7)
    blocks = [block for stage in model.stages for block in stage.blocks]
    for index, block in enumerate(blocks):
        assert block.drop_path1.drop_prob == block.drop_path2.drop_prob == pytest.approx(0.1 * index)
    assert all(m.drop_prob == 0 for m in toy().modules() if isinstance(m, DropPath))


def test_drop_path_drops_the_branches_and_keeps_the_position_code():
    block = toy(drop_path_rate=0.5).stages[3].blocks[0].train()
    assert block.drop_path1.drop_prob == 0.5
    x = torch.randn(64, 20, 3, 3)
    branch = block.token_mixer(block.norm1(x))
    dropped = block.drop_path1(branch)
    kept = dropped.flatten(1).any(1)
    assert 0 < kept.sum() < 64
    assert torch.equal(dropped[kept], branch[kept] / 0.5)
    block.drop_path1.drop_prob = block.drop_path2.drop_prob = 1 - 1e-9
    assert relative_error(block(x), x + block.position.conv(x)) < 1e-6


def test_level_norm_changes_the_levels_and_nothing_else():
    plain, normed = toy().eval(), toy(level_norm=True).eval()
    normed.load_state_dict(plain.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain(images), normed(images))
        levels = plain.forward_intermediates(images, intermediates_only=True)
        final, got = normed.forward_intermediates(images)
        assert torch.equal(final, plain.forward_features(images))
        for raw, level in zip(levels, got, strict=True):
            centred = raw - raw.mean(1, keepdim=True)
            want = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
            assert relative_error(level, want) < 1e-5
        picked = normed.forward_intermediates(images, indices=[2, 0], stop_early=True, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(picked, (got[0], got[2]), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(aggregators="conv"), "aggregator 'conv' is unknown; choose among dwconv, avg, max, min, identity, off"),
        (dict(aggregators=("dwconv",) * 5), "aggregator 'dwconv' of segment 0, the single tokens, must be identity or"),
        (
            dict(aggregators=("identity", "dwconv")),
            r"aggregators \('identity', 'dwconv'\) are 2; give one kind for all",
        ),
        (dict(kernels=(3, 5)), r"kernels \(3, 5\) must be 3, of segments 1, 2 and 3, or 4 times 3, one a stage"),
        (dict(kernels=()), r"kernels \(\) must be 3"),
        (dict(mlp_ratios=(2, 0, 2, 2)), r"mlp_ratios \(2, 0, 2, 2\) must be above 0"),
        (dict(kernels=(3, 4, 7)), "kernel 4 must be odd"),
        (dict(kernels=((3, 5),) * 4), r"kernels \(3, 5\) must be 3"),
        (dict(non_attention_kernel=2), "kernel 2 must be odd"),
        (dict(placement="after"), "placement 'after' is unknown; choose inside or before"),
        (dict(placement="before", non_attention_kernel=5), "non_attention_kernel 5: placement 'before' has no such"),
        (dict(attention="windows"), "unknown mixer 'windows'"),
        (dict(attention="window_mhsa", kernels=(3, 3, 3)), "kernels of gma: attention 'window_mhsa' has no such"),
        (
            dict(attention="sr_mhsa", attention_options=[{}] * 3),
            r"attention_options .* must be one for all, or four, one",
        ),
        (dict(attention_options={"head_dim": 8}), "attention_options {'head_dim': 8} are of an attention other than"),
        (dict(stem_stride=3), "stem_stride 3 must be 4, or 2 for small images"),
        (dict(dims=(10, 20, 20)), r"dims \(10, 20, 20\), depths .* need 4 entries"),
        (dict(dims=(10, 20, 24, 20)), "dim 24 does not divide into 8 heads of segments; the nearest that does is 20"),
        (dict(dims=(10, 25, 20, 20)), "dim 25 does not divide into 8 heads of segments; the nearest that does is 20"),
        (dict(dims=(15, 20, 20, 20)), "dim 15 of stage 1 must be even"),
        (dict(depths=(1, 0, 2, 1)), r"depths \(1, 0, 2, 1\) must be 1 or more in every stage"),
        (dict(aggregator="avg"), "unknown option 'aggregator' of groupmixformer_tiny; nearest: aggregators"),
    ],
)
def test_a_wrong_option_is_named_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message) as error:
        toy(**options)
    assert "\n" not in str(error.value)


# Initialisation


def test_initialisation_follows_the_authors():
    model = convattn.create_model("groupmixformer_mobile")
    block = model.stages[3].blocks[0]
    for layer in (model.head.fc, block.channel_mixer.fc1, block.token_mixer.qkv):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    # PyTorch's own rule for convolutions: uniform within 1 / sqrt(inputs), biases too
    assert block.position.conv.weight.abs().max().item() == pytest.approx(1 / 3, rel=0.02)
    assert block.position.conv.bias.any()


# The inference form


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(aggregators="avg"),
        dict(aggregators="max", pool_pointwise=True),
        dict(aggregators="min"),
        dict(aggregators="identity"),
        dict(aggregators="off", dims=(8, 16, 16, 24)),
        dict(aggregators=("off", "dwconv", "off", "max", "off"), dims=(40, 40, 40, 40)),
        dict(kernels=((3, 9, 5), (1, 3, 5), (3, 3, 3), (7, 5, 3)), non_attention_kernel=5),
        dict(placement="before", dims=(8, 16, 16, 24)),
        dict(placement="before", aggregators=("off", "avg", "dwconv", "identity"), dims=(8, 16, 16, 24)),
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "plain",
)
def test_fused_form_agrees_for_every_option(options):
    model = toy(**options).double().eval()
    randomise_norms(model)
    fused = convattn.fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d | SegmentAggregator) for module in fused.modules())
    images = torch.randn(2, 3, 53, 71, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(fused(images), model(images)) < 1e-9


def test_fused_form_of_full_width_agrees():
    model = convattn.create_model("groupmixformer_tiny", depths=(1, 1, 1, 1), num_classes=10).double().eval()
    randomise_norms(model)
    images = torch.randn(1, 3, 70, 45, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(convattn.fuse(model)(images), model(images)) < 1e-9


def test_prepacked_form_agrees():
    model = build_toy("groupmixformer_nano", dims=(40, 40, 80, 80))
    images = torch.randn(2, 3, 37, 51)
    packed = convattn.prepack(convattn.fuse(model), images)
    with torch.inference_mode():
        assert relative_error(packed(images), model(images)) < 1e-5


@pytest.mark.slow
def test_nano_exports_to_onnx(tmp_path):
    model = convattn.create_model("groupmixformer_nano", num_classes=10).eval()
    randomise_norms(model)
    report = convattn.export(model, tmp_path / "nano.onnx", input_size=(32, 32), dynamic="all")
    assert report.max_relative_error < 1e-4
