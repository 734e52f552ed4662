"""What `convattn eval` shows of a detector: COCO's figures, every class, what is taken for what, the worst images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from convattn.data.images import ImageError, as_jpeg
from convattn.detection.annotations import Annotations
from convattn.detection.average_precision import BOX_METRICS, MASK_METRICS, AveragePrecision, Curves, curves
from convattn.detection.confusion import Balance, balances, best_balance, confusion
from convattn.detection.exported import as_detector
from convattn.detection.matching import BACKGROUND, Records, bits_at, match
from convattn.detection.options import EvaluationOptions
from convattn.detection.pictures import DrawnObject, with_objects
from convattn.detection.precision_recall import precision_and_recall
from convattn.detection.predict import ObjectPrediction
from convattn.page import Confusion, Gallery, GalleryItem
from convattn.task import Batch, Examiner, Table

__all__ = ["DetectionFindings", "Examination"]

_MOST = 60  # classes of which what is taken for what goes on the page
_SHOWN = 12  # images, the worst
_SHOWN_SIZE, _MOST_ENLARGED = 400, 4.0  # pixels of their longer side, at most so many times as large as it is
_NOTHING = "nothing"  # of the confusion: what is there and not found, what is found and not there
_RIGHT, _WRONG, _MISSED, _FOUND = (40, 150, 60), (215, 50, 45), (235, 150, 20), (95, 125, 165)

Again = Callable[[nn.Module, Image.Image], ObjectPrediction]  # looks at a picture once more, to show it


class Examination(AveragePrecision, Examiner):
    """Average precision, and of which images it is.

    Args:
        model: that is looked at.
        data: the images, with `classes`, `paths`, `read` and `target`.
        options: how.
        masks: whether masks are judged too.
        again: looks at one picture, to show it.
        seen: how large images are seen, in words.
    """

    def __init__(
        self, model: nn.Module, data: Any, options: EvaluationOptions, again: Again, seen: str, *, masks: bool
    ):
        super().__init__(len(data.classes), masks=masks)
        self._model, self._data, self._options, self._again, self._seen = model, data, options, again, seen
        self._images = 0

    def run(self, model: Any, batch: Batch) -> Any:
        """What the model finds, a file's too."""
        return super().run(as_detector(model), batch)

    def update(self, outputs: Any, batch: Batch) -> None:
        """Compare, and count the images."""
        super().update(outputs, batch)
        self._images += len(batch)

    def parts(self) -> dict[str, Any]:
        """One entry of each process."""
        return {**super().parts(), "images": [self._images]}

    def findings(self, parts: Mapping[str, Any]) -> "DetectionFindings":
        """What was found."""
        return DetectionFindings(
            records={kind: Records.joined(parts[kind]) for kind in self.kinds},
            images=sum(parts["images"]),
            model=self._model,
            data=self._data,
            options=self._options,
            again=self._again,
            seen=self._seen,
        )


@dataclass(frozen=True)
class DetectionFindings:
    """The result of an evaluation."""

    records: Mapping[str, Records]  # of boxes, and of masks where they are judged
    images: int
    model: nn.Module
    data: Any
    options: EvaluationOptions
    again: Again
    seen: str

    @property
    def boxes(self) -> Records:
        """What was compared by boxes."""
        return self.records["box"]

    @cached_property
    def curves(self) -> dict[str, Curves]:
        """Precision and recall, of boxes and of masks."""
        return {kind: curves(records, len(self.data.classes)) for kind, records in self.records.items()}

    @cached_property
    def balance(self) -> Balance:
        """At which score precision and recall of all boxes are balanced best."""
        return best_balance(self.boxes)

    @property
    def absent(self) -> list[str]:
        """Classes of which there is no object."""
        counts = self.curves["box"].objects[:, 0].tolist()
        return [name for name, count in zip(self.data.classes, counts, strict=True) if not count]

    def figures(self) -> dict[str, float]:
        """All of COCO's, percent, without those of sizes that no object has."""
        named = {f"{kind}_{name}": value for kind, of in self.curves.items() for name, value in of.figures().items()}
        return {name: value for name, value in named.items() if not math.isnan(value)}

    def as_json(self) -> dict[str, Any]:
        """Every figure; what cannot be judged has none."""
        figures = self.figures()
        told = [metric.name for metric in (*BOX_METRICS, *MASK_METRICS) if metric.name.split("_")[0] in self.records]
        return {
            "seen": self.seen,
            "images": self.images,
            "objects": len(self.boxes.object_label),
            **{name: figures.get(name) for name in told},
            "balanced": {"score": self.balance.score, **_shares(self.balance)},
            "absent": self.absent,
            "classes": [dict(zip(_KEYS, row, strict=True)) for row in self._rows()],
        }

    def lines(self) -> list[tuple[str, str]]:
        """How images were looked at, the figures, where scores are balanced, what was left out."""
        figures, lines = self.figures(), [("input", self.seen)]
        for kind in self.records:
            for title, names in _LINES:
                values = [(text, figures.get(f"{kind}_{name}")) for name, text in names]
                told = ", ".join(f"{value:.2f} %{text}" for text, value in values if value is not None)
                lines.append((f"{kind} {title}", told or "nothing to judge by"))
        lines.append(("balanced", self._balanced()))
        lines.append(("images", f"{self.images:,}, {len(self.boxes.object_label):,} objects that count"))
        if self.absent:
            more = f" and {len(self.absent) - 6} more" if len(self.absent) > 6 else ""
            lines.append(("absent", f"no object of {', '.join(self.absent[:6])}{more}: left out of all means"))
        return lines

    def tables(self) -> list[Table]:
        """The classes, the worst first, if they were asked for."""
        return [self._classes()] if self.options.per_class else []

    def page(self) -> dict[str, Any]:
        """Precision and recall, what is taken for what, each class, and the worst images beside the truth."""
        plots = precision_and_recall(self.curves, self.boxes, self.balance, self.data.classes)
        found: dict[str, Any] = {"tables": (self._classes(),), "plots": plots, "gallery": self._gallery()}
        if len(self.data.classes) <= _MOST:
            counts = confusion(self.boxes, len(self.data.classes), self.balance.score)
            found["confusion"] = Confusion(
                (*self.data.classes, _NOTHING),
                tuple(map(tuple, counts.tolist())),
                "objects",
                told=_told(counts, self.balance.score),
                has_nothing=True,
            )
        return found

    def _rows(self) -> list[tuple[Any, ...]]:
        """Of each class, in order: what `_KEYS` names."""
        each = balances(self.boxes, len(self.data.classes))
        objects = self.curves["box"].objects[:, 0].tolist()
        columns = [of.per_class() for of in self.curves.values()]
        parts = np.concatenate([columns[0], columns[-1][:, :1] if len(columns) > 1 else columns[0][:, :0]], axis=1)
        return [
            (
                name,
                count,
                *map(_number, row[:3]),
                *((_number(row[3]),) if len(row) > 3 else (None,)),
                balance.score,
                *_shares(balance).values(),
            )
            for name, count, row, balance in zip(self.data.classes, objects, parts.tolist(), each, strict=True)
        ]

    def _balanced(self) -> str:
        """Where precision and recall are balanced best, in words."""
        best = self.balance
        if not best.recall > 0:
            return "nothing that is said lies on an object of its class, at an IoU of 0.5"
        shares = f"precision {100 * best.precision:.1f} %, recall {100 * best.recall:.1f} %"
        return f"at a score of {best.score:.3f}: {shares}, at an IoU of 0.5"

    def _classes(self) -> Table:
        masks = "mask" in self.records
        rows = []
        for name, count, *percent, score, precision, recall, f1 in sorted(
            self._rows(), key=lambda row: (row[2] is None, row[2])
        ):
            shown = [_percent(value) for value in (percent if masks else percent[:3])]
            best, *shares = [_percent(None if value is None else 100 * value) for value in (f1, precision, recall)]
            rows.append((name, f"{count:,}", *shown, best, "–" if f1 is None else f"{score:.2f}", *shares))
        columns = ("class", "objects", "AP", "AP50", "AP75", *(("mask AP",) if masks else ()))
        columns = (*columns, "best F1", "at score", "precision", "recall")
        note = (
            "The worst first; on the right the score at which precision and recall are balanced best, at an IoU of 0.5."
        )
        return Table("Classes", columns, tuple(rows), numbers=frozenset(range(1, len(columns))), note=note)

    def _gallery(self) -> Gallery:
        score, items = self.balance.score, []
        for index, errors, objects in self._worst():
            path = self.data.paths[index]
            try:
                picture, truth = self.data.read(index), self.data.target(index)
            except ImageError:  # it could be read a moment ago; what is shown is no reason to fail
                continue
            said = ", ".join(f"{count} {_plural(what, count)}" for what, count in errors.items() if count)
            right = objects - errors["missed"] - errors["taken for another"]
            share = right / max(1, objects + errors["false alarm"])
            items.append(GalleryItem(self._pictures(picture, truth, score), said, share, name=path))
        intro = (
            f"The {len(items)} images with the most errors at a score of {score:.2f}, the worst first: what is there, "
            "with orange for what is missed, and what was said, with green for what is right and red for what is not."
        )
        return Gallery("Where it fails", intro, tuple(items))

    def _worst(self) -> list[tuple[int, dict[str, int], int]]:
        """Images with errors, the most first: the index, how many of each kind, how many objects."""
        found, score = self.boxes, self.balance.score
        right, taken = found.found_score >= score, found.taken_score >= score
        other = taken & ~right & (found.taken_label != found.object_label)
        alarms = (found.score >= score) & (found.lies_on == BACKGROUND)
        size = len(self.data)

        def of_images(images: np.ndarray) -> np.ndarray:
            return np.bincount(images, minlength=size)

        missed = of_images(found.object_image[~right & ~other])
        confused, wrong = of_images(found.object_image[other]), of_images(found.image[alarms])
        objects, total = of_images(found.object_image), missed + confused + wrong
        order = [int(at) for at in np.argsort(-total, kind="stable")[:_SHOWN] if total[at]]
        return [
            (
                at,
                {"missed": int(missed[at]), "taken for another": int(confused[at]), "false alarm": int(wrong[at])},
                int(objects[at]),
            )
            for at in order
        ]

    def _pictures(
        self, picture: Image.Image, truth: Annotations, score: float
    ) -> tuple[tuple[bytes, str], tuple[bytes, str]]:
        said = self.again(self.model, picture).detections.above(score)
        ratio = min(_MOST_ENLARGED, _SHOWN_SIZE / max(picture.size))  # names cover a tiny picture
        small = picture.resize((max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))))
        found = match(said, truth)
        seen = {
            int(place): score_ >= score for place, score_ in zip(found.object_place, found.found_score, strict=True)
        }
        names = self.data.classes
        there = [
            DrawnObject(
                box * ratio,
                "grey" if crowd else _FOUND if seen.get(at, True) else _MISSED,
                names[label],
                bool(crowd),
            )
            for at, (box, label, crowd) in enumerate(zip(truth.boxes_xyxy, truth.labels, truth.crowd, strict=True))
        ]
        order = np.argsort(-said.scores, kind="stable")[: len(found.label)]
        hits = bits_at(found.hit, 0)[:, 0] if len(found.label) else np.zeros(0, bool)
        answers = [
            DrawnObject(
                said.boxes_xyxy[at] * ratio,
                _RIGHT if hit else _WRONG,
                f"{names[said.labels[at]]} {said.scores[at]:.2f}",
            )
            for at, hit in zip(order.tolist(), hits.tolist(), strict=True)
        ]
        return (as_jpeg(with_objects(small, there)), "what is there"), (
            as_jpeg(with_objects(small, answers)),
            "what was said",
        )


_KEYS = ("class", "objects", "ap", "ap50", "ap75", "mask_ap", "score", "precision", "recall", "f1")
_LINES = (
    ("AP", (("ap", ""), ("ap50", " at 0.5"), ("ap75", " at 0.75"))),
    ("by size", (("ap_small", " small"), ("ap_medium", " medium"), ("ap_large", " large"))),
    ("AR", (("ar1", " by 1 detection"), ("ar10", " by 10"), ("ar100", " by 100"))),
)


def _told(counts: np.ndarray, score: float) -> str:
    """What is wrong, of all classes together."""
    there, said = counts[:-1], counts[:-1, :-1]
    missed, alarms = int(there[:, -1].sum()), int(counts[-1].sum())
    right, objects = int(said.diagonal().sum()), int(there.sum())
    kinds = {"missed": missed, "taken for another": int(said.sum()) - right, "false alarm": alarms}
    errors = ", ".join(f"{count:,} {_plural(what, count)}" for what, count in kinds.items())
    return f"Of {objects:,} objects {right:,} are found at a score of {score:.2f}: {errors}."


def _plural(what: str, count: int) -> str:
    return f"{what}s" if what == "false alarm" and count != 1 else what


def _shares(balance: Balance) -> dict[str, float | None]:
    return {"precision": _number(balance.precision), "recall": _number(balance.recall), "f1": _number(balance.f1)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"
