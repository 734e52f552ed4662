import contextlib
import copy
import io

import numpy as np
import pytest
import torch

from convattn.detection.average_precision import BOX_METRICS, MASK_METRICS, AveragePrecision, curves
from convattn.detection.batch_targets import ImageTargets
from convattn.detection.matching import Records, box_overlaps, match
from convattn.detection.rasterise import bitmap
from convattn.detection.writers import coco_results
from convattn.evaluation import measure
from convattn.task import Batch
from tiny_detection import SIZE, found, truth


def figures(pairs, classes=2, masks=False):
    records = Records.joined(match(one, there, masks=masks) for one, there in pairs)
    return curves(records, classes).figures()


def perfect(there):
    rows = zip(there.labels, there.boxes_xyxy, there.crowd, strict=True)
    return found(*[(label, 0.9, *box) for label, box, crowd in rows if not crowd], masks=True)


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_right_in_everything_scores_100_and_nothing_scores_0(masks):
    images = [truth((0, 10, 10, 30, 40), (1, 50, 20, 90, 110)), truth((0, 0, 0, 150, 110), index=1), truth(index=2)]
    best = figures([(perfect(one), one) for one in images], masks=masks)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    assert [best[name] for name in names] == pytest.approx([100] * 7)
    none = figures([(found(masks=True), one) for one in images], masks=masks)
    assert set(none.values()) == {0.0}


def test_where_no_object_is_there_is_no_figure():
    values = figures([(found((0, 0.9, 1, 1, 9, 9)), truth())])
    assert np.isnan([*values.values()]).all()
    only_small = figures([(perfect(one), one) for one in [truth((0, 1, 1, 9, 9))]])
    assert [only_small["ap"], only_small["ap_small"]] == pytest.approx([100, 100])
    assert np.isnan(only_small["ap_medium"])


def test_one_false_alarm_above_one_of_two_objects_is_worked_by_hand():
    there = truth((0, 10, 10, 30, 30), (0, 60, 60, 90, 90))
    said = found((0, 0.9, 10, 10, 30, 30), (0, 0.8, 100, 0, 120, 20), (0, 0.7, 60, 60, 90, 90))
    # Precision 1 up to a recall of 1/2, then 2/3: 51 and 50 of the 101 recalls.
    assert figures([(said, there)])["ap"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert figures([(said, there)])["ar1"] == 50
    assert figures([(said, there)])["ar10"] == 100


def test_an_iou_of_06_counts_at_three_of_ten_thresholds():
    there, said = truth((0, 0, 0, 10, 10)), found((0, 0.9, 0, 0, 10, 6))
    values = figures([(said, there)])
    assert values["ap"] == pytest.approx(30)  # 0.5, 0.55, 0.6
    assert [values["ap50"], values["ap75"]] == pytest.approx([100, 0])


def test_an_object_is_found_once_and_by_the_surest():
    there = truth((0, 0, 0, 10, 10))
    said = found((0, 0.8, 0, 0, 10, 10), (0, 0.9, 0, 0, 10, 9))
    records = match(said, there)
    assert (records.hit & np.uint64(1)).tolist() == [1, 0]  # in order of the scores
    assert records.found_score.tolist() == [0.9]
    high = figures([(said, there)])
    assert high["ap50"] == pytest.approx(100)
    assert 0 < high["ap"] < 100  # at 0.95 the less sure one is right


def test_of_two_objects_that_overlap_it_alike_a_detection_takes_the_last_as_pycocotools_does():
    there = truth((0, 0, 0, 10, 10), (0, 2, 0, 12, 10))
    said = found((0, 0.9, 1, 0, 11, 10), (0, 0.8, 0, 0, 6, 10))  # the second overlaps the first object alone
    assert (match(said, there).hit & np.uint64(1)).tolist() == [1, 1]
    assert figures([(said, there)])["ap50"] == pytest.approx(100)


def test_the_class_must_be_right():
    assert figures([(found((1, 0.9, 0, 0, 10, 10)), truth((0, 0, 0, 10, 10)))])["ap"] == 0


def test_what_lies_on_a_crowd_is_neither_right_nor_wrong():
    there = truth((0, 0, 0, 10, 10), (0, 50, 50, 150, 110), crowd=[1])
    on_it = [(0, 0.95, 60, 60, 80, 80), (0, 0.94, 60, 60, 75, 80), (0, 0.93, 55, 60, 80, 80)]
    assert figures([(found((0, 0.9, 0, 0, 10, 10), *on_it), there)])["ap"] == pytest.approx(100)
    assert figures([(found((0, 0.9, 0, 0, 10, 10), (1, 0.95, 60, 60, 80, 80)), there)])["ap"] == pytest.approx(
        100
    )  # no cat there
    beside = (0, 0.95, 20, 20, 80, 80)  # by less than half on the crowd
    assert figures([(found((0, 0.9, 0, 0, 10, 10), beside), there)])["ap"] == pytest.approx(50)


def test_the_hundred_surest_of_a_class_count():
    wrong = [(0, 0.9, 100, 0, 110 + at / 10, 20) for at in range(100)]
    right = (0, 0.5, 0, 0, 10, 10)
    assert figures([(found(*wrong, right), truth((0, 0, 0, 10, 10)))])["ap"] == 0
    assert figures([(found(*wrong[1:], right), truth((0, 0, 0, 10, 10)))])["ap"] == pytest.approx(1)


def test_more_than_255_masks_are_no_special_case():
    said = found(*[(at % 60, 0.9, 0, 0, 10, 10) for at in range(300)], masks=True)
    assert len(match(said, truth((0, 0, 0, 10, 10)), masks=True).score) == 300


def test_overlaps_of_boxes_are_pycocotools():
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    boxes = [np.sort(rng.integers(0, 40, (count, 2, 2)) / 4, axis=1).reshape(-1, 4) for count in (50, 30)]
    crowd = rng.random(30) < 0.3
    xywh = [np.concatenate([one[:, :2], one[:, 2:] - one[:, :2]], axis=1) for one in boxes]
    with np.errstate(invalid="ignore"):
        wanted = mask.iou(*xywh, crowd.astype(int).tolist())
    assert np.abs(box_overlaps(*boxes, crowd) - wanted).max() < 1e-15


def drawn(seed, masks):
    """Random images and detections, with crowds, ties of scores and of overlaps, all sizes, duplicates."""
    rng = np.random.default_rng(seed)
    size = (260, 340)
    pairs = []
    for index in range(12):
        corner = rng.integers(0, 120, (rng.integers(0, 7), 2))
        sides = rng.choice([6, 12, 32, 60, 96, 130], (len(corner), 2))
        boxes, labels = np.concatenate([corner, corner + sides], axis=1), rng.integers(0, 4, len(corner))
        there = truth(
            *np.column_stack([labels, boxes]),
            crowd=np.flatnonzero(rng.random(len(corner)) < 0.2),
            index=index,
            size=size,
        )
        chosen = rng.integers(0, max(1, len(corner)), 30 if len(corner) else 0)
        moved = boxes[chosen] + rng.integers(-8, 9, (len(chosen), 4)) * (rng.random((len(chosen), 1)) < 0.7)
        moved = np.concatenate([moved[:, :2].clip(0), np.maximum(moved[:, 2:], moved[:, :2] + 1)], axis=1)
        said = np.where(rng.random(len(chosen)) < 0.8, labels[chosen], 3)
        scores = rng.integers(0, 12, len(chosen)) / 12
        pairs.append((found(*np.column_stack([said, scores, moved]), size=size, masks=masks), there))
    return pairs


def official(pairs, masks):
    """What pycocotools says of the same objects as JSON."""
    COCO = pytest.importorskip("pycocotools.coco").COCO  # noqa: N806
    COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval  # noqa: N806
    annotations, results = [], []
    for said, there in pairs:
        rows = zip(
            there.labels.tolist(),
            there.boxes_xyxy.tolist(),
            there.crowd,
            there.areas.tolist(),
            there.outlines,
            strict=True,
        )
        for label, (x1, y1, x2, y2), crowd, area, outline in rows:
            part = {"segmentation": [points.tolist() for points in outline]}
            entry = dict(
                id=len(annotations) + 1, image_id=there.index, category_id=label, area=area, iscrowd=int(crowd)
            )
            annotations.append(entry | part | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
        for entry in coco_results(said, there.index, range(4)):
            results.append(
                {name: value for name, value in entry.items() if name != ("bbox" if masks else "segmentation")}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        images = [{"id": there.index, "height": there.size[0], "width": there.size[1]} for _, there in pairs]
        categories = [{"id": at, "name": str(at)} for at in range(4)]
        known.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(copy.deepcopy(results)), "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_figure_is_pycocotools(seed, masks):
    pairs = drawn(seed, masks)
    wanted = official(pairs, masks)
    records = Records.joined(match(said, there, masks=masks) for said, there in pairs)
    got = curves(records, 4)
    stats = np.where(wanted.stats < 0, np.nan, 100 * wanted.stats)
    assert [*got.figures().values()] == pytest.approx(stats, abs=1e-12, nan_ok=True)
    precision = np.where(wanted.eval["precision"] < 0, np.nan, wanted.eval["precision"])[..., 2]
    assert np.allclose(got.precision, precision, rtol=0, atol=1e-12, equal_nan=True)
    recall = np.where(wanted.eval["recall"] < 0, np.nan, wanted.eval["recall"])
    assert np.allclose(got.recall, recall[..., 2], rtol=0, atol=1e-12, equal_nan=True)
    assert np.allclose(got.recall_of_few, recall[:, :, 0, :2], rtol=0, atol=1e-12, equal_nan=True)
    assert got.per_class()[:, 0] == pytest.approx(100 * precision[..., 0].mean((0, 1)), nan_ok=True)


class Repeating(torch.nn.Module):
    """Finds what it was told to, and notes how it was asked."""

    def __init__(self, said):
        super().__init__()
        self.said, self.asked = said, []

    def forward(self, images, original_sizes):
        self.asked.append((len(images), original_sizes))
        return [self.said.pop(0) for _ in range(len(images))]


def outputs_of(said):
    boxes, scores = torch.from_numpy(said.boxes_xyxy).float(), torch.from_numpy(said.scores).float()
    return {
        "boxes": boxes,
        "scores": scores,
        "labels": torch.from_numpy(said.labels),
        "masks": torch.from_numpy(said.masks),
    }


def test_the_meter_of_two_processes_has_the_figures_of_one():
    pairs = drawn(7, masks=True)
    meters = [AveragePrecision(4, masks=True) for _ in range(3)]
    shares = [pairs, pairs[::2], pairs[1::2]]
    for meter, share in zip(meters, shares, strict=True):
        batches = [
            Batch(
                torch.zeros(len(part), 3, 8, 8),
                ImageTargets([one for _, one in part]),
                ["a"] * len(part),
                {},
                [(260, 340)] * len(part),
            )
            for part in (share[:4], share[4:])
        ]
        model = Repeating([outputs_of(one[0]) for one in share])
        measure(model, batches, meter)
        assert model.asked == [(4, [(260, 340)] * 4), (len(share) - 4, [(260, 340)] * (len(share) - 4))]
    alone = meters[0].result(meters[0].parts())
    joined = {name: [*meters[1].parts()[name], *meters[2].parts()[name]] for name in ("box", "mask")}
    assert meters[0].result(joined) == alone
    assert [*alone] == [metric.name for metric in (*BOX_METRICS, *MASK_METRICS)]
    assert 0 < alone["mask_ap"] < 100


def test_a_meter_that_saw_nothing_has_no_figures():
    meter = AveragePrecision(3, masks=False)
    assert np.isnan([*meter.result(meter.parts()).values()]).all()


def test_masks_of_another_size_than_the_picture_are_refused():
    there = truth((0, 0, 0, 10, 10))
    with pytest.raises(ValueError, match=r"masks of \(20, 30\) pixels .* for an image of \(120, 160\)"):
        match(found((0, 0.9, 0, 0, 10, 10), size=(20, 30), masks=True), there, masks=True)
    with pytest.raises(ValueError, match="masks are compared, and none were found"):
        match(found((0, 0.9, 0, 0, 10, 10)), there, masks=True)
    assert bitmap(there.outlines[0], SIZE).sum() == 100
