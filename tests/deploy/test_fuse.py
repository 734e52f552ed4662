"""The inference form agrees with the trained one, on statistics that show a wrong fold."""

import copy

import pytest
import torch
from torch import nn

import convattn
from convattn.mixers.scale_aware_modulation import ScaleAwareModulation
from toys import build_toy, randomise_norms, relative_error

OPTIONS = [
    {},
    {"aggregation": False},
    {"kernel_growth": 0},
    {"num_heads": 2, "expansion_ratio": 3},
    {"stacking": "half"},
    {"layer_scale_init": 0.1},
    {"stem_stride": 4, "stem_kernel": 7},
    {"num_classes": 0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "plain")
@pytest.mark.parametrize("size", [(32, 32), (37, 51)])
def test_agrees_in_float64_on_random_statistics(options, size):
    model = build_toy("smt_nano", **options).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(convattn.fuse(model)(images), model(images)) < 1e-9


def test_a_tiny_of_full_width_agrees():
    model = convattn.create_model("smt_tiny", depths=(1, 1, 2, 1), num_classes=10).eval().double()
    randomise_norms(model)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(convattn.fuse(model)(images), model(images)) < 1e-9


def test_levels_of_a_features_only_model_agree():
    model = build_toy("smt_nano", features_only=True).double()
    images = torch.randn(2, 3, 33, 47, dtype=torch.float64)
    with torch.no_grad():
        for fused, plain in zip(convattn.fuse(model)(images), model(images), strict=True):
            assert relative_error(fused, plain) < 1e-9


def test_no_batch_norm_is_left_and_the_report_lists_what_was_fused():
    fused = convattn.fuse(build_toy("smt_nano"))
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    kinds = [part.kind for part in fused.fusion_report]
    # toy depths 1, 1, 2, 1: three modulations, two attentions, one channel mixer a block, one stem
    assert sorted(kinds) == sorted(
        ["Stem"] + ["ScaleAwareModulation"] * 3 + ["LocalSelfAttention"] * 2 + ["ConvMlp"] * 5
    )
    stem = fused.fusion_report[0]
    assert stem.name == "stem"
    assert stem.form == "batch norm folded into the first convolution"
    assert stem.parameters_before - stem.parameters_after == 8  # scale and shift of 8 channels became a bias


def test_the_original_is_untouched():
    model = build_toy("smt_nano").train()
    before = copy.deepcopy(model.state_dict())
    fused = convattn.fuse(model)
    assert model.training
    assert not fused.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_without_inference_forms_is_copied():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.GELU()).double()
    randomise_norms(model)
    fused = convattn.fuse(model)
    assert fused.fusion_report == []
    assert str(fused.fusion_report) == "nothing to fuse"
    assert fused is not model
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert relative_error(fused(images), model.eval()(images)) < 1e-12


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("num_heads", [1, 2, 4, 8])
def test_modulation_alone(num_heads, qkv_bias):
    block = ScaleAwareModulation(16, num_heads=num_heads, qkv_bias=qkv_bias).eval().double()
    randomise_norms(block)
    x = torch.randn(2, 16, 9, 11, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(block.fused()(x), block(x)) < 1e-9
