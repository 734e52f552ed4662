"""Combinations that no paper has: every stage its mixers, by name."""

import pytest
import timm
import torch

import convattn
from convattn.mixers.contextual_transformer import CoTAttention
from convattn.mixers.deformable_gate import DeformableGate
from convattn.mixers.efficient_attention import EfficientAttention
from convattn.mixers.registry import list_mixers
from convattn.mixers.scale_aware_modulation import ScaleAwareModulation
from convattn.model_files import load_model, save_model
from toys import randomise_norms, relative_error

TINY = dict(dims=(16, 16, 32, 40), depths=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2), num_classes=5)

COMBINATIONS = {
    "das, cot, sam and attention": dict(
        mixers=("das", "cot", "sam+e_mhsa", "e_mhsa"), mixer_options={"e_mhsa": {"head_dim": 8}, "das": {"alpha": 0.5}}
    ),
    "group mix behind convolutions": dict(
        mixers=("mhca", "mhca+se", "group_aggregator", "gma"), mixer_options={"mhca": {"head_dim": 8}}
    ),
    "a gate in every other block": dict(
        mixers=("triplet", "coxt", "cot+cbam", "sam+das"),
        mixer_options=({}, {}, {"cbam": {"rd_ratio": 0.25}}, {"sam": {"num_heads": 2}}),
    ),
}
every_combination = pytest.mark.parametrize("options", COMBINATIONS.values(), ids=COMBINATIONS)


def build(options):
    model = convattn.create_model("hybrid", **TINY, **options)
    randomise_norms(model)
    return model.eval(), torch.randn(2, 3, 65, 78)


def test_each_block_has_the_mixer_of_its_stage_by_turns():
    model, _ = build(COMBINATIONS["das, cot, sam and attention"])
    mixers = [[type(block.token_mixer) for block in stage.blocks] for stage in model.stages]
    assert mixers == [
        [DeformableGate],
        [CoTAttention],
        [ScaleAwareModulation, EfficientAttention],
        [EfficientAttention, EfficientAttention],
    ]
    assert model.stages[0].blocks[0].token_mixer.compress.pointwise.out_channels == 8
    assert model.stages[3].blocks[0].token_mixer.num_heads == 5


@every_combination
def test_levels_gradients_and_fused_form(options):
    model, images = build(options)
    levels = model.forward_intermediates(images, intermediates_only=True)
    assert [level.shape[1:] for level in levels] == [(16, 16, 19), (16, 8, 10), (32, 4, 5), (40, 2, 3)]
    model.double()
    with torch.no_grad():
        assert relative_error(convattn.fuse(model)(images.double()), model(images.double())) < 1e-9
    model.train()(images.double()).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@every_combination
def test_features_only_and_a_file(options, tmp_path):
    model, images = build(options)
    features = timm.create_model(
        "hybrid",
        features_only=True,
        out_indices=(1, 3),
        **{k: v for k, v in TINY.items() if k != "num_classes"},
        **options,
    ).eval()
    assert features.feature_info.reduction() == [8, 32]
    save_model(model, tmp_path / "hybrid.safetensors")
    loaded = load_model(tmp_path / "hybrid.safetensors")
    with torch.no_grad():
        assert [level.shape[1] for level in features(images)] == [16, 40]
        assert torch.equal(loaded(images), model(images))
    assert loaded.cfg == model.cfg


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_exports_with_proof(name, suffix, tmp_path):
    model, _ = build(COMBINATIONS[name])
    assert convattn.export(model, tmp_path / f"m{suffix}", input_size=(64, 64)).max_relative_error < 1e-4


@pytest.mark.parametrize("mixer", list_mixers())
def test_every_mixer_can_be_a_stage(mixer):
    options = {"sr_ratio": 1} if mixer == "e_mhsa" else {}
    model = convattn.create_model(
        "hybrid",
        mixers=("se", "se", mixer, "se"),
        mixer_options={mixer: options} if options else (),
        dims=(8, 8, 160, 8),
        depths=(1, 1, 1, 1),
        mlp_ratios=(1, 1, 1, 1),
        num_classes=2,
    ).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 112, 112)).isfinite().all()


def test_mixers_keep_their_own_start():
    torch.manual_seed(0)
    model = convattn.create_model("hybrid", **TINY, mixers=("das", "das", "das", "das"))
    offsets = [p for key, p in model.named_parameters() if "token_mixer" in key and "offset" in key]
    assert offsets and not any(p.any() for p in offsets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mixers=("sam", "cot")), r"mixers \('sam', 'cot'\) must have 4 entries, one a stage"),
        (dict(mixers=("sam", "cott", "sam", "sam")), r"unknown mixer 'cott'; nearest: cot"),
        (dict(mixer_options={"das": {}}), r"mixer_options names 'das', which no stage uses; they use cot, e_mhsa, sam"),
        (dict(mixer_options={"sam": {"heads": 2}}), r"unknown option 'heads' of mixer sam; nearest: num_heads"),
        (dict(mixer_options=({}, {})), r"mixer_options has 2 entries; give one mapping, or 4, one a stage"),
        (dict(dims=(64, 100, 256, 512)), r"stage 1: mixer cot of 100 channels: dim 100 must be a multiple of 8"),
        (dict(stem_stride=3), r"stem_stride 3 must be 4, or 2 for small images"),
        (dict(stem_kernel=2), r"stem_kernel 2 must be odd"),
        (dict(depths=(1, 0, 1, 1)), r"depths \(1, 0, 1, 1\) must be 1 or more in every stage"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message) as error:
        convattn.create_model("hybrid", **options)
    assert "\n" not in str(error.value)
