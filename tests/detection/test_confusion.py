import numpy as np
import pytest

from convattn.detection.average_precision import curves
from convattn.detection.confusion import balances, best_balance, confusion, shares_by_score
from convattn.detection.matching import Records, match
from convattn.detection.precision_recall import precision_and_recall
from tiny_detection import found, truth

CAT, DOG, BEE = range(3)


def records(*pairs):
    return Records.joined(match(said, there) for said, there in pairs)


def two_images():
    """A cat found, one taken for a dog, one missed; a dog found twice; a false alarm."""
    first = truth((CAT, 0, 0, 10, 10), (CAT, 20, 0, 30, 10), (CAT, 40, 0, 50, 10))
    second = truth((DOG, 0, 0, 10, 10), index=1)
    return records(
        (found((CAT, 0.9, 0, 0, 10, 10), (DOG, 0.8, 20, 0, 30, 10)), first),
        (found((DOG, 0.7, 0, 0, 10, 10), (DOG, 0.6, 0, 0, 10, 9), (BEE, 0.3, 90, 90, 99, 99)), second),
    )


def test_what_is_taken_for_what_is_counted_above_a_score():
    assert confusion(two_images(), 3, 0.5).tolist() == [
        [1, 1, 0, 1],  # cats: one right, one taken for a dog, one missed
        [0, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 1, 0, 0],  # the dog that was found already
    ]
    assert confusion(two_images(), 3, 0.25)[3].tolist() == [0, 1, 1, 0]
    assert confusion(two_images(), 3, 0.75)[1].tolist() == [0, 0, 0, 1]


def test_what_lies_on_a_crowd_of_its_class_is_no_false_alarm():
    there = truth((CAT, 0, 0, 100, 100), crowd=[0])
    said = found((CAT, 0.9, 5, 5, 20, 20), (DOG, 0.9, 5, 5, 20, 20))
    assert confusion(records((said, there)), 3, 0.5).tolist() == [[0] * 4, [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_an_object_goes_to_a_detection_of_its_class_where_another_overlaps_more():
    there = truth((CAT, 0, 0, 10, 10), (DOG, 0, 0, 10, 8))
    both = confusion(records((found((CAT, 0.9, 0, 0, 10, 8), (DOG, 0.8, 0, 0, 10, 10)), there)), 3, 0.5)
    assert both[:2, :2].tolist() == [[1, 0], [0, 1]]


def test_every_object_and_every_detection_above_the_score_is_counted_once():
    rng = np.random.default_rng(0)
    images = []
    for index in range(6):
        corner = rng.integers(0, 60, (8, 2))
        boxes = np.concatenate([corner, corner + rng.integers(10, 40, (8, 2))], axis=1)
        there = truth(*np.column_stack([rng.integers(0, 3, 8), boxes]), index=index)
        moved = boxes + rng.integers(-4, 4, (8, 4))
        images.append((found(*np.column_stack([rng.integers(0, 3, 8), rng.random(8), moved])), there))
    for score in (0.0, 0.3, 0.6):
        counts = confusion(records(*images), 3, score)
        assert counts[:3].sum() == 48
        assert counts[:, :3].sum() == sum((said.scores >= score).sum() for said, _ in images)


def test_the_best_score_is_that_of_the_highest_f1():
    there = truth((CAT, 0, 0, 10, 10), (CAT, 20, 0, 30, 10))
    said = found(
        (CAT, 0.9, 0, 0, 10, 10), (CAT, 0.8, 50, 50, 60, 60), (CAT, 0.7, 20, 0, 30, 10), (CAT, 0.2, 70, 70, 80, 80)
    )
    best = best_balance(records((said, there)), CAT)
    assert (best.score, best.precision, best.recall) == (0.7, pytest.approx(2 / 3), 1.0)
    assert best.f1 == pytest.approx(0.8)


def test_detections_of_one_score_go_together():
    there = truth((CAT, 0, 0, 10, 10))
    said = found((CAT, 0.5, 0, 0, 10, 10), (CAT, 0.5, 50, 50, 60, 60), (CAT, 0.5, 70, 50, 80, 60))
    best = best_balance(records((said, there)))
    assert (best.score, best.precision, best.recall) == (0.5, pytest.approx(1 / 3), 1.0)


def test_a_class_without_detections_or_without_objects_is_no_special_case():
    found_none, absent = balances(records((found(), truth((CAT, 0, 0, 10, 10)))), 2)
    assert (found_none.score, found_none.precision, found_none.recall, found_none.f1) == (1.0, 0.0, 0.0, 0.0)
    assert absent.score == 1.0
    assert np.isnan([absent.precision, absent.recall, absent.f1]).all()


def test_the_best_score_is_that_of_a_search_over_all():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        boxes = [(CAT, 20 * at, 0, 20 * at + 10, 10) for at in range(7)]
        rows = [
            (CAT, rng.integers(1, 9) / 10, 20 * at + rng.integers(0, 6), 0, 20 * at + 10, 10)
            for at in range(7)
            for _ in (0, 1)
        ]
        seen = records((found(*rows), truth(*boxes)))
        best = best_balance(seen, CAT)
        tried = {}
        for score in np.unique(seen.score):
            hit = (seen.hit & np.uint64(1) > 0) & (seen.score >= score)
            tried[score] = 2 * hit.sum() / ((seen.score >= score).sum() + 7)
        assert best.f1 == pytest.approx(max(tried.values()))
        assert tried[best.score] == pytest.approx(best.f1)


def test_precision_recall_and_f1_at_any_score():
    there = truth((CAT, 0, 0, 10, 10), (CAT, 20, 0, 30, 10), (DOG, 40, 0, 90, 50), crowd=[2])
    said = found(
        (CAT, 0.9, 0, 0, 10, 10), (BEE, 0.5, 50, 50, 60, 60), (CAT, 0.2, 20, 0, 30, 10), (DOG, 0.8, 41, 1, 60, 20)
    )
    precision, recall, f1 = shares_by_score(records((said, there)), np.array([0.0, 0.5, 0.51, 0.9, 0.91]))
    assert precision[:4] == pytest.approx([2 / 3, 1 / 2, 1, 1])  # what lies on a crowd counts nowhere
    assert np.isnan(precision[4])
    assert recall == pytest.approx([1, 1 / 2, 1 / 2, 1 / 2, 0])
    assert f1 == pytest.approx([4 / 5, 1 / 2, 2 / 3, 2 / 3, 0])


def test_curves_of_precision_end_where_nothing_more_is_found():
    seen = records(
        (
            found((CAT, 0.9, 0, 0, 10, 10), (CAT, 0.8, 50, 50, 60, 60)),
            truth((CAT, 0, 0, 10, 10), (CAT, 20, 0, 30, 10), (DOG, 40, 0, 50, 10)),
        )
    )
    shown = precision_and_recall({"box": curves(seen, 3)}, seen, best_balance(seen), ("cat", "dog", "bee"))
    mean, classes, by_score = shown.plots
    dog, cat = classes.curves  # the worst first; nothing is known of bees
    assert (dog.name, dog.points, dog.figure) == ("dog", ((0, 0.0),), "0.0 %")
    assert (cat.name, cat.figure) == ("cat", "50.5 %")
    assert np.array(cat.points) == pytest.approx(np.array([(at, 100.0) for at in range(51)]))
    assert np.array(mean.curves[0].points) == pytest.approx(np.array([(at, 50.0) for at in range(51)]))
    assert by_score.curves[1].points[90:92] == ((90, pytest.approx(100 / 3)), (91, 0.0))
    assert by_score.curves[2].figure == "best 50.0 % from 0.90 on"


def test_of_many_classes_the_worst_are_drawn_in_several_plots():
    boxes = [(label, 20 * label, 0, 20 * label + 10, 10) for label in range(30)]
    seen = records((found(*((label, 0.9, *box) for label, *box in boxes[10:])), truth(*boxes, size=(20, 600))))
    shown = precision_and_recall({"box": curves(seen, 30)}, seen, best_balance(seen), [f"c{at}" for at in range(30)])
    assert [len(plot.curves) for plot in shown.plots] == [3, 8, 8, 8, 3]
    assert [curve.name for curve in shown.plots[1].curves] == [f"c{at}" for at in range(8)]
    assert "6 better classes are not drawn" in shown.intro
