"""Anchors, steps between boxes, overlaps, and who stands for what, against mmdetection's numbers."""

import pytest
import torch

from convattn.detection.anchors import Anchors, inside_border
from convattn.detection.assigning import ATSS, MaxIoU
from convattn.detection.box_coder import BoxCoder
from convattn.detection.boxes import giou_with_floor, iof, iou
from detection_golden import assert_agrees, load_golden

ANCHORS = {
    "rpn": Anchors((4, 8, 16, 32, 64), (8.0,)),
    "retina": Anchors((8, 16, 32, 64, 128), tuple(4 * 2 ** (step / 3) for step in range(3))),
    "atss": Anchors((8, 16, 32, 64, 128), (8.0,), (1.0,)),
}


@pytest.mark.parametrize("case", ANCHORS)
def test_anchors_their_padding_and_their_border(case):
    golden, anchors = load_golden("anchors"), ANCHORS[case]
    sizes = [tuple(size) for size in golden.meta["sizes"][case]]
    height, width = golden.meta["img_shape"]
    boxes = anchors.all_boxes(sizes, torch.zeros((), dtype=torch.float64))
    valid = anchors.within(sizes, tuple(golden.meta["pad_shape"]))
    got = {}
    for level, (own, there) in enumerate(zip(boxes, valid, strict=True)):
        inside = there & inside_border(own, (height, width), 0)
        got |= {f"{case}/base{level}": anchors.base(level), f"{case}/anchors{level}": own}
        got |= {f"{case}/valid{level}": there, f"{case}/inside{level}": inside}
    assert_agrees(golden, got)
    assert {*got} == {name for name in golden.names if name.startswith(f"{case}/")}


def test_steps_there_and_back():
    golden = load_golden("coder")
    rois, deltas, size = golden["rois"], golden["deltas"], tuple(golden.meta["max_shape"])
    got = {}
    for number, deviations in enumerate(golden.meta["stds"]):
        coder, case = BoxCoder(tuple(deviations)), f"std{number}"
        got |= {
            f"{case}/encode": coder.encode(golden["encode_rois"], golden["gts"]),
            f"{case}/decode4": coder.decode(rois, deltas[:, :4]),
            f"{case}/decode4_clip": coder.decode(rois, deltas[:, :4], size),
            f"{case}/decode_classes_clip": coder.decode(rois[:, None], deltas.unflatten(1, (-1, 4)), size).flatten(1),
        }
    moved = BoxCoder(tuple(golden.meta["stds"][1]), tuple(golden.meta["means"]))
    got |= {
        "means/encode": moved.encode(golden["encode_rois"], golden["gts"]),
        "means/decode4_clip": moved.decode(rois, deltas[:, :4], size),
        "iou": iou(rois[:12, None], golden["gts"][:10]),
        "iof": iof(rois[:12, None], golden["gts"][:10]),
        "giou_aligned": giou_with_floor(rois, golden["gts"]),
    }
    assert_agrees(golden, got)
    assert {*got} == golden.names - {"rois", "gts", "deltas", "encode_rois"}


def assigner_of(row):
    weak = "none"
    if row.get("match_low_quality", True):
        weak = "all" if row.get("gt_max_assign_all", True) else "first"
    return MaxIoU(
        row["pos_iou_thr"],
        row["neg_iou_thr"],
        weak,
        row["min_pos_iou"],
        ignored=row["ignore_iof_thr"] if row["ignore_iof_thr"] > 0 else None,
        of_area=not row.get("ignore_wrt_candidates", True),
    )


def labels_of(golden, case, assigned):
    labels = golden[f"{case}/gt_labels"]
    if not len(labels):
        return torch.full_like(assigned, -1)
    return torch.where(assigned > 0, labels[(assigned - 1).clamp(min=0)], -1)


@pytest.mark.parametrize("case", ["grid", "random", "lowq", "one", "nogt", "nobox"])
def test_boxes_stand_for_the_object_they_overlap_most(case):
    golden = load_golden("assign")
    boxes, objects, ignored = (golden[f"{case}/{name}"] for name in ("boxes", "gts", "ignore"))
    for name, row in golden.meta["assigners"].items():
        assigned, overlaps = assigner_of(row).with_overlaps(boxes, objects, ignored)
        assert torch.equal(assigned, golden[f"{case}/{name}/gt_inds"].long()), name
        assert torch.equal(labels_of(golden, case, assigned), golden[f"{case}/{name}/labels"].long()), name
        assert_agrees(golden, {f"{case}/{name}/max_overlaps": overlaps})


@pytest.mark.parametrize("case", ["atss", "atss_std", "atss_one", "atss_none"])
def test_anchors_of_more_than_usual_overlap_stand_for_an_object(case):
    golden = load_golden("assign")
    sizes = [tuple(size) for size in golden.meta["atss_sizes"]]
    levels = ANCHORS["atss"].all_boxes(sizes, torch.zeros((), dtype=torch.float64))
    boxes, counts = torch.cat(levels), [len(level) for level in levels]
    objects, ignored = golden[f"{case}/gts"], golden[f"{case}/ignore"]
    for name, row in golden.meta["atss_assigners"].items():
        assigned = ATSS(row["topk"], row.get("ignore_iof_thr"))(boxes, counts, objects, ignored)
        assert torch.equal(assigned, golden[f"{case}/{name}/gt_inds"].long()), name
        assert torch.equal(labels_of(golden, case, assigned), golden[f"{case}/{name}/labels"].long()), name
        positive = (assigned > 0).nonzero()[:, 0]
        overlap = iou(boxes[positive], objects[assigned[positive] - 1])
        assert_agrees(golden, {f"{case}/{name}/pos": positive, f"{case}/{name}/pos_overlaps": overlap})
