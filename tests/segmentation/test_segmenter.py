"""Segmenters on every family: what comes out, what is built, what is refused."""

import warnings

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.backbones.levels import FormNote
from convattn.segmentation.segmenter import Segmenter
from segmentation_toys import GivenLevels, build_segmenter
from toys import build_toy, toy

FAMILIES = [
    "smt_tiny",
    "nextvit_small",
    "groupmixformer_tiny",
    "cotnet_50",
    "se_cotnetd_152",
    "resnet50_das",
    "mobilenetv2_das",
    "hybrid",
]
HEADS = ["upernet", "semantic_fpn"]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_logits_of_the_image_and_learns_with_all_it_has(name, head):
    model = build_segmenter(name, head, drop_path_rate=0.1)
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        assert model(images).shape == (2, 7, 65, 97)
    outputs = model.train()(images)
    assert [*outputs] == (["decode", "auxiliary"] if head == "upernet" else ["decode"])
    fine = outputs["decode"].shape
    assert fine[:2] == (2, 7)
    assert {*fine[2:]} <= {16, 17, 24, 25}  # stride 4
    if head == "upernet":
        assert outputs["auxiliary"].shape[2:] in {(5, 7), (4, 6)}  # stride 16
    sum(logits.square().mean() for logits in outputs.values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_second_head_does_not_run_in_evaluation():
    model = build_segmenter()
    model.auxiliary_head.register_forward_hook(lambda *_: pytest.fail("ran"))
    model(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "stated", "options"),
    [
        ("smt_nano", "stem_stride=4", {}),
        ("groupmixformer_nano", "stem_stride=4", {}),
        ("cotnet_nano", "stem='conv'", {}),
        ("nextvit_nano", "extra_norm=True, stem_stride=4", {}),
        ("nextvit_nano_extra_norm", "stem_stride=4", {}),
        ("nextvit_small", "extra_norm=True", {}),
        ("timm:swin_tiny_patch4_window7_224", "dynamic_img_size=True", dict(depths=(1,) * 4, embed_dim=24)),
    ],
)
def test_another_form_than_the_names_is_said_in_one_line(name, stated, options):
    with pytest.warns(FormNote) as caught, torch.device("meta"):
        model = convattn.create_segmenter(name, width=8, **options)
    (note,) = caught
    assert str(note.message) == (
        f"{name} is built with {stated}, its form for dense prediction; give options to change it"
    )
    assert note.filename == __file__
    assert [level.stride for level in model.levels] == [4, 8, 16, 32]


def test_an_option_that_is_given_stands():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_segmenter("nextvit_small", extra_norm=False)
    assert isinstance(model.backbone.stages[0].norm, nn.Identity)
    assert isinstance(model.backbone.norm, nn.Identity)  # behind the levels, so that nothing is left without gradients


def test_the_fourth_level_of_next_vit_is_normalised():
    model = build_segmenter("nextvit_small")
    norm = model.backbone.stages[3].norm
    got = []
    norm.register_forward_hook(lambda module, inputs, output: got.append(output))
    seen = []
    model.decode_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][3]))
    model(torch.randn(1, 3, 64, 64))
    assert torch.equal(seen[0], got[0])


# Backbones that are given as models


def given_forms():
    toy_options = toy("smt_tiny").options
    yield "with a head", lambda: build_toy("smt_tiny")
    yield "without", lambda: build_toy("smt_tiny", num_classes=0)
    yield "features_only", lambda: convattn.create_model("smt_tiny", features_only=True, **toy_options)
    yield "timm's", lambda: timm.create_model("resnet18", num_classes=3)
    yield "timm's list of features", lambda: timm.create_model("resnet18", features_only=True, feature_cls="list")
    yield (
        "timm's, channels last",
        lambda: timm.create_model("swin_tiny_patch4_window7_224", features_only=True, **_SWIN),
    )


_SWIN = dict(depths=(1,) * 4, embed_dim=24, strict_img_size=False)


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in given_forms()])
def test_a_model_is_a_backbone_in_every_form(build):
    backbone = build()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = convattn.create_segmenter(backbone, "semantic_fpn", 7, width=8).eval()
    assert model(torch.randn(2, 3, 64, 96)).shape == (2, 7, 64, 96)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after = backbone.state_dict()
    assert before.keys() == after.keys()  # its head is still there
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())  # and its weights its own


def test_the_weights_of_a_given_model_are_the_start():
    backbone = build_toy("smt_tiny")
    model = convattn.create_segmenter(backbone, num_classes=7, width=8)
    state = backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.backbone.state_dict().items())


def test_any_module_that_tells_its_levels_is_a_backbone():
    levels = [torch.randn(2, width, *size) for width, size in ((4, (9, 12)), (6, (5, 6)), (8, (3, 3)), (10, (2, 2)))]
    model = convattn.create_segmenter(GivenLevels(levels), "upernet", 5, width=4).eval()
    assert model(torch.empty(2, 3, 36, 48)).shape == (2, 5, 36, 48)
    assert not hasattr(model, "built_as")


def test_heads_are_of_the_type_and_on_the_device_of_the_backbone():
    model = convattn.create_segmenter(build_toy("smt_tiny").to("meta", torch.float64), num_classes=7, width=8)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smt_tiny", dict(head="deeplab"), "head 'deeplab' is unknown; known: semantic_fpn, upernet"),
        ("smt_tiny", dict(num_classes=1), "num_classes 1 must be 2 or more"),
        ("smt_tiny", dict(width=1), "width 1 must be 2 or more"),
        ("smt_tiny", dict(dropout=1.0), "dropout 1.0 must be at least 0 and below 1"),
        ("smt_tiny", dict(frozen_stages=6), "frozen_stages 6 must be 0 to 5: the stem and 4 stages"),
        ("smt_tiny", dict(global_pool="max"), "option global_pool is of a classifier, which smt_tiny has not here"),
        ("smt_tiny", dict(depth=3), "unknown option 'depth' of smt_tiny; nearest: depths"),
        ("smt_tiny", dict(stem_stride=2), "smt_tiny has levels of stride 2, 4, 8, 16; 4, 8, 16, 32 are needed"),
        ("smt_nano", dict(stem_stride=2), "8, 16; 4, 8, 16, 32 are needed; with stem_stride=4 they are there"),
        ("cotnet_50", dict(output_stride=16), "8, 16; 4, 8, 16, 32 are needed; leave out output_stride"),
        ("resnet18_das_cifar", {}, "resnet18_das_cifar has levels of stride 1, 2, 4, 8; 4, 8, 16, 32 are needed"),
        ("timm:test_vit", {}, "timm:test_vit has levels of stride 16; 4, 8, 16, 32 are needed"),
        ("smt_tinny", {}, "unknown model 'smt_tinny'; nearest: smt_tiny"),
    ],
)
def test_what_makes_no_segmenter_is_told(name, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        convattn.create_segmenter(name, **options)


def test_what_is_no_backbone_is_told():
    with pytest.raises(ValueError, match=r"smt_nano has levels .* with stem_stride=4 they are there"):
        convattn.create_segmenter(convattn.create_model("smt_nano", **toy("smt_tiny").options))
    with pytest.raises(ValueError, match="Linear has no feature_info, which says what levels it has"):
        convattn.create_segmenter(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Segmenter has the heads of a task already; give its backbone alone"):
        convattn.create_segmenter(build_segmenter())
    with pytest.raises(ValueError, match="options drop_path_rate are of a backbone given by name"):
        convattn.create_segmenter(build_toy("smt_tiny"), drop_path_rate=0.1)


# The contract of networks


def test_it_says_what_it_takes_and_gives():
    model = build_segmenter("smt_tiny", in_chans=4)
    cfg = model.pretrained_cfg
    assert (model.task_kind, model.num_classes, model.fixed_size) == ("segmentation", 7, None)
    assert (cfg["input_size"], cfg["num_classes"], cfg["architecture"]) == ((4, 512, 512), 7, "upernet_smt_tiny")
    assert (cfg["mean"], cfg["std"]) == tuple(model.backbone.pretrained_cfg[key] for key in ("mean", "std"))
    assert "label_names" not in cfg
    assert [info["module"] for info in model.feature_info] == [f"backbone.stages.{index}" for index in range(4)]


def test_a_backbone_for_one_size_alone_says_so():
    with torch.device("meta"):
        model = convattn.create_segmenter("timm:test_maxvit", width=8)
        assert model.fixed_size == (160, 160)
        assert model.pretrained_cfg["input_size"] == (3, 160, 160)
        assert convattn.create_segmenter("timm:coat_lite_mini", width=8, img_size=128).fixed_size == (128, 128)
        assert convattn.create_segmenter("timm:twins_svt_small", width=8).fixed_size is None


def test_images_are_padded_for_a_backbone_that_takes_multiples_alone():
    model = build_segmenter("timm:dla46x_c", "semantic_fpn")
    assert model.size_multiple == 32
    images = torch.randn(1, 3, 50, 70)
    padded = nn.functional.pad(images, (0, 26, 0, 14))
    assert torch.equal(model(images), model(padded)[..., :50, :70])
    with pytest.raises(
        ValueError, match="images of 50 x 70: to learn, this backbone takes sides that are multiples of 32"
    ):
        model.train()(images)
    assert build_segmenter("timm:test_resnet").size_multiple == build_segmenter().size_multiple == 1


def test_a_network_of_timm_without_levels_of_its_own_is_wrapped(monkeypatch):
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")  # as timm had it before
    model = build_segmenter("timm:test_resnet", "semantic_fpn")
    assert type(model.backbone).__name__ == "FeatureListNet"
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 7, 64, 96)


@pytest.mark.parametrize("head", HEADS)
def test_a_fresh_last_layer_has_the_new_classes(head):
    model = build_segmenter(head=head)
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    assert model.get_classifier().weight.std().item() == pytest.approx(0.01, rel=0.5)
    assert all(logits.shape[1] == 3 for logits in model.train()(torch.randn(2, 3, 64, 64)).values())
    with pytest.raises(ValueError, match="num_classes 0 must be 2 or more"):
        model.reset_classifier(0)


def test_blocks_are_attached_to_its_stages():
    model = build_segmenter()
    images = torch.randn(1, 3, 64, 64)
    gated = convattn.attach(model, "se", init="identity")
    assert [row["place"] for row in gated.surgery] == [f"backbone.stages.{index}" for index in range(4)]
    assert torch.equal(gated.eval()(images), model(images))
    assert torch.equal(convattn.detach(gated).eval()(images), model(images))


def test_gradients_are_equal_with_checkpointing():
    model = build_segmenter("smt_tiny", dropout=0.0).train()
    images = torch.randn(2, 3, 64, 64)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images)["decode"].square().mean().backward()
        found.append({name: parameter.grad for name, parameter in model.backbone.named_parameters()})
    assert all(torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-7) for name in found[0])


def test_what_must_not_decay_is_the_backbones():
    with pytest.warns(FormNote):
        model = convattn.create_segmenter("timm:swin_tiny_patch4_window7_224", num_classes=7, width=8, **_SWIN_BY_NAME)
    assert model.no_weight_decay()
    assert model.no_weight_decay() == {f"backbone.{name}" for name in model.backbone.no_weight_decay()}
    assert isinstance(model, Segmenter)


_SWIN_BY_NAME = dict(depths=(1,) * 4, embed_dim=24)
