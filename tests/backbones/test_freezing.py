"""Parts of a backbone that do not learn."""

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.backbones.freezing import freeze
from convattn.backbones.levels import Level, find_levels
from toys import build_toy, toy


def learning(model):
    """The first parts of the names of what learns."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_modules(model):
    return {name for name, module in model.named_modules() if not module.training}


# Name, and of each number of parts what does not learn any more by the beginnings of names.
PARTS = [
    ("smt_tiny", [("stem.",), ("stages.0.",), ("stages.1.",), ("stages.2.",), ("stages.3.",)]),
    ("cotnet_50", [("conv1.",), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]),
    ("se_cotnetd_152", [("conv1.",), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)]),
    (
        "mobilenetv2_das",
        [
            ("conv_stem.", "bn1.", "blocks.0."),  # to stride 2
            ("blocks.1.",),
            ("blocks.2.",),
            ("blocks.3.", "blocks.4."),
            ("blocks.5.", "blocks.6."),
        ],
    ),
    ("timm:test_convnext", [("stem.",), ("stages.0.",), ("stages.1.",), ("stages.2.",), ("stages.3.",)]),
    (
        "timm:densenet121",
        [
            ("features.conv0.", "features.norm0."),
            ("features.denseblock1.",),
            ("features.transition1.", "features.denseblock2."),
            ("features.transition2.", "features.denseblock3."),
            ("features.transition3.", "features.denseblock4.", "features.norm5."),
        ],
    ),
    ("timm:repghostnet_050", [("conv_stem.", "bn1."), ("blocks.0.", "blocks.1.")]),  # the last has another module
    ("timm:tresnet_m", [("body.conv1.",), ("body.layer1.",), ("body.layer2.",)]),
    ("timm:hieradet_small", [("pos_embed", "patch_embed."), ("blocks.0.",), ("blocks.1.", "blocks.2.")]),
]


@pytest.mark.parametrize(("name", "parts"), PARTS, ids=[name for name, _ in PARTS])
def test_the_first_parts_do_not_learn(name, parts):
    options = {} if name.startswith("timm:") else toy(name).options
    with torch.device("meta"):
        model = convattn.create_model(name, num_classes=0, **options).train()
    names = {name for name, _ in model.named_parameters()}
    levels = find_levels(model)
    beginnings = ()
    for stages, more in enumerate(parts, 1):
        beginnings += more
        freeze(model, levels, stages)
        assert names - learning(model) == {name for name in names if name.startswith(beginnings)}
        still = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
        assert frozen_modules(model) & still >= {name for name in still if f"{name}.".startswith(beginnings)} - {""}
        assert model.training


def test_wrappers_of_timm_are_frozen_alike():
    for options in (dict(feature_cls="getter"), dict(feature_cls="list")):
        model = timm.create_model("test_convnext", features_only=True, **options)
        freeze(model, find_levels(model), 2)
        assert not any("stem" in name or "stages_0" in name or "stages.0" in name for name in learning(model))
        assert any("stages_1" in name or "stages.1" in name for name in learning(model))


def test_norms_alone_are_frozen_wherever_they_are():
    model = build_toy("nextvit_small").train()
    freeze(model, find_levels(model), norms=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
            assert not module.weight.requires_grad
            assert not module.bias.requires_grad
        else:
            assert module.training
    assert all(model.get_parameter(name).ndim > 1 or name.endswith("bias") for name in learning(model))


def test_an_attached_block_learns_inside_a_frozen_stage():
    model = convattn.attach(build_toy("resnet50_das"), "se", where=["layer1.0"]).train()
    freeze(model, find_levels(model), 2)
    inside = {name for name in learning(model) if name.startswith("layer1.")}
    assert inside
    assert all(".attached." in name for name in inside)
    assert model.layer1[0].attached.training
    assert not model.layer1[0].conv1.training


def test_what_cannot_be_frozen_is_told():
    model = build_toy("smt_tiny")
    with pytest.raises(ValueError, match="frozen_stages 6 must be 0 to 5: the stem and 4 stages"):
        freeze(model, find_levels(model), 6)
    with pytest.raises(ValueError, match="frozen_stages -1 must be 0 to 5"):
        freeze(model, find_levels(model), -1)
    with pytest.raises(ValueError, match=r"feature_info of SMT does not tell which .* of stride 4; leave"):
        freeze(model, [Level(0, 8, 4)], 2)
