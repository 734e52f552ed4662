"""What no golden file holds of what is found, by hand: limits of scores and overlaps, masks at their edges."""

import math

import pytest
import torch
from torch import Tensor

from convattn.detection.anchors import Anchors
from convattn.detection.assigning import MaxIoU
from convattn.detection.box_coder import BoxCoder
from convattn.detection.dense_heads import ATSSHead, RetinaHead
from convattn.detection.masks import pasted, shares_of_pixels
from convattn.detection.post_processing import best_of_classes, suppressed
from convattn.detection.region_heads import BoxHead, MaskHead
from convattn.detection.region_proposals import RegionProposals
from convattn.detection.region_stage import DETECTRON2_REGIONS, MMDET_REGIONS, RegionRules, RegionStages, StageRules
from convattn.detection.truth import Truth

SIZES = [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]
IMAGE = (32, 48)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def quiet_maps(head, classes=2, batch=1):
    """Maps of a head in which nothing is found."""
    count = head.anchors.count
    logits = [torch.full((batch, count * classes, *size), -20.0, dtype=torch.float64) for size in SIZES]
    steps = [torch.zeros(batch, count * 4, *size, dtype=torch.float64) for size in SIZES]
    return logits, steps, [torch.zeros(batch, 1, *size, dtype=torch.float64) for size in SIZES]


def test_retinanet_shows_scores_above_a_twentieth_and_an_anchor_with_several_classes():
    head = RetinaHead(32, 2)
    logits, steps, _ = quiet_maps(head)
    logits[0][0, 0, 1, 2], logits[0][0, 1, 1, 2] = logit(0.6), logit(0.3)
    logits[1][0, 4, 0, 1] = logit(0.0499)
    logits[2][0, 5, 0, 1] = logit(0.0501)
    (found,) = head.results(logits, steps, None, [IMAGE])
    assert found["scores"].tolist() == pytest.approx([0.6, 0.3, 0.0501])
    assert found["labels"].tolist() == [0, 1, 1]
    assert torch.equal(found["boxes"][0], found["boxes"][1])
    assert (head.least, head.overlap, head.most) == (0.05, 0.5, 100)
    logits[3][0, 0, 0, 0], head.least = 0.0, 0.5
    assert len(head.results(logits, steps, None, [IMAGE])[0]["scores"]) == 1  # exactly a half is not above it


def test_atss_asks_the_class_alone_whether_it_is_enough_and_multiplies_by_the_centre():
    head = ATSSHead(32, 2)
    logits, steps, centers = quiet_maps(head)
    logits[0][0, 0, 1, 2], centers[0][0, 0, 1, 2] = logit(0.06), logit(0.1)
    logits[1][0, 1, 0, 1], centers[1][0, 0, 0, 1] = logit(0.049), logit(0.999)
    (found,) = head.results(logits, steps, centers, [IMAGE])
    assert found["scores"].tolist() == pytest.approx([0.06 * 0.1])
    assert found["labels"].tolist() == [0]
    assert (head.least, head.overlap, head.most) == (0.05, 0.6, 100)


def naive_candidates(head, logits, steps, centers, image, most):
    """The best pairs of each level, pair by pair."""
    found = []
    for level, size in enumerate(SIZES):
        anchors = head.anchors.boxes(level, size, logits[level])
        pairs = []
        for row in range(size[0]):
            for column in range(size[1]):
                for anchor in range(head.anchors.count):
                    for label in range(head.num_classes):
                        score = logits[level][image, anchor * head.num_classes + label, row, column].sigmoid().item()
                        at = (row * size[1] + column) * head.anchors.count + anchor
                        step = steps[level][image, anchor * 4 : anchor * 4 + 4, row, column]
                        near = 1.0 if centers is None else centers[level][image, 0, row, column].sigmoid().item()
                        pairs.append((score, near, head.coder.decode(anchors[at], step).tolist(), label))
        found += [pair for pair in sorted(pairs, key=lambda pair: -pair[0])[:most] if pair[0] > head.least]
    return found


@pytest.mark.parametrize("kind", [RetinaHead, ATSSHead])
def test_candidates_are_the_best_pairs_of_every_level_in_every_image(kind):
    torch.manual_seed(0)
    head = kind(32, 3)
    head.of_level, count = 7, head.anchors.count
    logits = [torch.randn(2, count * 3, *size, dtype=torch.float64) for size in SIZES]
    steps = [torch.randn(2, count * 4, *size, dtype=torch.float64) for size in SIZES]
    centers = [torch.randn(2, 1, *size, dtype=torch.float64) for size in SIZES] if kind is ATSSHead else None
    layout = [level.to(memory_format=torch.channels_last) for level in logits]
    likely = head.candidates(layout, steps, centers)
    for image in range(2):
        naive = naive_candidates(head, logits, steps, centers, image, 7)
        kept = likely.class_scores[image] > head.least
        got = zip(
            likely.class_scores[image, kept].tolist(),
            (likely.scores / likely.class_scores)[image, kept].tolist(),
            likely.boxes_xyxy[image, kept].tolist(),
            likely.labels[image, kept].tolist(),
            strict=True,
        )
        for (score, near, box, label), (wanted, center, place, name) in zip(got, naive, strict=True):
            assert (score, near, label) == (pytest.approx(wanted), pytest.approx(center), name)
            assert box == pytest.approx(place)


def test_a_box_goes_where_a_surer_one_overlaps_it_by_more_than_the_limit():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 5.01]], dtype=torch.float64)
    scores = torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64)
    found = best_of_classes(boxes[:2], scores[:2, None], least=0.05, overlap=0.5, most=100)
    assert found.index.tolist() == [0, 1]
    found = best_of_classes(boxes[::2], scores[::2, None], least=0.05, overlap=0.5, most=100)
    assert found.index.tolist() == [0]
    apart = suppressed(boxes, scores, torch.tensor([0, 0, 1]), overlap=0.4)
    assert apart.index.tolist() == [0, 2]


def test_scores_must_be_above_the_threshold_not_at_it():
    found = best_of_classes(torch.zeros(1, 4), torch.tensor([[0.05, 0.050001]]), least=0.05, overlap=0.5, most=9)
    assert found.labels.tolist() == [1]


def test_proposals_without_an_area_are_left_out():
    head = RegionProposals(8, Anchors((4, 8, 16, 32, 64), (8.0,))).double().eval()
    logits = [torch.zeros(1, 3, *size, dtype=torch.float64) for size in SIZES]
    steps = [torch.zeros(1, 12, *size, dtype=torch.float64) for size in SIZES]
    steps[0][:, 0::4] = 100.0  # far to the right: the image's edge cuts them to nothing
    (found,) = head.proposals(logits, steps, [IMAGE])
    sides = found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]
    assert len(sides) and (sides > 0).all()
    count = 3 * sum(height * width for height, width in SIZES[1:])
    assert len(found.boxes_xyxy) <= count


def region_stages(rules: RegionRules, stages=3, masks=0):
    torch.manual_seed(0)
    heads = [BoxHead(4, 2, hidden=8, by_class=False) for _ in range(stages)]
    steps = [StageRules(MaxIoU(0.5, 0.5), BoxCoder((0.1, 0.1, 0.2, 0.2))) for _ in range(stages)]
    drawn = [MaskHead(4, 2, conv_width=4) for _ in range(masks)]
    return RegionStages(heads, steps, drawn, rules=rules).double().eval()


def pyramid() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 4, 64 // stride, 64 // stride, dtype=torch.float64) for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize("rules", [MMDET_REGIONS, DETECTRON2_REGIONS])
def test_boxes_and_masks_come_in_the_pixels_of_the_pictures(rules):
    model, proposals = region_stages(rules, masks=1), torch.tensor([[2.0, 3, 40, 50]], dtype=torch.float64)
    model.least = 0.0
    small = model.detections(pyramid(), [proposals] * 2, [(60, 64)] * 2)
    large = model.detections(pyramid(), [proposals] * 2, [(60, 64)] * 2, [(120, 64), (60, 32)])
    for at, (down, right) in enumerate(((2, 1), (1, 0.5))):
        scale = torch.tensor([right, down, right, down], dtype=torch.float64)
        assert torch.allclose(large[at]["boxes"], small[at]["boxes"] * scale, rtol=1e-12)
        assert torch.equal(large[at]["scores"], small[at]["scores"])
        assert large[at]["masks"].shape[1:] == (60 * down, int(64 * right))
        assert large[at]["masks"].dtype == torch.bool


def test_images_without_proposals_show_nothing():
    model, none = region_stages(MMDET_REGIONS, masks=3), torch.zeros(0, 4, dtype=torch.float64)
    found = model.detections(pyramid(), [none, none], [(60, 64)] * 2)
    assert [one["boxes"].shape for one in found] == [(0, 4)] * 2
    assert [one["masks"].shape for one in found] == [(0, 60, 64)] * 2


def test_detectron2_passes_on_a_third_of_the_gradient_and_drops_boxes_without_an_area():
    truth = Truth(torch.tensor([[2.0, 3, 40, 50]], dtype=torch.float64), torch.tensor([1]), (64, 64))
    moved = region_stages(DETECTRON2_REGIONS).train()
    gone = torch.tensor([[5.0, 5, 9, 60], [2, 3, 40, 52]], dtype=torch.float64)
    torch.nn.init.zeros_(moved.bbox_head[0].fc_reg.weight)
    moved.bbox_head[0].fc_reg.bias.data = torch.tensor([1e4, 0.0, 0.0, 0.0], dtype=torch.float64)
    _, said = moved.losses(pyramid(), [gone, gone], [truth, truth])
    assert [len(boxes) for boxes in said[0].regions.boxes_xyxy] == [3, 3]
    assert [len(boxes) for boxes in said[1].regions.boxes_xyxy] == [0, 0]
    kept = region_stages(MMDET_REGIONS).train()
    kept.load_state_dict(moved.state_dict())
    _, said = kept.losses(pyramid(), [gone, gone], [truth, truth])
    assert [len(boxes) for boxes in said[1].regions.boxes_xyxy] == [3, 3]  # the true box went, and came again


def test_a_box_without_width_shows_its_middle_everywhere_in_its_rows():
    shares = torch.zeros(1, 28, 28)
    shares[:, :, 13:15] = 1.0
    shown = pasted(shares, torch.tensor([[5.0, 2.0, 5.0, 6.0]]), (8, 10))[0]
    assert shown[2:6].all() and not shown[:2].any() and not shown[6:].any()


def test_masks_end_at_their_boxes_and_count_from_exactly_a_half():
    box = torch.tensor([[2.0, 1.0, 6.0, 5.0]], dtype=torch.float64)
    shown = shares_of_pixels(torch.ones(1, 28, 28, dtype=torch.float64), box, 8, 10)[0]
    assert torch.equal(shown > 0, pasted(torch.ones(1, 28, 28, dtype=torch.float64), box, (8, 10))[0])
    assert shown[1:5, 2:6].eq(1).all() and shown.sum() == 16
    half = torch.full((1, 28, 28), 0.5, dtype=torch.float64)
    assert pasted(half, box, (8, 10))[0, 2:4, 3:5].all()


def test_many_masks_are_pasted_part_by_part(monkeypatch):
    shares, boxes = torch.rand(7, 28, 28), torch.tensor([[2.0, 1.0, 9.0, 7.0]]).expand(7, 4)
    whole = pasted(shares, boxes, (8, 10))
    monkeypatch.setattr("convattn.detection.masks._AT_ONCE", 170)
    assert torch.equal(pasted(shares, boxes, (8, 10)), whole)
