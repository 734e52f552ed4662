"""The neck and the heads against mmdetection's numbers: what goes in, what comes out, under which names."""

import pytest

from convattn.detection.anchors import Anchors
from convattn.detection.dense_heads import ATSSHead, RetinaHead
from convattn.detection.feature_pyramid import FeaturePyramid
from convattn.detection.region_features import levels_of, region_features
from convattn.detection.region_heads import BoxHead, MaskHead
from convattn.detection.region_proposals import RegionProposals
from detection_golden import assert_agrees, load_golden

NECKS = {
    "maxpool": dict(),
    "four": dict(outputs=4, extra="none"),
    "bn": dict(norm="batch"),
    "on_input": dict(first=1, extra="on_input"),
    "on_output": dict(extra="on_output"),
    "on_output_relu": dict(first=1, extra="on_output", relu=True),
    "on_lateral": dict(first=1, extra="on_lateral"),
}


@pytest.mark.parametrize("case", NECKS)
def test_a_feature_pyramid(case):
    golden = load_golden("fpn")
    row, channels = golden.meta["cases"][case], golden.meta["channels"]
    levels = golden.pyramid(channels, golden.meta["sizes"])[len(channels) - len(row["in_channels"]) :]
    neck = FeaturePyramid(row["in_channels"], row["out_channels"], **NECKS[case]).double().eval()
    golden.load(neck, f"{case}/")
    assert_agrees(golden, {f"{case}/out{at}": level for at, level in enumerate(neck(levels))})


def test_every_neck_is_looked_at():
    golden = load_golden("fpn")
    assert {*NECKS} == {*golden.meta["cases"]} == {name.split("/")[0] for name in golden.names}


def dense_head(case, golden):
    width, classes = golden.meta["channels"], golden.meta["classes"]
    if case == "rpn":
        return RegionProposals(width, Anchors((4, 8, 16, 32, 64), (8.0,)))
    if case == "retina":
        return RetinaHead(width, classes, conv_width=width)
    wide = golden.meta["atss_channels"]
    return ATSSHead(wide, classes, conv_width=wide)


@pytest.mark.parametrize("case", ["rpn", "retina", "atss"])
def test_heads_over_all_levels(case):
    golden = load_golden("heads")
    head = golden.load(dense_head(case, golden).double(), f"{case}/")
    width = golden.meta["atss_channels" if case == "atss" else "channels"]
    levels = [golden.normal(f"in/feat{at}", 2, width, *size) for at, size in enumerate(golden.meta["head_sizes"])]
    outputs = dict(zip(("cls", "reg", "centerness"), head(levels), strict=False))
    got = {
        f"{case}/{name}{at}": level
        for name, maps in outputs.items()
        if maps is not None
        for at, level in enumerate(maps)
    }
    assert_agrees(golden, got)
    assert {*got} == {name for name in golden.names if name.startswith(f"{case}/")}


BOX_HEADS = {
    "box_2fc": dict(),
    "box_2fc_agnostic": dict(by_class=False),
    "box_4conv1fc": dict(convs=4, layers=1, norm="batch"),
    "box_4conv1fc_agnostic": dict(convs=4, layers=1, norm="batch", by_class=False),
}


@pytest.mark.parametrize("case", BOX_HEADS)
def test_heads_of_boxes(case):
    golden = load_golden("heads")
    meta = golden.meta
    head = BoxHead(meta["channels"], meta["classes"], hidden=meta["fc"], conv_width=meta["conv"], **BOX_HEADS[case])
    regions = golden.normal("in/roi7", meta["rois"], meta["channels"], 7, 7)
    golden.load(head.double(), f"{case}/")
    for mode in ("", "_train") if "conv" in case else ("",):
        logits, steps = head.train(bool(mode))(regions)
        assert_agrees(golden, {f"{case}{mode}/cls": logits, f"{case}{mode}/reg": steps.flatten(1)})


@pytest.mark.parametrize(("case", "norm"), [("mask", "none"), ("mask_bn", "batch")])
def test_heads_of_masks(case, norm):
    golden = load_golden("heads")
    meta = golden.meta
    head = MaskHead(meta["channels"], meta["classes"], conv_width=meta["conv"], norm=norm).double()
    regions = golden.normal("in/roi14", meta["mask_rois"], meta["channels"], 14, 14)
    golden.load(head, f"{case}/")
    for mode in ("", "_train") if norm == "batch" else ("",):
        assert_agrees(golden, {f"{case}{mode}/mask": head.train(bool(mode))(regions)})


def test_regions_are_read_from_the_level_of_their_size():
    golden = load_golden("heads")
    sizes, width = golden.meta["extractor_sizes"], golden.meta["extractor_channels"]
    levels = [golden.normal(f"in/pyr{at}", 2, width, *size) for at, size in enumerate(sizes)]
    rois = golden["extractor/rois"]
    got = {f"extractor/out{side}": region_features(levels, rois, side) for side in (7, 14)}
    assert_agrees(golden, got | {"extractor/levels": levels_of(rois[:, 1:])})


def test_every_output_of_heads_is_looked_at():
    looked_at = {"rpn", "retina", "atss", "extractor", "mask", "mask_bn", "mask_bn_train", *BOX_HEADS}
    looked_at |= {f"{case}_train" for case in BOX_HEADS if "conv" in case}
    assert looked_at == {name.split("/")[0] for name in load_golden("heads").names}
