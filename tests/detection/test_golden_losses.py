"""Losses and what they are divided by, and what is made of raw outputs, against mmdetection's numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convattn.detection.anchors import Anchors
from convattn.detection.boxes import giou_with_floor
from convattn.detection.dense_heads import ATSSHead, RetinaHead
from convattn.detection.losses import (
    averaged,
    centerness_of,
    focal,
    focal_of_background,
    giou_loss,
    mask_loss,
)
from convattn.detection.masks import Bitmaps, pasted, shares_of_pixels
from convattn.detection.post_processing import best_of_classes
from convattn.detection.region_proposals import RegionProposals
from detection_golden import assert_agrees, bitmaps, load_golden, true_objects


def test_losses():
    golden = load_golden("losses")
    n, classes, count = golden.meta["n"], golden.meta["classes"], golden.meta["avg_factor"]
    labels, weights = golden["labels"], golden["weights"]
    logits = golden.normal("in/logits", n, classes + 1)
    first, second = logits[:, 0], logits[:, 1]
    raw = golden.normal("in/focal", n, classes)
    wanted = F.one_hot(labels, classes + 1)[:, :classes].to(raw)
    p, t = golden.normal("in/p", n, 4), golden.normal("in/t", n, 4)
    got_boxes, true_boxes = golden["giou_pred"], golden["giou_target"]
    maps, bits = golden.normal("in/mp", n, classes, 8, 8), golden.normal("in/mt", n, 8, 8) > 0
    entropy = F.cross_entropy(logits, labels, reduction="none")
    binary = F.binary_cross_entropy_with_logits(first, (labels <= 2).to(first), reduction="none")
    soft = F.binary_cross_entropy_with_logits(first, second.sigmoid(), reduction="none")
    each = weights[:, None]
    got = {
        "ce": 1.5 * averaged(entropy * weights, count),
        "ce_mean": entropy.mean(),
        "bce": averaged(binary * weights, count),
        "bce_soft": averaged(soft, count),
        "focal": averaged(focal(raw, wanted) * each, count),
        "focal_big": averaged(focal(60 * raw, wanted) * each, count),
        "l1": averaged(F.smooth_l1_loss(p, t, reduction="none", beta=0.0) * each, count),
        "smooth_l1_1": averaged(F.smooth_l1_loss(p, t, reduction="none", beta=1.0) * each, count),
        "smooth_l1_9": averaged(F.smooth_l1_loss(p, t, reduction="none", beta=1 / 9) * each, count),
        "giou": 10 * averaged(giou_loss(got_boxes, true_boxes) * weights, count),
        "giou_w": 2 * averaged(giou_loss(got_boxes, true_boxes) * weights, 1),
        "giou_none": 1 - giou_with_floor(got_boxes, true_boxes),
        "mask": mask_loss(maps, labels % classes, bits),
        "centerness": centerness_of(golden["ctr_anchors"], golden["ctr_gts"]),
    }
    assert_agrees(golden, got)
    inputs = {"labels", "weights", "giou_pred", "giou_target", "ctr_anchors", "ctr_gts"}
    assert golden.names - {*got} - inputs == {"mask_target", "mt_boxes", "mt_gt", "mt_index"}


def test_masks_to_learn_within_boxes():
    golden = load_golden("losses")
    height, width = golden.meta["mask_image"]
    boxes, _ = true_objects(golden, 0, 3, height, width)
    assert torch.allclose(boxes, golden["mt_gt"], rtol=1e-12)
    got = Bitmaps(bitmaps(boxes, height, width)).within(golden["mt_index"], golden["mt_boxes"], 28)
    assert torch.equal(got, golden["mask_target"].double())


@pytest.mark.parametrize("case", ["default", "tight", "none"])
def test_the_best_of_each_class(case):
    golden = load_golden("post")
    least, overlap, most = golden.meta["nms"][case]
    boxes, scores = golden["nms/in_boxes"].unflatten(1, (-1, 4)), golden["nms/in_scores"][:, :-1]
    found = best_of_classes(boxes, scores, least=least, overlap=overlap, most=most)
    assert torch.equal(found.labels, golden[f"nms/{case}/labels"])
    assert torch.equal(found.index, golden[f"nms/{case}/keep"])
    assert_agrees(golden, {f"nms/{case}/dets": torch.cat([found.boxes_xyxy, found.scores[:, None]], 1)})


def test_the_best_of_each_class_with_one_box_for_all():
    golden = load_golden("post")
    least, overlap, most = golden.meta["nms"]["default"]
    boxes, scores = golden["nms/in_boxes"][:, :4], golden["nms/in_scores"][:, :-1]
    found = best_of_classes(boxes, scores, least=least, overlap=overlap, most=most)
    assert torch.equal(found.labels, golden["nms/agnostic/labels"])
    assert_agrees(golden, {"nms/agnostic/dets": torch.cat([found.boxes_xyxy, found.scores[:, None]], 1)})


def raw_maps(golden, case, head, classes):
    """Maps of classes and steps as the file has drawn them."""
    sizes, count = golden.meta["sizes"][case.removesuffix("_small")], head.anchors.count
    logits = [1.5 * golden.normal(f"in/{case}cls{at}", 2, count * classes, *size) - 1 for at, size in enumerate(sizes)]
    steps = [0.5 * golden.normal(f"in/{case}reg{at}", 2, count * 4, *size) for at, size in enumerate(sizes)]
    return logits, steps


@pytest.mark.parametrize("case", ["rpn", "rpn_small"])
def test_proposals(case):
    golden = load_golden("post")
    row = golden.meta[case]
    most = row["nms_pre"], row["max_per_img"]
    anchors = Anchors((4, 8, 16, 32, 64), (8.0,))
    head = RegionProposals(8, anchors, testing=most, smallest=row.get("min_bbox_size", 0)).eval()
    logits, steps = raw_maps(golden, case, head, 1)
    found = head.proposals(logits, steps, [tuple(image["img_shape"]) for image in golden.meta["images"]])
    got = {
        f"{case}/dets{at}": torch.cat([one.boxes_xyxy, one.logits.sigmoid()[:, None]], 1)
        for at, one in enumerate(found)
    }
    assert_agrees(golden, got)


@pytest.mark.parametrize("case", ["retina", "atss"])
def test_what_dense_heads_find(case):
    golden = load_golden("post")
    row, classes = golden.meta[case], golden.meta["classes"]
    head = (RetinaHead if case == "retina" else ATSSHead)(32, classes, conv_width=32)
    head.of_level, head.least, head.most = row["nms_pre"], row["score_thr"], row["max_per_img"]
    assert head.overlap == row["iou"]
    logits, steps = raw_maps(golden, case, head, classes)
    sizes = golden.meta["sizes"][case]
    centers = [golden.normal(f"in/atssctr{at}", 2, 1, *size) for at, size in enumerate(sizes)]
    images = golden.meta["images"]
    found = head.results(
        logits,
        steps,
        centers if case == "atss" else None,
        [tuple(image["img_shape"]) for image in images],
        [tuple(image["ori_shape"]) for image in images],
    )
    for at, one in enumerate(found):
        assert torch.equal(one["labels"], golden[f"{case}/labels{at}"])
        assert_agrees(golden, {f"{case}/dets{at}": torch.cat([one["boxes"], one["scores"][:, None]], 1)})


def test_masks_are_put_back():
    golden = load_golden("post")
    size, boxes = tuple(golden.meta["paste"]), golden["paste/boxes"]
    shares = (2 * golden.normal("in/paste", len(boxes), 1, 28, 28)).sigmoid()[:, 0]
    assert_agrees(golden, {"paste/soft": shares_of_pixels(shares, boxes, *size)})
    bits = pasted(shares, boxes, size)
    assert torch.equal(bits.sum((1, 2)), golden["paste/area"].long())
    assert np.array_equal(np.packbits(bits.numpy().reshape(-1)), golden.arrays["paste/bits"].reshape(-1))


def test_background_has_the_same_loss_in_fewer_steps():
    logits = torch.linspace(-40, 40, 401, dtype=torch.float64)
    assert torch.allclose(focal_of_background(logits), focal(logits, torch.zeros_like(logits)), rtol=1e-13, atol=1e-15)
