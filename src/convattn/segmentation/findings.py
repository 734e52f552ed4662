"""What `convattn eval` shows of a segmenter: every class, what is taken for what, the worst images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convattn.data.images import ImageError, as_jpeg
from convattn.page import Confusion, Gallery, GalleryItem
from convattn.segmentation.confusion import IGNORED, Scores, confusion, scores
from convattn.segmentation.options import EvaluationOptions
from convattn.segmentation.pictures import coloured, errors, overlaid
from convattn.segmentation.predict import MaskPrediction
from convattn.segmentation.scores import Confusions
from convattn.task import Batch, Examiner, Table

__all__ = ["Examination", "SegmentationFindings"]

_MOST = 60  # classes of which what is taken for what goes on the page
_SHOWN = 12  # images, the worst
_SHOWN_SIZE = 420  # pixels of their longer side
_NAMED = 6  # absent classes in a line

Again = Callable[[nn.Module, Image.Image], MaskPrediction]  # looks at a picture once more, to show it


class Examination(Confusions, Examiner):
    """Looks at each image by itself too, to show the worst.

    Args:
        model: that is looked at.
        data: the images, with `classes`, `colours`, `paths`, `read` and `target`.
        options: how.
        views: as of `Confusions`.
        again: looks at one picture, to show it.
        seen: how large images are seen, in words.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        options: EvaluationOptions,
        views: Callable[[Tensor], list[Tensor]],
        again: Again,
        seen: str,
    ):
        super().__init__(len(data.classes), options, views)
        self._model, self._data, self._again, self._seen = model, data, again, seen
        self._paths: list[str] = []
        self._each: list[Tensor] = []  # mIoU of an image, on the device

    def update(self, outputs: Sequence[Tensor], batch: Batch) -> None:
        """Count the pixels, of each image too."""
        super().update(outputs, batch)
        for predicted, labels in zip(outputs, batch.targets, strict=True):
            counts = confusion(predicted, labels, self.classes).float()
            right = counts.diagonal()
            self._each.append((100 * right / (counts.sum(0) + counts.sum(1) - right)).nanmean())
        self._paths += batch.paths

    def parts(self) -> dict[str, Any]:
        """The counts, and every image with its mIoU."""
        each = torch.stack(self._each).tolist() if self._each else []
        return {**super().parts(), "images": [*zip(self._paths, each, strict=True)]}

    def findings(self, parts: Mapping[str, Any]) -> "SegmentationFindings":
        """What was found."""
        return SegmentationFindings(
            counts=parts["counts"].cpu(),
            images=dict(parts["images"]),
            model=self._model,
            data=self._data,
            options=self.options,
            again=self._again,
            seen=self._seen,
        )


@dataclass(frozen=True)
class SegmentationFindings:
    """The result of an evaluation."""

    counts: Tensor  # (classes, classes)
    images: Mapping[str, float]  # mIoU of each image's own classes, percent
    model: nn.Module
    data: Any
    options: EvaluationOptions
    again: Again
    seen: str

    @property
    def scores(self) -> Scores:
        """Of all pixels together."""
        return scores(self.counts)

    @property
    def absent(self) -> list[str]:
        """Classes that no pixel is labelled with."""
        return [name for name, pixels in zip(self.data.classes, self.counts.sum(1).tolist(), strict=True) if not pixels]

    def figures(self) -> dict[str, float]:
        """Of the metrics of training."""
        found = self.scores
        return {"miou": found.miou, "macc": found.macc, "aacc": found.aacc, "mdice": found.mdice}

    def as_json(self) -> dict[str, Any]:
        """Every figure; classes that cannot be judged have none."""
        return {
            "seen": self.seen,
            "images": len(self.images),
            "pixels": int(self.counts.sum()),
            **{name: _number(value) for name, value in self.figures().items()},
            "absent": self.absent,
            "classes": [
                {
                    "class": name,
                    "pixels": pixels,
                    **{key: _number(value) for key, value in zip(_KEYS, row, strict=True)},
                }
                for name, pixels, row in self._rows()
            ],
        }

    def lines(self) -> list[tuple[str, str]]:
        """How images were looked at, the figures, what was left out."""
        found = self.figures()
        lines = [("input", self.seen), ("mIoU", f"{found['miou']:6.2f} %, over all pixels, then over the classes")]
        lines += [(title, f"{found[name]:6.2f} %") for title, name in _OTHERS]
        lines.append(("images", f"{len(self.images):,}, {int(self.counts.sum()):,} pixels that count"))
        if self.absent:
            more = f" and {len(self.absent) - _NAMED} more" if len(self.absent) > _NAMED else ""
            names = ", ".join(self.absent[:_NAMED])
            lines.append(("absent", f"no pixel of {names}{more}: left out of mAcc, and of mIoU unless predicted"))
        return lines

    def tables(self) -> list[Table]:
        """The classes, the worst first, if they were asked for."""
        return [self._classes()] if self.options.per_class else []

    def page(self) -> dict[str, Any]:
        """What is taken for what, each class, and the worst images beside their masks."""
        few, names = len(self.data.classes) <= _MOST, tuple(self.data.classes)
        counts = tuple(map(tuple, self.counts.tolist()))
        return {
            "confusion": Confusion(names, counts, "pixels", in_percent=True) if few else None,
            "gallery": self._gallery(),
            "tables": (self._classes(),),
        }

    def _rows(self) -> list[tuple[str, int, list[float]]]:
        found = self.scores
        columns = torch.stack([found.iou, found.acc, found.dice, found.precision], dim=1).tolist()
        return [*zip(self.data.classes, found.pixels.tolist(), columns, strict=True)]

    def _classes(self) -> Table:
        total = max(1, int(self.counts.sum()))
        ordered = sorted(self._rows(), key=lambda row: (np.isnan(row[2][0]), row[2][0]))
        rows = tuple(
            (name, f"{100 * pixels / total:.2f} %", *("–" if np.isnan(value) else f"{value:.2f} %" for value in row))
            for name, pixels, row in ordered
        )
        columns = ("class", "pixels", "IoU", "Acc", "Dice", "precision")
        return Table("Classes", columns, rows, numbers=frozenset(range(1, 6)), note="The worst first.")

    def _gallery(self) -> Gallery:
        places = {path: index for index, path in enumerate(self.data.paths)}
        known = sorted((score, path) for path, score in self.images.items() if not np.isnan(score))
        items = []
        for score, path in known[:_SHOWN]:
            try:
                picture, labels = self.data.read(places[path]), np.asarray(self.data.target(places[path]))
            except ImageError:  # it could be read a moment ago; what is shown is no reason to fail
                continue
            items.append(self._item(picture, labels, score, path))
        intro = (
            f"The {len(items)} images with the lowest mIoU of their own classes, the worst first: photograph, mask, "
            "prediction, and in red what is wrong."
        )
        if self.options.looks_again:
            intro += " What is shown, and the share of right pixels, is of one look at each, not mirrored or resized."
        return Gallery("Where it fails", intro, tuple(items))

    def _item(self, picture: Image.Image, labels: np.ndarray, score: float, path: str) -> GalleryItem:
        predicted = self.again(self.model, picture).labels
        colours, size = self.data.colours, _small(picture.size)
        shown = [
            (picture, "photograph"),
            (overlaid(picture, labels, colours), "mask"),
            (coloured(predicted, colours), "prediction"),
            (errors(labels, predicted), "errors"),
        ]
        known = labels != IGNORED
        right = float((predicted == labels)[known].mean()) if known.any() else 0.0
        said = f"mIoU {score:.1f} %, pixels right"
        return GalleryItem(tuple((as_jpeg(one.resize(size)), text) for one, text in shown), said, right, name=path)


_KEYS = ("iou", "acc", "dice", "precision")
_OTHERS = (("mAcc", "macc"), ("aAcc", "aacc"), ("Dice", "mdice"))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _small(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1.0, _SHOWN_SIZE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
