"""COCO's figures of detection: average precision and recall, of boxes and of masks, in percent.

Each image is compared when it comes by (`matching.match`), and some tens of bytes of each detection are kept: processes
exchange these, no masks and no logits. Everything here works without torch.

Source: https://cocodataset.org/#detection-eval; `COCOeval` of pycocotools, whose figures these are to 1e-12.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convattn.detection.detections import Detections
from convattn.detection.matching import IOU_THRESHOLDS, MOST, SIZES, Records, bits_at, match
from convattn.task import Batch, Meter, Metric

__all__ = ["BOX_METRICS", "MASK_METRICS", "AveragePrecision", "Curves", "curves"]

_RECALLS = np.linspace(0.0, 1.0, 101)
_FEW = (1, 10)  # detections of a class in an image, for recall
_TITLES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR 1",
    "ar10": "AR 10",
    "ar100": "AR 100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}


def _metrics(kind: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{kind}_{name}", f"{kind.title()} {title}", "%", lowest=0.0, highest=100.0)
        for name, title in _TITLES.items()
    )


BOX_METRICS, MASK_METRICS = _metrics("box"), _metrics("mask")


@dataclass(frozen=True)
class Curves:
    """Precision and recall, 0 to 1; not numbers for a class without an object of the size."""

    precision: np.ndarray  # (IoU thresholds 10, recalls 101, classes, sizes 4): the best at this recall or above
    recall: np.ndarray  # (10, classes, sizes): the greatest, by 100 detections of a class in an image
    recall_of_few: np.ndarray  # (10, classes, 2): by 1 and by 10, of all sizes
    objects: np.ndarray  # (classes, sizes) int64

    def figures(self) -> dict[str, float]:
        """Means over the classes that have objects, in percent, by the names of COCO's summary."""
        sizes = [*SIZES]
        found = {"ap": _mean(self.precision[..., 0])}
        for iou in (50, 75):
            at = int(np.argmin(np.abs(IOU_THRESHOLDS - iou / 100)))
            found[f"ap{iou}"] = _mean(self.precision[at, ..., 0])
        for place, size in enumerate(sizes[1:], start=1):
            found[f"ap_{size}"] = _mean(self.precision[..., place])
        for place, most in enumerate(_FEW):
            found[f"ar{most}"] = _mean(self.recall_of_few[..., place])
        found[f"ar{MOST}"] = _mean(self.recall[..., 0])
        for place, size in enumerate(sizes[1:], start=1):
            found[f"ar_{size}"] = _mean(self.recall[..., place])
        return found

    def per_class(self) -> np.ndarray:
        """AP, AP50 and AP75 of each class, percent, (classes, 3); not numbers for one without objects."""
        at75 = int(np.argmin(np.abs(IOU_THRESHOLDS - 0.75)))
        whole = self.precision[..., 0]
        return 100 * np.stack([whole.mean((0, 1)), whole[0].mean(0), whole[at75].mean(0)], axis=1)


def curves(records: Records, classes: int) -> Curves:
    """Precision and recall of what was compared, for so many classes."""
    sizes, steps = len(SIZES), len(IOU_THRESHOLDS)
    objects = np.zeros((classes, sizes), np.int64)
    np.add.at(objects, records.object_label, records.object_sizes.astype(np.int64))
    precision = np.full((steps, len(_RECALLS), classes, sizes), np.nan)
    recall, few = np.full((steps, classes, sizes), np.nan), np.full((steps, classes, len(_FEW)), np.nan)
    order = np.lexsort((records.rank, records.image, -records.score, records.label))
    ends = np.searchsorted(records.label[order], np.arange(classes + 1))
    for label in range(classes):
        own = order[ends[label] : ends[label + 1]]
        for size in range(sizes):
            if objects[label, size]:
                hit, ignored = bits_at(records.hit[own], size), bits_at(records.ignored[own], size)
                found = _envelope(hit, ~hit & ~ignored, objects[label, size])
                precision[:, :, label, size], recall[:, label, size] = found
        if objects[label, 0]:
            hit, rank = bits_at(records.hit[own], 0), records.rank[own]
            few[:, label] = np.stack([hit[rank < most].sum(0) for most in _FEW], axis=1) / objects[label, 0]
    return Curves(precision, recall, few, objects)


class AveragePrecision(Meter):
    """The meter of `BOX_METRICS`, and with masks of `MASK_METRICS`.

    Outputs are those of a detector in torchvision's format, one dict an image, in the pixels of its picture; targets
    are `Annotations`. For each detection 56 bytes are kept and for each object 52, for masks as many again.

    Args:
        classes: how many.
        masks: whether masks are judged too.
    """

    def __init__(self, classes: int, *, masks: bool):
        self.classes = classes
        self.kinds = ("box", "mask") if masks else ("box",)
        self._records: dict[str, list[Records]] = {kind: [] for kind in self.kinds}

    def run(self, model: Any, batch: Batch) -> Any:
        """What the model finds, in the pixels of the pictures."""
        return model(batch.images, original_sizes=batch.sizes)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Compare what was found in each image with what is there."""
        for output, truth, size in zip(outputs, batch.targets, batch.sizes, strict=True):
            found = Detections.of(output, size)
            for kind in self.kinds:
                self._records[kind].append(match(found, truth, masks=kind == "mask"))

    def parts(self) -> dict[str, Any]:
        """One entry of each process, for boxes and for masks."""
        return {kind: [Records.joined([Records.none(), *found])] for kind, found in self._records.items()}

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """The figures, percent; not numbers where no class has an object of the size."""
        found: dict[str, float] = {}
        for kind in self.kinds:
            figures = curves(Records.joined(parts[kind]), self.classes).figures()
            found |= {f"{kind}_{name}": value for name, value in figures.items()}
        return found


def _envelope(hit: np.ndarray, wrong: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision at each recall, (10, 101), and the greatest recall, (10,), of (n, 10) bool in order of the score."""
    hits, wrongs = hit.cumsum(0).astype(np.float64), wrong.cumsum(0).astype(np.float64)
    recall, precision = hits / objects, hits / (wrongs + hits + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    found = np.zeros((hit.shape[1], len(_RECALLS)))
    for at in range(hit.shape[1]):
        places = np.searchsorted(recall[:, at], _RECALLS, side="left")
        reached = places < len(recall)
        found[at, reached] = best[places[reached], at]
    return found, recall[-1] if len(recall) else np.zeros(hit.shape[1])


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if len(known) else float("nan")
