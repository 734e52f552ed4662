"""Levels by their stride, of our models and timm's, in every form."""

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.backbones.levels import FormNote, dense_backbone, find_levels, level_maps
from convattn.backbones.registry import dense_options, list_models
from toys import build_toy, toy

# One of each manner in which timm's networks make levels; all of timm's were tried once, see docs/segmentation.md.
SAMPLE = [
    "test_resnet",
    "test_efficientnet",  # the levels are not a row
    "test_convnext",
    "test_nfnet",
    "regnetx_002",
    "mobilenetv4_conv_small_035",
    "repghostnet_050",
    "dla46_c",
    "densenet121",
    "hrnet_w18_small",  # branches
    "pvt_v2_b0",  # tokens
    "swin_tiny_patch4_window7_224",  # channels last
    "hieradet_small",  # channels last, one row of blocks
    "tiny_vit_5m_224",
    "mobilevit_xxs",
    "vgg11",
]


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore::convattn.backbones.levels.FormNote")
def test_levels_of_timm_are_as_they_say(name):
    with torch.device("meta"):
        backbone, levels = dense_backbone(f"timm:{name}")
        maps = level_maps(backbone, torch.empty(2, 3, 128, 192), levels)
    assert [level.stride for level in levels] == [4, 8, 16, 32]
    assert [each.shape for each in maps] == [
        (2, level.channels, 128 // level.stride, 192 // level.stride) for level in levels
    ]


@pytest.mark.parametrize("features", ["getter", "list", "hook", "dict"])
def test_timms_wrappers_give_the_same_maps(features):
    whole = timm.create_model("test_resnet", num_classes=0).eval()
    wrapped = timm.create_model("test_resnet", features_only=True, feature_cls=features).eval()
    wrapped.load_state_dict(dict(zip(wrapped.state_dict(), whole.state_dict().values(), strict=False)))
    images = torch.randn(1, 3, 64, 64)
    want = level_maps(whole, images, find_levels(whole))
    got = level_maps(wrapped, images, find_levels(wrapped))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_maps_of_a_wrapper_that_are_channels_last_are_turned():
    wrapped = timm.create_model(
        "swin_tiny_patch4_window7_224", features_only=True, depths=(1,) * 4, embed_dim=24, strict_img_size=False
    )
    maps = level_maps(wrapped, torch.randn(1, 3, 64, 96), find_levels(wrapped))
    assert [each.shape for each in maps] == [(1, 24, 16, 24), (1, 48, 8, 12), (1, 96, 4, 6), (1, 192, 2, 3)]


def test_of_several_levels_of_a_stride_the_last_is_taken():
    model = convattn.create_model("resnet50_das", output_stride=16, **toy("resnet50_das").options)
    (level,) = find_levels(model, (16,))
    assert (level.index, level.module) == (4, "layer4")
    with pytest.raises(ValueError, match=r"resnet50_das has levels of stride 2, 4, 8, 16; 32 are needed"):
        find_levels(model, (32,))


def test_levels_come_in_the_order_in_which_they_are_asked_for():
    model = build_toy("smt_tiny")
    images = torch.randn(1, 3, 64, 64)
    maps = level_maps(model, images, find_levels(model, (32, 8)))
    assert [each.shape[-1] for each in maps] == [2, 8]


@pytest.mark.parametrize("name", [name for name in list_models() if "cifar" not in name])
def test_every_model_of_ours_has_a_dense_form(name):
    options = {key: value for key, value in toy(name).options.items() if key not in dense_options(name)}
    with torch.device("meta"):
        if dense_options(name):
            with pytest.warns(FormNote):
                backbone, levels = dense_backbone(name, **options)
        else:
            backbone, levels = dense_backbone(name, **options)
        maps = level_maps(backbone.eval(), torch.empty(1, 3, 128, 192), levels)
    assert [each.shape[2:] for each in maps] == [(128 // stride, 192 // stride) for stride in (4, 8, 16, 32)]
    assert backbone.built_as["options"].items() >= dense_options(name).items()


def test_what_lies_behind_the_levels_is_left_out():
    with torch.device("meta"):
        whole = convattn.create_model("groupmixformer_tiny")
        backbone, levels = dense_backbone(whole)
        assert {name.partition(".")[0] for name in backbone.state_dict()} == {"stem", "stages"}
        assert any(name.startswith("norm.") for name in whole.state_dict())  # a copy was taken
        shallow, _ = dense_backbone(whole, (4, 8))
        assert len(shallow.stages) == 2
    assert [level.module for level in levels] == [f"stages.{index}" for index in range(4)]


def test_the_form_of_a_given_model_is_stated_in_full():
    for extra_norm in (False, True):
        model = build_toy("nextvit_small", extra_norm=extra_norm, drop_path_rate=0.1)
        backbone, _ = dense_backbone(model)
        stated = backbone.built_as["options"]
        assert (stated["extra_norm"], stated["drop_path_rate"]) == (extra_norm, 0.1)
        assert "num_classes" not in stated
        again, _ = dense_backbone("nextvit_small", **stated)
        assert again.state_dict().keys() == backbone.state_dict().keys()


def test_patches_of_timm_pad_rather_than_refuse():
    with pytest.warns(FormNote):
        backbone, levels = dense_backbone("timm:swin_tiny_patch4_window7_224", depths=(1,) * 4, embed_dim=24)
    maps = level_maps(backbone, torch.randn(1, 3, 66, 93), levels)
    assert [each.shape[2:] for each in maps] == [(17, 24), (9, 12), (5, 6), (3, 3)]


def test_a_module_without_levels_is_told():
    with pytest.raises(ValueError, match="Conv2d has no feature_info, which says what levels it has"):
        find_levels(nn.Conv2d(3, 3, 1))
