"""The inference form of other people's networks, of those with plug-ins, and of parts alone."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import LayerScale2d
from torch import nn

import convattn
from convattn.mixers.registry import create_mixer
from toys import build_toy, lively, randomise_norms, relative_error, toy_images


def prepared(model: nn.Module) -> nn.Module:
    """In float64, statistics and weights at random, plug-ins at work."""
    randomise_norms(lively(model))
    for module in model.modules():
        if isinstance(module, LayerScale2d):
            nn.init.normal_(module.gamma)
    return model.double().eval()


def norms_of(model: nn.Module) -> list[str]:
    norms = nn.modules.batchnorm._BatchNorm
    return [name for name, module in model.named_modules() if isinstance(module, norms)]


def check(model: nn.Module, size: tuple[int, int] = (65, 79)) -> nn.Module:
    """Fuses; the outputs agree and every batch norm left has its reason."""
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    fused = convattn.fuse(model)
    with torch.no_grad():
        got, want = fused(images), model(images)
    pairs = zip(got, want, strict=True) if isinstance(got, list | tuple) else [(got, want)]
    assert all(relative_error(a, b) < 1e-9 for a, b in pairs)
    assert sorted(fused.fusion_report.left) == sorted(norms_of(fused))
    return fused


NETWORKS = {  # name in timm -> options; each batch norm goes
    "resnet10t": {},
    "mobilenetv3_small_050": {},
    "tf_efficientnetv2_b0": dict(num_classes=0),
    "regnety_002": {},
    "repvgg_a0": {},
    "mobileone_s0": {},
    "repvit_m0_9": {},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_timm_networks_keep_no_batch_norm(name):
    assert not norms_of(check(prepared(timm.create_model(name, **{"num_classes": 7, **NETWORKS[name]}))))


def test_timms_next_vit_keeps_the_norm_of_its_trunk():
    model = prepared(timm.create_model("nextvit_small", depths=(1, 1, 5, 1), num_classes=7))
    fused = check(model)
    assert fused.fusion_report.left == {"norm": "behind add, in front of adaptive_avg_pool2d"}
    assert any(part.form == "what timm's reparameterize makes of it" for part in fused.fusion_report)


def test_norms_behind_concatenations_are_left():
    model = torchvision.models.DenseNet(4, (1, 2), num_init_features=8, num_classes=7)
    fused = check(prepared(model))
    assert set(fused.fusion_report.left.values()) == {
        "behind cat, in front of relu, conv2d",
        "behind cat, in front of relu, adaptive_avg_pool2d",
    }
    assert len(fused.fusion_report) == 4  # the stem, and the first norm of each layer's two


@pytest.mark.parametrize("options", [dict(features_only=True), dict(features_only=True, out_indices=(1, 3))])
def test_levels_of_timm_networks(options):
    assert not norms_of(check(prepared(timm.create_model("resnet10t", **options))))


MIXERS = {
    "sam": dict(num_heads=2),
    "cot": {},
    "das": {},
    "e_mhsa": dict(head_dim=8),
    "group_aggregator": {},
    "bam": {},
    "window_mhsa": dict(head_dim=8),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_attached(mixer):
    model = timm.create_model("resnet10t", num_classes=7)
    fused = check(prepared(convattn.attach(model, mixer, where="stages", **MIXERS[mixer])))
    assert not norms_of(fused)


@pytest.mark.parametrize("mixer", MIXERS)
def test_replaced(mixer):
    model = timm.create_model("resnet10t", num_classes=7)
    where = [name for name, module in model.named_modules() if name.startswith("layer") and name.endswith("conv1")]
    fused = check(prepared(convattn.replace(model, mixer, match=lambda name, _: name in where, **MIXERS[mixer])))
    ends_in_linear = mixer in ("sam", "e_mhsa")  # the norm behind the mixer goes into its projection
    assert len(fused.fusion_report.left) == (0 if ends_in_linear else len(where))


def test_detached_is_fused_as_it_was():
    model = prepared(timm.create_model("resnet10t", num_classes=7))
    fused = convattn.fuse(convattn.detach(convattn.attach(model, "das", where="stages")))
    again = convattn.fuse(model)
    assert fused.fusion_report == again.fusion_report
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("name", ["cotnet_nano", "nextvit_nano", "groupmixformer_nano", "smt_nano", "hybrid"])
def test_blocks_with_something_attached_inside_fold_around_it(name):
    model = build_toy(name)
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1 and "gate" not in n]
    place = convs[len(convs) // 2]
    fused = check(prepared(convattn.attach(model, "se", where=[place])), tuple(toy_images(name).shape[2:]))
    assert all(left.split(".")[:2] == place.split(".")[:2] for left in fused.fusion_report.left)


def test_a_mixer_alone():
    mixer = prepared(create_mixer("sam", 16, num_heads=2))
    fused = convattn.fuse(mixer)
    assert type(fused) is not type(mixer)
    maps = torch.randn(2, 16, 9, 11, dtype=torch.float64)
    assert relative_error(fused(maps), mixer(maps)) < 1e-9
    assert [part.name for part in fused.fusion_report] == [""]


@pytest.mark.parametrize("name", ["resnet18_das", "cotnet_nano", "nextvit_nano", "groupmixformer_nano", "smt_nano"])
def test_fusing_twice_changes_nothing(name):
    fused = convattn.fuse(build_toy(name).double())
    images = toy_images(name).double()
    with torch.no_grad():
        assert relative_error(convattn.fuse(fused)(images), fused(images)) < 1e-12


def test_fusing_a_foreign_network_twice_finds_nothing():
    fused = convattn.fuse(timm.create_model("resnet10t", num_classes=7))
    again = convattn.fuse(fused)
    assert again.fusion_report == [] and again.fusion_report.left == {}


def test_a_foreign_network_is_left_as_it_was():
    model = timm.create_model("repvgg_a0", num_classes=7).train()
    randomise_norms(model)
    before = copy.deepcopy(model.state_dict())
    convattn.fuse(model)
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_other_numbers_of_channels_and_a_compiled_model():
    model = prepared(timm.create_model("resnet10t", in_chans=1, num_classes=7))
    images = torch.randn(1, 1, 65, 79, dtype=torch.float64)
    fused = convattn.fuse(torch.compile(model))
    assert not norms_of(fused)
    with torch.no_grad():
        assert relative_error(fused._orig_mod(images), model(images)) < 1e-9
