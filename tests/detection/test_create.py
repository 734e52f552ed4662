"""Detectors by name: their parts, what they weigh and cost, and the names of their weights."""

import pytest
import torch
from torch import nn

import convattn
from convattn.detection.create import create_detector
from convattn.detection.detector import DenseDetector
from convattn.weights.detectors import NO_WEIGHTS
from convattn.weights.errors import CheckpointError, WeightsNote
from detection_golden import load_golden
from tiny_detectors import DENSE, NAMES, SIZE, WITH, Trunk, detector, images

SMT = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet", "atss")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Backbone, detector, options: all parameters, and multiply-adds at 800 × 1280 in billions; docs/detection.md has them.
PUBLISHED = [
    ("smt_small", "mask_rcnn", {}, 42_188_976, 265.0),
    ("smt_small", "cascade_mask_rcnn", dict(box_head="4conv1fc"), 80_024_178, 743.3),
    ("smt_small", "retinanet", {}, 32_271_540, 246.5),
    ("smt_small", "atss", {}, 30_137_114, 213.4),
    ("smt_base", "mask_rcnn", {}, 51_675_376, 326.8),
    ("nextvit_small", "mask_rcnn", {}, 51_124_912, 289.0),
    ("nextvit_base", "mask_rcnn", {}, 64_180_400, 339.3),
    ("nextvit_large", "mask_rcnn", {}, 77_235_888, 389.6),
    ("groupmixformer_tiny", "mask_rcnn", {}, 30_787_016, 244.6),
    ("groupmixformer_tiny", "retinanet", {}, 20_238_796, 225.6),
    ("groupmixformer_tiny", "cascade_mask_rcnn", dict(box_head="4conv1fc"), 68_622_218, 722.9),
    ("groupmixformer_small", "mask_rcnn", {}, 42_230_224, None),
    ("groupmixformer_base", "mask_rcnn", {}, 65_568_016, 522.9),
    ("cotnet_50", "faster_rcnn", dict(style="detectron2"), 39_732_232, 303.3),
    ("cotnet_50", "cascade_rcnn", dict(style="detectron2"), 69_997_430, 560.1),
    ("cotnet_50", "mask_rcnn", dict(style="detectron2"), 42_376_536, 356.3),
    ("cotnet_50", "cascade_mask_rcnn", dict(style="detectron2"), 72_641_734, 613.1),
    ("smt_small", "sparse_rcnn", {}, 104_135_528, 171.0),
    ("smt_small", "dino", {}, 42_006_284, 283.0),  # 309 in the paper; 283 by the layers that it describes
    ("smt_small", "dino", dict(flavour="mmdet"), 42_005_260, None),
    ("timm:resnet50", "faster_rcnn", {}, 41_753_056, None),
    ("resnet50_das", "faster_rcnn", {}, 53_099_622, 211.4),
]
IDS = [f"{backbone}-{name}" for backbone, name, *_ in PUBLISHED]


@pytest.mark.parametrize(("backbone", "name", "options", "total", "macs"), PUBLISHED, ids=IDS)
def test_detectors_weigh_what_is_counted(backbone, name, options, total, macs):
    with torch.device("meta"):
        model = create_detector(backbone, name, **options)
    assert parameters(model) == total


def test_parts_weigh_what_is_counted():
    with torch.device("meta"):
        two, four = (create_detector(Trunk(), "cascade_mask_rcnn", box_head=head) for head in ("2fc", "4conv1fc"))
        theirs = create_detector(Trunk(), "cascade_mask_rcnn", style="detectron2")
        one = create_detector(Trunk(), "mask_rcnn")
        retina, atss = (create_detector(Trunk(), name) for name in ("retinanet", "atss"))
    assert parameters(one.rpn_head) == 593_935
    assert parameters(one.roi_head.bbox_head) == 14_306_705
    assert parameters(two.roi_head.bbox_head[0]) == 13_982_805
    assert parameters(four.roi_head.bbox_head[0]) == 15_618_449
    assert parameters(theirs.roi_head.bbox_head[0]) == 15_294_549
    assert parameters(one.roi_head.mask_head) == parameters(four.roi_head.mask_head[2]) == 2_643_280
    assert parameters(theirs.roi_head.mask_head) == 2_644_304
    assert (parameters(retina.bbox_head), parameters(atss.bbox_head)) == (6_463_220, 4_918_618)
    channels = 4 * 8
    assert parameters(one.neck) == 256 * channels + 4 * 256 + 4 * 590_080
    assert parameters(theirs.neck) == 256 * channels + 4 * 512 + 4 * 590_336


class Products(nn.Module):
    """What costs of a detector are counted of: 1000 regions and 100 masks an image."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.products(images)


QUICK = {"smt_small-mask_rcnn", "smt_small-atss", "nextvit_small-mask_rcnn", "smt_small-sparse_rcnn", "smt_small-dino"}


@pytest.mark.parametrize(
    ("backbone", "name", "options", "macs"),
    [
        pytest.param(*row[:3], row[4], id=name, marks=() if name in QUICK else pytest.mark.slow)
        for row, name in zip(PUBLISHED, IDS, strict=True)
        if row[4] is not None
    ],
)
def test_detectors_cost_what_is_published(backbone, name, options, macs):
    """Convolutions and linear layers of modules alone: what the counter of the papers sees."""
    with torch.device("meta"):
        model = create_detector(backbone, name, **options)
    counted = convattn.count(Products(model.eval()), (800, 1280), style="published").macs / 1e9
    assert counted == pytest.approx(macs, rel=0.01)
    assert counted == pytest.approx(macs, rel=0.002)  # the page's own count


def test_models_and_names_are_taken_and_told():
    trunk = Trunk()
    model = create_detector(trunk, "mask_rcnn", 3, width=32, hidden=16)
    assert model.backbone is not trunk and model.num_classes == 3
    assert model.pretrained_cfg["architecture"] == "mask_rcnn_Trunk"
    assert model.pretrained_cfg["classifier"] == ("roi_head.bbox_head.fc_cls",)
    named = create_detector("timm:resnet18", "atss", 2, width=64, max_detections=7)
    assert named.built_as["task"] == named.task_kind == "detection"
    options = dict(named.built_as["options"])
    again = create_detector(options.pop("backbone"), named.built_as["name"], **options)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in named.state_dict().items()
    }
    assert (again.max_detections, again.score_threshold) == (7, 0.05)
    assert [level["reduction"] for level in named.feature_info] == [8, 16, 32]


def test_backbones_are_built_in_the_form_of_the_authors_detectors():
    with torch.device("meta"):
        model = create_detector("nextvit_small", "mask_rcnn")
        other = create_detector("nextvit_small", "mask_rcnn", extra_norm=True)
    assert model.built_as["options"]["extra_norm"] is False
    assert parameters(other) - parameters(model) == 2 * (96 + 256 + 512) + 2 * 1024


@pytest.mark.parametrize("name", SMT)
def test_other_classes_are_learnt_by_fresh_layers(name):
    model = detector(name).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.reset_classifier(5)
    assert model.num_classes == 5
    changed = {name for name, weight in model.state_dict().items() if weight.shape != before[name].shape}
    kept = {name for name in before if name not in changed}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in kept)
    assert {place for name in changed for place in ("cls", "reg", "logits") if place in name.rsplit(".", 2)[1]} == (
        {"cls"}
        | ({"reg"} if name in ("faster_rcnn", "mask_rcnn") else set())
        | ({"logits"} if "mask" in name else set())
    )
    assert model.get_classifier().weight.shape[0] in (5, 6, 45)
    target = {**WITH, "labels": torch.tensor([4, 3])}
    assert all(loss.isfinite() for loss in model.train()(images(SIZE), [target]).values())
    model.eval()(images(SIZE))


@pytest.mark.parametrize("name", SMT)
def test_fresh_detectors_are_unsure(name):
    with torch.no_grad():
        model = detector(name).eval()
        losses = model.losses(images(SIZE), [WITH])
    assert losses.get("label", losses.get("stage0.label")) < 3
    if isinstance(model, DenseDetector):
        assert model.get_classifier().bias.sigmoid().tolist() == pytest.approx(
            [0.01] * len(model.get_classifier().bias)
        )


def test_stages_and_norms_of_the_backbone_may_be_frozen():
    model = detector("mask_rcnn", frozen_stages=2, frozen_norms=True).train()  # whatever gives the first level
    assert not any(weight.requires_grad for weight in model.backbone.stem.parameters())
    assert not any(module.training for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d))
    before = model.backbone.stages[0][1].running_mean.clone()
    sum(model(images(SIZE), [WITH]).values()).backward()
    assert torch.equal(model.backbone.stages[0][1].running_mean, before)
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    assert model.neck.lateral_convs[0].conv.weight.requires_grad


# Names


@pytest.mark.parametrize("name", SMT)
def test_names_are_those_of_mmdetection(name):
    golden = load_golden(f"e2e_{name}")
    meta = golden.meta
    widths = dict(width=meta["fpn"], box_head="4conv1fc" if name == "cascade_mask_rcnn" else None)
    widths |= {} if name in DENSE else dict(hidden=meta["fc"])
    model = create_detector(Trunk(), name, meta["classes"], **widths)
    theirs = {entry for entry in map(model.official_names.to_theirs, model.state_dict()) if entry is not None}
    assert {entry for entry in theirs if not entry.startswith("backbone.")} == {*golden.shapes}


def test_whole_files_of_mmdetection_and_detectron2_are_read_and_written():
    for name, style in (("cascade_mask_rcnn", "mmdet"), ("retinanet", "mmdet"), ("mask_rcnn", "detectron2")):
        options = dict(style=style, width=32, stem="conv", **({} if name in DENSE else dict(hidden=16)))
        with torch.random.fork_rng():
            model, other = (create_detector("cotnet_nano", name, 2, dims=(8,) * 4, **options) for _ in range(2))
        file = convattn.to_official(model)
        assert any(entry.startswith("backbone.bottom_up.") for entry in file) == (style == "detectron2")
        assert not any(entry.startswith(NO_WEIGHTS) for entry in file)
        beside = {"pixel_mean": torch.zeros(3), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4)}
        with pytest.warns(match="left out.* never reads it: pixel_mean, proposal_generator.anchor_generator.cell"):
            convattn.load_official(other, file | beside)
        state = other.state_dict()
        assert all(torch.equal(tensor, state[entry]) for entry, tensor in model.state_dict().items())


def test_files_of_mmdetection_1_are_brought_to_the_names_of_later_ones():
    model, other = detector("mask_rcnn"), detector("mask_rcnn")
    old = {}
    for name, tensor in model.state_dict().items():
        if ".fc_cls." in name:
            tensor = torch.roll(tensor, 1, 0)  # background in front
        elif ".fc_reg." in name:
            tensor = torch.cat([torch.ones_like(tensor[:4]), tensor])
        elif ".conv_logits." in name:
            tensor = torch.cat([torch.ones_like(tensor[:1]), tensor])
        old[name.removeprefix("roi_head.")] = tensor
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    with pytest.warns(WeightsNote, match="of mmdetection 1, whose background is the first class: moved behind"):
        convattn.load_official(other, {"state_dict": old})
    state = other.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    dense = detector("retinanet")
    convattn.load_official(dense, dense.state_dict())  # whose heads are called so in every version: no note


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in NAMES), ("cascade_mask_rcnn", dict(style="detectron2"))]
)
def test_a_file_of_other_classes_is_told(name, options):
    model, file = detector(name, 3, **options), detector(name, 5, **options).state_dict()
    with pytest.raises(CheckpointError, match="the file has 5 classes; build the model with num_classes=5"):
        convattn.load_official(model, file)
    one = detector(name, 1, **options)
    with pytest.raises(CheckpointError, match="the file has 3 classes; build the model with num_classes=3"):
        convattn.load_official(one, model.state_dict())
    if name == "atss":
        return
    with pytest.raises(CheckpointError, match=r"head_rows is one output a class, and .* has (4|27); leave it out"):
        convattn.load_official(model, file, head_rows=[0, 2, 4])


@pytest.mark.parametrize(("own", "theirs"), [("mmdet", "detectron2"), ("detectron2", "mmdet")])
def test_a_file_of_the_other_style_is_told(own, theirs):
    small = dict(width=32, hidden=16, stem="conv", dims=(8,) * 4)
    model, other = (create_detector("cotnet_nano", "faster_rcnn", 2, style=style, **small) for style in (own, theirs))
    told = f"but of one with style='{theirs}', and this one has style='{own}'; build it with style='{theirs}'$"
    with pytest.raises(CheckpointError, match=told):
        convattn.load_official(model, convattn.to_official(other))
