"""What a detector says above a score: how often it is right, what it takes for what, what it misses.

All at an IoU of 0.5 and of the same records as average precision, so for every score at once.
"""

from dataclasses import dataclass

import numpy as np

from convattn.detection.matching import BACKGROUND, Records, bits_at

__all__ = ["Balance", "balances", "best_balance", "confusion", "shares_by_score"]


@dataclass(frozen=True)
class Balance:
    """How right a detector is where it says what has at least this score; not numbers without objects."""

    score: float
    precision: float  # 0 to 1: of what it says, the share that is right
    recall: float  # 0 to 1: of what is there, the share that it says

    @property
    def f1(self) -> float:
        """The harmonic mean of both; 0 where nothing is right."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def best_balance(records: Records, label: int | None = None) -> Balance:
    """The score at which F1 is highest, of one class or of all detections together; of equal ones the highest.

    Without a detection the score is 1; without an object nothing is a number but the score.
    """
    of_class = np.ones(len(records.label), bool) if label is None else records.label == label
    objects = len(records.object_label) if label is None else int((records.object_label == label).sum())
    hit, ignored = bits_at(records.hit[of_class], 0)[:, 0], bits_at(records.ignored[of_class], 0)[:, 0]
    scores, hit = records.score[of_class][~ignored], hit[~ignored]
    if not objects:
        return Balance(1.0, float("nan"), float("nan"))
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], hit[order].cumsum()
    ends = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    if not len(ends):
        return Balance(1.0, 0.0, 0.0)
    f1 = 2 * hits[ends] / (ends + 1 + objects)
    best = ends[int(np.argmax(f1))]
    return Balance(float(scores[best]), float(hits[best] / (best + 1)), float(hits[best] / objects))


def balances(records: Records, classes: int) -> list[Balance]:
    """`best_balance` of each class."""
    return [best_balance(records, label) for label in range(classes)]


def shares_by_score(records: Records, least: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 of all detections that have at least these scores (n,), as (3, n), 0 to 1.

    Precision is no number where there are no detections.
    """
    hit, ignored = bits_at(records.hit, 0)[:, 0], bits_at(records.ignored, 0)[:, 0]
    order = np.argsort(records.score[~ignored])
    scores, hits = records.score[~ignored][order], np.append(0, hit[~ignored][order].cumsum())
    below = np.searchsorted(scores, least)
    right, said, objects = hits[-1] - hits[below], len(scores) - below, len(records.object_label)
    precision = np.divide(right, said, out=np.full(len(least), np.nan), where=said > 0)
    return np.stack([precision, right / objects, 2 * right / (said + objects)])


def confusion(records: Records, classes: int, score: float) -> np.ndarray:
    """What is taken for what where scores are at least `score`, (classes + 1, classes + 1) int64.

    Rows are what is there, columns what is said. The last row is what lies on no object, or on one that a surer
    detection lies on already: false alarms. The last column is what nothing lies on: missed. What lies on a crowd of
    its class is left out.
    """
    taken = np.where(records.taken_score >= score, records.taken_label, BACKGROUND)
    wrong = (records.score >= score) & (records.lies_on == BACKGROUND)
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(counts, (records.object_label, np.where(taken == BACKGROUND, classes, taken)), 1)
    np.add.at(counts, (classes, records.label[wrong]), 1)
    return counts
