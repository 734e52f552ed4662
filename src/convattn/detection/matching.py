"""Which detections of an image have found its objects, by COCO's rules.

A detection finds an object of its class if their IoU reaches a threshold; the surest detection chooses first, and takes
the object of the highest IoU that is still free. What only lies on a crowd (by the share of itself), or on an object
that is not of the sizes that are asked for, counts neither for nor against. All of that for ten thresholds and four
ranges of sizes: each pair of them is one bit of a whole number, so that one pass over the few pairs that overlap at all
does for all.

Source: `COCOeval` of pycocotools (Dollár and Lin); "Microsoft COCO", Lin et al., 2014, arXiv 1405.0312.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from convattn.detection.annotations import Annotations
from convattn.detection.detections import Detections, runs_of
from convattn.detection.rasterise import rle_of
from convattn.extras import require

__all__ = ["BACKGROUND", "CROWD", "IOU_THRESHOLDS", "MOST", "SIZES", "Records", "bits_at", "box_overlaps", "match"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}  # areas
MOST = 100  # detections of a class in an image that count, the surest
BACKGROUND, CROWD = -1, -2  # what a detection lies on, where it is no object

_STEPS = len(IOU_THRESHOLDS)
_LEAST = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
_BLOCK = (1 << _STEPS) - 1  # all thresholds of one range of sizes
_ALL = (1 << _STEPS * len(SIZES)) - 1
# The bits of an IoU that reaches so many of the thresholds, in each range of sizes.
_REACHED = [sum(((1 << count) - 1) << _STEPS * at for at in range(len(SIZES))) for count in range(_STEPS + 1)]


@dataclass(frozen=True)
class Records:
    """What is known of detections and objects once they have been compared: some tens of bytes for each."""

    # Of each detection
    image: np.ndarray  # (n,) int64: its place in the data set
    label: np.ndarray  # (n,) int64
    score: np.ndarray  # (n,) float64
    rank: np.ndarray  # (n,) int64: its place among those of its class in its image, the surest first
    hit: np.ndarray  # (n,) uint64: a bit for each size and threshold
    ignored: np.ndarray  # (n,) uint64
    lies_on: np.ndarray  # (n,) int64: the class of the object that it lies on, whatever its own; BACKGROUND, CROWD
    # Of each object that counts
    object_image: np.ndarray  # (m,) int64
    object_place: np.ndarray  # (m,) int64: among the annotations of its image
    object_label: np.ndarray  # (m,) int64
    object_sizes: np.ndarray  # (m, sizes) bool: of which it is
    found_score: np.ndarray  # (m,) float64: of the detection that found it at an IoU of 0.5; -1 without one
    taken_label: np.ndarray  # (m,) int64: the class of the detection that lies on it; BACKGROUND without one
    taken_score: np.ndarray  # (m,) float64: the score of that; -1

    @classmethod
    def joined(cls, parts: Iterable["Records"]) -> "Records":
        """Several as one."""
        several = [*parts]
        return cls(*(np.concatenate([getattr(part, field.name) for part in several]) for field in fields(cls)))

    @classmethod
    def none(cls) -> "Records":
        """Of nothing."""
        whole, number, bits = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.uint64)
        sizes = np.zeros((0, len(SIZES)), bool)
        return cls(whole, whole, number, whole, bits, bits, whole, whole, whole, whole, sizes, number, whole, number)


def bits_at(bits: np.ndarray, size: int) -> np.ndarray:
    """The thresholds of one range of sizes, (n,) uint64 -> (n, thresholds) bool."""
    places = np.arange(_STEPS, dtype=np.uint64) + np.uint64(_STEPS * size)
    return (bits[:, None] >> places & np.uint64(1)).astype(bool)


def match(found: Detections, truth: Annotations, *, masks: bool = False) -> Records:
    """Compare what was found in an image with what is there.

    Args:
        found: with masks, if these are compared.
        truth: the objects; in the pixels of `found`.
        masks: whether masks are compared instead of boxes.
    """
    order = np.argsort(-found.scores, kind="stable")
    labels = found.labels[order]
    rank = _ranks(labels)
    order, labels, rank = (part[rank < MOST] for part in (order, labels, rank))
    found = found.part(order)
    if masks:
        overlaps, areas = _mask_overlaps(found, truth)
    else:
        overlaps = box_overlaps(found.boxes_xyxy, truth.boxes_xyxy, truth.crowd)
        sides = found.boxes_xyxy.astype(np.float64)
        areas = (sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1])
    reached = (overlaps[:, :, None] >= _LEAST).sum(2)
    scores = found.scores.astype(np.float64)
    hit, ignored, found_score = _found(reached, overlaps, labels, truth, areas, scores)
    lies_on, taken_label, taken_score = _lying(reached, overlaps, labels, truth, scores)
    own = ~truth.crowd
    return Records(
        np.full(len(labels), truth.index, np.int64),
        labels,
        scores,
        rank,
        hit,
        ignored,
        lies_on,
        np.full(own.sum(), truth.index, np.int64),
        np.flatnonzero(own),
        truth.labels[own],
        _of_sizes(truth.areas)[own],
        found_score[own],
        taken_label[own],
        taken_score[own],
    )


def box_overlaps(found_xyxy: np.ndarray, truth_xyxy: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of each box with each object, of crowds the share of the box, (n, m) float64."""
    a, b = found_xyxy.astype(np.float64)[:, None], truth_xyxy[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.where((sides > 0).all(2), sides[..., 0] * sides[..., 1], 0.0)
    area, other = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (a, b))
    union = np.where(crowd, area, area + other - inter)
    return np.divide(inter, union, out=np.zeros_like(inter), where=inter > 0)


def _mask_overlaps(found: Detections, truth: Annotations) -> tuple[np.ndarray, np.ndarray]:
    """IoU of masks, (n, m), and the areas of those that were found, (n,)."""
    if found.masks is None or truth.outlines is None:
        raise ValueError("masks are compared, and " + ("none were found" if found.masks is None else "none are known"))
    if found.size != truth.size:
        raise ValueError(f"masks of {found.size} pixels (height, width) for an image of {truth.size}")
    areas = np.count_nonzero(found.masks, axis=(1, 2)).astype(np.float64)
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth))), areas
    known = [rle_of(outline, truth.size) for outline in truth.outlines]
    overlaps = require("pycocotools.mask", "detection").iou(runs_of(found.masks), known, truth.crowd.tolist())
    return np.asarray(overlaps), areas


def _ranks(labels: np.ndarray) -> np.ndarray:
    """The place of each among those of its label, in order."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return ranks


def _of_sizes(areas: np.ndarray) -> np.ndarray:
    """Which ranges of sizes areas are of, (n, sizes) bool; both ends belong to a range."""
    return np.stack([(areas >= least) & (areas <= most) for least, most in SIZES.values()], axis=1)


def _outside(areas: np.ndarray) -> list[int]:
    """The bits of the ranges of sizes that each area is not of."""
    blocks = [_BLOCK << _STEPS * at for at in range(len(SIZES))]
    return [
        sum(block for block, inside in zip(blocks, row, strict=True) if not inside) for row in _of_sizes(areas).tolist()
    ]


def _candidates(allowed: np.ndarray, overlaps: np.ndarray) -> list[tuple[int, list[int]]]:
    """The detections that overlap an object, and these of each, the highest IoU first; of equal ones the last."""
    rows, columns = np.nonzero(allowed)
    order = np.lexsort((-columns, -overlaps[rows, columns], rows))
    several: dict[int, list[int]] = {}
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        several.setdefault(row, []).append(column)
    return [*several.items()]


def _found(
    reached: np.ndarray,
    overlaps: np.ndarray,
    labels: np.ndarray,
    truth: Annotations,
    areas: np.ndarray,
    scores: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each detection the bits of what it found and of where it does not count; of each object who found it."""
    hits, outside = [0] * len(labels), _outside(areas)
    ignored, taken = outside.copy(), [0] * len(truth)
    not_asked = [
        _ALL if crowd else bits for crowd, bits in zip(truth.crowd.tolist(), _outside(truth.areas), strict=True)
    ]
    shared = [_ALL if crowd else 0 for crowd in truth.crowd.tolist()]  # a crowd is there for all that lie on it
    found_score = np.full(len(truth), -1.0)
    same = labels[:, None] == truth.labels
    for at, objects in _candidates(same & (reached > 0), overlaps):
        hit = passed = 0
        for place in objects:
            free = _REACHED[reached[at, place]] & ~hit & ~not_asked[place] & ~taken[place]
            hit |= free
            taken[place] |= free
            if free & 1:
                found_score[place] = scores[at]
        for place in objects:
            free = _REACHED[reached[at, place]] & ~(hit | passed) & not_asked[place] & (shared[place] | ~taken[place])
            passed |= free
            taken[place] |= free
        hits[at], ignored[at] = hit, passed | (outside[at] & ~hit)
    return np.array(hits, np.uint64), np.array(ignored, np.uint64), found_score


def _lying(
    reached: np.ndarray, overlaps: np.ndarray, labels: np.ndarray, truth: Annotations, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each detection lies on at an IoU of 0.5 whatever its class, and of each object what lies on it.

    The surest chooses first, an object of its own class before others. So what lies on an object does not depend on
    detections that are less sure, and holds for every threshold of the score.
    """
    lies_on = np.full(len(labels), BACKGROUND, np.int64)
    taken_label, taken_score = np.full(len(truth), BACKGROUND, np.int64), np.full(len(truth), -1.0)
    for at, objects in _candidates(reached > 0, overlaps):
        free = [place for place in objects if not truth.crowd[place] and taken_score[place] < 0]
        own = [place for place in free if truth.labels[place] == labels[at]]
        if own or free:
            place = (own or free)[0]
            lies_on[at] = truth.labels[place]
            taken_label[place], taken_score[place] = labels[at], scores[at]
        elif any(truth.crowd[place] and truth.labels[place] == labels[at] for place in objects):
            lies_on[at] = CROWD
    return lies_on, taken_label, taken_score
