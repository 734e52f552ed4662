"""Precision and recall as curves: of each class, of all together, and over the score from which on boxes are shown."""

from collections.abc import Mapping, Sequence

import numpy as np

from convattn.detection.average_precision import Curves
from convattn.detection.confusion import Balance, shares_by_score
from convattn.detection.matching import IOU_THRESHOLDS, Records
from convattn.page import Curve, Plot, Plots

__all__ = ["precision_and_recall"]

_IOUS = (0.5, 0.75, 0.9)
_A_PLOT, _MOST_PLOTS = 8, 3  # classes in a plot: a colour each; plots of classes
_KINDS = {"box": "Boxes", "mask": "Masks"}


def precision_and_recall(of: Mapping[str, Curves], boxes: Records, balance: Balance, names: Sequence[str]) -> Plots:
    """What an evaluation's page shows.

    Args:
        of: boxes, and masks where they are judged.
        boxes: what was compared, by boxes.
        balance: where precision and recall of all boxes are balanced best.
        names: of the classes.
    """
    classes, left_out = _of_classes(of["box"], names)
    rest = f"; {left_out} better classes are not drawn" if left_out else ""
    intro = (
        "How many of the answers are right (precision) when so many of the objects are to be found (recall): the mean "
        f"over the classes, and each class at an IoU of 0.5, the worst first{rest}. A curve ends where nothing more is "
        "found. The last plot helps to choose the score from which on boxes are shown."
    )
    means = [Plot(f"{_KINDS[kind]}, mean of the classes", "recall", _means(curves)) for kind, curves in of.items()]
    return Plots("Precision and recall", intro, (*means, *classes, _by_score(boxes, balance)))


def _means(curves: Curves) -> tuple[Curve, ...]:
    """Precision at each recall at some IoUs, the mean over the classes that have objects."""
    known = curves.precision[:, :, curves.objects[:, 0] > 0, 0].mean(2)
    places = [int(np.argmin(np.abs(IOU_THRESHOLDS - iou))) for iou in _IOUS]
    return tuple(
        _curve(f"IoU {iou:g}", known[place], f"AP {100 * known[place].mean():.1f} %")
        for iou, place in zip(_IOUS, places, strict=True)
    )


def _of_classes(curves: Curves, names: Sequence[str]) -> tuple[list[Plot], int]:
    """Each class with objects at an IoU of 0.5, and how many are left out."""
    precision = curves.precision[0, :, :, 0]
    present = np.flatnonzero(curves.objects[:, 0])
    worst_first = present[np.argsort(precision[:, present].mean(0), kind="stable")]
    shown = worst_first[: _A_PLOT * _MOST_PLOTS]
    lines = [_curve(names[at], precision[:, at], f"{100 * precision[:, at].mean():.1f} %") for at in shown]
    parts = [tuple(lines[start : start + _A_PLOT]) for start in range(0, len(lines), _A_PLOT)]
    titles = ["Boxes by class, AP50"] + ["Further classes, AP50"] * (len(parts) - 1)
    plots = [Plot(title, "recall", part) for title, part in zip(titles, parts, strict=True)]
    return plots, len(present) - len(shown)


def _by_score(boxes: Records, balance: Balance) -> Plot:
    """Precision, recall and F1 of all boxes that have at least a score."""
    precision, recall, f1 = 100 * shares_by_score(boxes, np.arange(101) / 100)
    best = f"best {100 * balance.f1:.1f} % from {balance.score:.2f} on"
    return Plot(
        "All boxes by their score",
        "score",
        tuple(
            Curve(name, tuple((at, float(value)) for at, value in enumerate(values) if not np.isnan(value)), figure)
            for name, values, figure in (("precision", precision, ""), ("recall", recall, ""), ("F1", f1, best))
        ),
        is_score=True,
    )


def _curve(name: str, precision: np.ndarray, figure: str) -> Curve:
    """Precision (101,) at each percent of recall, until there is none; where nothing was found, a point."""
    reached = max(1, np.count_nonzero(precision))
    return Curve(name, tuple((at, 100 * float(value)) for at, value in enumerate(precision[:reached])), figure)
