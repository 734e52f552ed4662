"""What no golden file holds, by hand: who stands for what, what is sampled, what is compared, exactly at its limits."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convattn.backbones.levels import find_levels
from convattn.detection.anchors import Anchors
from convattn.detection.assigning import ATSS, MaxIoU
from convattn.detection.box_coder import BoxCoder
from convattn.detection.boxes import giou_with_floor, iof, iou
from convattn.detection.create import compose
from convattn.detection.dense_heads import ATSSHead, RetinaHead
from convattn.detection.feature_pyramid import FeaturePyramid
from convattn.detection.losses import EPS, centerness_of
from convattn.detection.masks import Bitmaps, Polygons
from convattn.detection.rcnn import Widths
from convattn.detection.region_features import levels_of
from convattn.detection.region_proposals import RegionProposals
from convattn.detection.region_stage import Regions, StageSaid
from convattn.detection.sampling import Sampler, choose_randomly
from convattn.detection.truth import Truth
from detection_golden import GivenLevels

BOX = torch.tensor([[0.0, 0.0, 10.0, 10.0]], dtype=torch.float64)


def objects(*rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def detector(name, style="mmdet", **options):
    backbone = GivenLevels([8, 8, 8, 8], (4, 8, 16, 32))
    return compose(backbone, find_levels(backbone), name, 3, style=style, widths=Widths(32, 32, 16), **options)


def assigners(name, style="mmdet", **options):
    model = detector(name, style, **options)
    return model.rpn_head.assign, *(stage.assign for stage in model.roi_head.stages)


@pytest.mark.parametrize(("height", "stands_for"), [(7, 1), (6.9, 1), (3, 1), (2.9, 0)])
def test_an_object_gets_its_best_anchor_from_an_overlap_of_three_tenths(height, stands_for):
    rpn, _ = assigners("faster_rcnn")
    assert rpn(BOX, objects([0, 0, 10, height])).tolist() == [stands_for]


@pytest.mark.parametrize(("height", "stands_for"), [(7, 1), (6.9, -1), (3, -1), (2.9, 0)])
def test_an_anchor_that_is_nobodys_best_stands_by_its_overlap_alone(height, stands_for):
    rpn, _ = assigners("faster_rcnn")
    exactly_it = objects([0, 0, 10, height])
    assert rpn(torch.cat([BOX, exactly_it]), exactly_it).tolist() == [stands_for, 1]


def test_detectron2_gives_an_object_its_best_anchors_whatever_the_overlap_and_to_whom_they_overlap_more():
    rpn, _ = assigners("faster_rcnn", "detectron2")
    assert rpn(BOX, objects([0, 0, 10, 1])).tolist() == [1]
    # The box is the best of both, and overlaps the first more: it is the first's, for mmdetection the last's.
    both = objects([0, 0, 10, 6], [0, 0, 10, 5])
    assert rpn(BOX, both).tolist() == [1]
    assert assigners("faster_rcnn")[0](BOX, both).tolist() == [2]


def test_regions_of_mask_rcnn_may_be_taken_by_an_object_that_has_no_better_one():
    both = objects([0, 0, 10, 7], [0, 0, 10, 6])
    assert assigners("mask_rcnn")[1](BOX, both).tolist() == [2]
    for name in ("faster_rcnn", "cascade_rcnn", "cascade_mask_rcnn"):
        assert assigners(name)[1](BOX, both).tolist() == [1]
    assert assigners("mask_rcnn", "detectron2")[1](BOX, both).tolist() == [1]


@pytest.mark.parametrize(("style", "labels"), [("mmdet", [1, 2, 1]), ("detectron2", [1, 1, 1])])
def test_true_boxes_stand_for_their_own_object_and_in_detectron2_for_the_first_of_their_box(style, labels):
    head = detector("faster_rcnn", style).roi_head
    truth, proposal = Truth(BOX.expand(2, 4), torch.tensor([1, 2]), (20, 20)), objects([0, 0, 10, 9])
    regions = head._sampled([proposal], [truth], head.stages[0].assign)
    assert regions.labels[0].tolist() == labels
    true, own = torch.tensor([True, True, False]), torch.cat([BOX, BOX, proposal])
    in_order = slice(None) if style == "mmdet" else [2, 0, 1]
    assert torch.equal(regions.are_objects[0], true[in_order])
    assert torch.equal(regions.boxes_xyxy[0], own[in_order])


@pytest.mark.parametrize("style", ["mmdet", "detectron2"])
def test_regions_stand_for_an_object_from_a_half_then_six_then_seven_tenths(style):
    stages = assigners("cascade_rcnn", style)[1:]
    for assign, height in zip(stages, (5, 6, 7), strict=True):
        assert assign(BOX, objects([0, 0, 10, height])).tolist() == [1]
        assert assign(BOX, objects([0, 0, 10, height - 0.01])).tolist() == [0]


def test_a_cascade_moves_regions_on_by_their_class_background_by_its_likeliest_and_no_true_box():
    head, size = detector("cascade_rcnn").roi_head, (100, 100)
    boxes = objects((0, 0, 10, 10), (20, 20, 40, 40), (50, 50, 60, 60))
    labels, none = torch.tensor([3, 2, 2]), torch.zeros(3).long()
    regions = Regions([boxes], [labels], [none], [torch.tensor([False, False, True])])
    steps = torch.zeros(3, 3, 4, dtype=torch.float64)
    steps[0, 1, 0] = steps[1, 2, 1] = 1.0  # of another class: nothing
    logits = torch.tensor([[0.0, 2, 1, 9], [5, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    said = StageSaid(regions, torch.cat([torch.zeros(3, 1), boxes], 1), logits, steps)
    (moved,) = head._moved_on(said, head.stages[0], [Truth(boxes[2:], none[:1], size)])
    assert torch.equal(moved, objects((1, 0, 11, 10), (20, 22, 40, 42)))


def test_retinanet_gives_every_object_an_anchor_even_one_that_it_does_not_touch():
    assign = RetinaHead(32, 3).assign
    far = objects([50, 50, 60, 60])
    assert assign(BOX, far).tolist() == [1]
    assert assign(torch.cat([BOX, BOX]), objects([0, 0, 10, 4])).tolist() == [1, 1]
    near = objects([0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3.9])
    assert assign(near, objects([0, 0, 10, 10])).tolist() == [1, -1, 0]


def test_ignored_areas_are_dropped_unless_a_share_is_given():
    crowd = objects([0, 0, 10, 20])
    assert MaxIoU(0.5, 0.5)(BOX, objects([30, 30, 40, 40]), crowd).tolist() == [0]
    assert MaxIoU(0.5, 0.5, ignored=0.5)(BOX, objects([30, 30, 40, 40]), crowd).tolist() == [-1]
    assert MaxIoU(0.5, 0.5, ignored=0.5, of_area=True)(BOX, objects([30, 30, 40, 40]), crowd).tolist() == [0]
    for name in ("faster_rcnn", "mask_rcnn", "cascade_rcnn"):
        assert all(assign.ignored is None for assign in assigners(name))


FAR = [[100.0 * at, 100.0, 100.0 * at + 10, 110.0] for at in range(1, 5)]


@pytest.mark.parametrize(("left", "stands_for"), [(4.98, 1), (4.995, 0)])
def test_atss_takes_centres_more_than_a_hundredth_inside(left, stands_for):
    boxes = torch.cat([BOX, objects(*FAR)])
    assert ATSS()(boxes, [5], objects([left, 0, 15, 10])).tolist() == [stands_for, 0, 0, 0, 0]


def test_atss_gives_a_shared_anchor_to_the_object_of_more_overlap_and_else_to_the_first():
    boxes = torch.cat([BOX, objects(*FAR)])
    assert ATSS()(boxes, [5], objects([0, 0, 12, 12], [0, 0, 11, 11]))[0] == 2
    assert ATSS()(boxes, [5], objects([0, 0, 11, 11], [0, 0, 11, 11]))[0] == 1


def test_atss_counts_the_anchors_of_a_level_without_those_in_padding():
    head, truth = ATSSHead(32, 3), Truth(objects([2, 2, 70, 60]), torch.tensor([1]), (60, 90), padded=(64, 96))
    sizes = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
    wanted = head.wanted(sizes, [truth], torch.zeros((), dtype=torch.float64))
    kept = torch.cat(head.anchors.within(sizes, truth.padded))
    boxes = wanted.anchors_xyxy[kept]
    counts = [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1 * 1]
    assert [int(part.sum()) for part in kept.split(wanted.counts)] == counts
    assigned = head.assign(boxes, counts, truth.boxes_xyxy)
    assert torch.equal(wanted.positive[1], kept.nonzero()[:, 0][assigned > 0])
    assert torch.equal(wanted.ignored[0], ~kept)


def test_an_image_without_background_or_without_objects_counts_as_one_of_them():
    proposals = RegionProposals(4, Anchors((4,), (2.0,), (1.0,)), assign=MaxIoU(0.7, 0.0, "all", 0.3)).double()
    logits, steps = proposals([torch.randn(2, 4, 1, 1, dtype=torch.float64)])
    anchor = objects((-4, -4, 4, 4))
    truths = [Truth(anchor, torch.zeros(1).long(), (4, 4)), Truth(anchor[:0], torch.zeros(0).long(), (4, 4))]
    losses, _ = proposals.losses(logits, steps, truths)
    wanted = F.binary_cross_entropy_with_logits(
        torch.stack([one.flatten() for one in logits[0]]), torch.tensor([[1.0], [0.0]]).double(), reduction="sum"
    )
    # The only anchor of the first image stands for its object, that of the second for background.
    assert losses["label"].item() == pytest.approx(wanted.item() / (4 + EPS), rel=1e-12)
    assert losses["box"].item() == pytest.approx(steps[0][0].abs().sum().item() / (4 + EPS), rel=1e-12)


@pytest.mark.parametrize(
    ("count", "share", "positive", "negative"), [(256, 0.5, 128, 128), (512, 0.25, 128, 384), (7, 0.25, 1, 6)]
)
def test_a_sample_has_so_many_positives_at_most_and_is_filled_with_background(count, share, positive, negative):
    sampler = Sampler(count, share)
    many = torch.cat([torch.ones(300), torch.zeros(700), -torch.ones(50)]).long()
    sample = sampler(many)
    assert (len(sample.positive), len(sample.negative)) == (positive, negative)
    assert torch.equal(sample.positive, sample.positive.sort().values) and sample.positive.max() < 300
    assert sample.negative.min() >= 300 and sample.negative.max() < 1000
    few = sampler(torch.cat([torch.ones(1), torch.zeros(700)]).long())
    assert (len(few.positive), len(few.negative)) == (1, count - 1)
    lone = sampler(torch.cat([torch.ones(300), torch.zeros(7)]).long())
    assert (len(lone.positive), len(lone.negative)) == (positive, min(negative, 7))


def test_samplers_of_all_detectors():
    for name, style in (("faster_rcnn", "mmdet"), ("cascade_mask_rcnn", "mmdet"), ("mask_rcnn", "detectron2")):
        model = detector(name, style)
        first, second = model.rpn_head.sampler, model.roi_head.sampler
        assert (first.count, first.share, second.count, second.share) == (256, 0.5, 512, 0.25)
        assert first.choose is second.choose is choose_randomly


def test_chance_decides_by_torchs_generator():
    candidates = torch.arange(1000)
    torch.manual_seed(3)
    first = choose_randomly(candidates, 5)
    torch.manual_seed(3)
    assert torch.equal(first, choose_randomly(candidates, 5))
    assert not torch.equal(first, choose_randomly(candidates, 5))
    assert choose_randomly(candidates[:4], 9) is not None and len(choose_randomly(candidates[:4], 9)) == 4


def test_sides_shrink_by_sixty_two_and_a_half_at_most_but_freely_in_detectron2():
    most = math.log(1000 / 16)
    steps = torch.tensor([[0.0, 0.0, -9.0, 9.0]], dtype=torch.float64)
    width, height = (BoxCoder().decode(BOX, steps)[0].view(2, 2).diff(dim=0)[0]).tolist()
    assert (width, height) == pytest.approx((10 * math.exp(-most), 10 * math.exp(most)))
    free = BoxCoder(shrinks_freely=True).decode(BOX, steps)[0].view(2, 2).diff(dim=0)[0]
    assert free.tolist() == pytest.approx((10 * math.exp(-9), 10 * math.exp(most)))


def test_the_third_stages_of_both_styles_differ_in_their_spreads():
    ours = [stage.coder.deviations for stage in detector("cascade_rcnn").roi_head.stages]
    theirs = [stage.coder.deviations for stage in detector("cascade_rcnn", "detectron2").roi_head.stages]
    assert ours[:2] == theirs[:2] == [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1)]
    assert ours[2] == (0.033, 0.033, 0.067, 0.067)
    assert theirs[2] == (1 / 30, 1 / 30, 1 / 15, 1 / 15)


def test_boxes_of_nothing_overlap_nothing():
    nothing = objects([3, 3, 3, 3])
    assert iou(nothing, nothing).tolist() == iof(nothing, BOX).tolist() == [0.0]
    assert giou_with_floor(nothing, nothing).tolist() == [0.0]
    small = objects([0, 0, 1e-4, 1e-4])
    assert iou(small, small).tolist() == pytest.approx([1e-8 / 1e-6])


def test_the_level_of_a_region_is_that_of_its_side():
    sides = torch.tensor([0.0, 111.9, 112.0, 224.0, 447.99, 448.0, 5000.0], dtype=torch.float64)
    boxes = torch.stack([torch.zeros_like(sides)] * 2 + [sides] * 2, 1)
    assert levels_of(boxes).tolist() == [0, 0, 1, 2, 2, 3, 3]
    # The two styles differ by what is added to the size: 112 px less a trifle.
    edge = torch.tensor([[0.0, 0.0, 112 - 5e-5, 112 - 5e-5]], dtype=torch.float64)
    ours, theirs = (detector("faster_rcnn", style).roi_head.rules.level_eps for style in ("mmdet", "detectron2"))
    assert levels_of(edge, ours).tolist() == [1]
    assert levels_of(edge, theirs).tolist() == [0]
    assert math.log2(112 / 224 + 1e-8) + 4 == pytest.approx(math.log2(112 / 56 + theirs) + 2, abs=1e-15)


def test_coarser_levels_are_added_by_the_nearest_pixel_at_twice_and_one():
    neck = FeaturePyramid([1, 1], 1, 2, extra="none").double()
    for conv in (*neck.lateral_convs, *neck.fpn_convs):
        torch.nn.init.zeros_(conv.conv.weight)
        conv.conv.weight.data[..., conv.conv.weight.shape[-1] // 2, conv.conv.weight.shape[-1] // 2] = 1.0
    coarse = torch.tensor([[10.0, 20.0]], dtype=torch.float64)[None, None]
    fine = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    assert neck([fine, coarse])[0].flatten().tolist() == [10, 10, 10, 20, 20]


def test_atss_divides_boxes_by_one_where_centres_are_far_off():
    torch.manual_seed(0)
    head = ATSSHead(32, 3, conv_width=32).double()
    levels = [torch.randn(1, 32, 64 // 2**at, 64 // 2**at, dtype=torch.float64) for at in range(5)]
    truth = Truth(objects([7, 7, 10, 12]), torch.tensor([1]), (512, 512))
    losses = head.losses(levels, [truth])
    wanted = head.wanted([(64 // 2**at,) * 2 for at in range(5)], [truth], levels[0])
    anchors = wanted.anchors_xyxy[wanted.positive[1]]
    near = centerness_of(anchors, wanted.objects_xyxy)
    assert near.tolist() == pytest.approx([math.sqrt(1 / 2 * 1 / 4)])
    logits, steps, centers = (torch.cat([m.flatten(2) for m in maps], 2)[0].T for maps in head(levels))
    moved = head.coder.decode(anchors, steps[wanted.positive[1]])
    giou = 1 - giou_with_floor(moved, wanted.objects_xyxy)
    assert losses["box"].sum().item() == pytest.approx((2 * near * giou).sum().item() / (1 + EPS), rel=1e-12)
    center = F.binary_cross_entropy_with_logits(centers[wanted.positive[1], 0], near)
    assert losses["center"].sum().item() == pytest.approx(center.item() / (1 + EPS), rel=1e-12)
    assert losses["center"][1:].tolist() == losses["box"][1:].tolist() == [0, 0, 0, 0]
    assert len(logits) == sum(wanted.counts)


def test_a_mask_covers_a_pixel_from_exactly_a_half():
    half = torch.zeros(1, 4, 4, dtype=torch.uint8)
    half[:, :, 1::2] = 1
    whole = objects([0, 0, 4, 4])
    assert Bitmaps(half).within(torch.tensor([0]), whole, 2).tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    assert Bitmaps(half[:, :, :2]).within(torch.tensor([0]), objects([0, 0, 1, 4]), 2).sum() < 4


def test_outlines_are_stretched_by_a_tenth_of_a_pixel_at_least():
    thin = np.array([0.0, 0.0, 0.05, 0.0, 0.05, 10.0, 0.0, 10.0])
    drawn = Polygons([[thin]]).within(torch.tensor([0]), objects([0, 0, 0.05, 10]), 28)[0]
    assert drawn.sum(1).tolist() == [14.0] * 28  # half as wide as the box that it fills


def test_anchors_of_every_style_are_the_same_but_for_their_last_bits():
    ours, theirs = detector("faster_rcnn").rpn_head.anchors, detector("mask_rcnn", "detectron2").rpn_head.anchors
    assert ours == Anchors((4, 8, 16, 32, 64), (8.0,))
    for level, side in enumerate((32, 64, 128, 256, 512)):
        torch.testing.assert_close(theirs.base(level), ours.base(level), rtol=1e-15, atol=0)
        widths = [math.sqrt(side**2 / ratio) for ratio in (0.5, 1.0, 2.0)]
        assert (2 * theirs.base(level)[:, 2]).tolist() == widths
        assert (2 * theirs.base(level)[:, 3]).tolist() == [widths[0] * 0.5, widths[1], widths[2] * 2]
    assert not torch.equal(theirs.base(0), ours.base(0))
    widths = ours.base(0).view(3, 2, 2).diff(dim=1)[:, 0]
    assert widths[:, 0].tolist() == pytest.approx([32 * math.sqrt(2), 32, 32 / math.sqrt(2)])
    assert (widths[:, 1] / widths[:, 0]).tolist() == pytest.approx([0.5, 1, 2])


def test_cascades_leave_out_anchors_beyond_the_border_and_keep_more_proposals():
    for name, border, most in (("faster_rcnn", None, 1000), ("mask_rcnn", None, 1000), ("cascade_rcnn", 0, 2000)):
        head = detector(name).rpn_head
        assert (head.border, head.kept[True].of_image, head.kept[False].of_image) == (border, most, 1000)
        assert (head.kept[True].of_level, head.kept[False].of_level) == (2000, 1000)
        assert head.beta == (1 / 9 if border == 0 else 0)
    theirs = detector("cascade_rcnn", "detectron2").rpn_head
    assert (theirs.border, theirs.kept[True].of_image, theirs.beta) == (None, 2000, 0)
