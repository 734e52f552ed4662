"""What `convattn eval` says of a classifier: its figures, beside what its authors published, and its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo
from torch import nn

from convattn.backbones.registry import official_weights
from convattn.classification.evaluate import Evaluation, Ranking, wilson_interval
from convattn.classification.gallery import choose_samples, gallery
from convattn.classification.options import EvaluationOptions
from convattn.classification.real_labels import RealLabels, read_real_labels
from convattn.data.class_names import class_names
from convattn.data.dataset import DataError
from convattn.data.labelled import ImageDataset
from convattn.data.transforms import input_config
from convattn.model_files import is_place
from convattn.page import Confusion
from convattn.task import Table
from convattn.weights.records import OfficialWeights

__all__ = ["ClassificationFindings", "Examination"]

_MOST = 2000  # classes of which every pair is counted
_SYNSETS = ImageNetInfo("imagenet-1k").label_names()


class Examination(Ranking):
    """Looks at each image of `data` (`in_model_order`), and knows what the figures of a model are to be set beside.

    `source` is where the model is from, as `open_model` takes it. DataError if ReaL labels are wanted and do not fit:
    before an evaluation that may take an hour.
    """

    def __init__(self, model: nn.Module, data: ImageDataset, source: str, options: EvaluationOptions):
        super().__init__()
        self._model, self._options, self._data = model, options, data
        self._described = class_names(model) or data.classes
        config = input_config(model)
        keys = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
        self._protocol = {key: config[key] for key in keys}
        self._real = _real_labels(options.real_labels, model, data) if options.real_labels else None
        self._published = _published(source, data)

    def findings(self, parts: Mapping[str, Any]) -> "ClassificationFindings":
        """What it found; raises ValueError where there was no image."""
        result = self.evaluation(parts)
        return ClassificationFindings(
            result=result,
            model=self._model,
            data=self._data,
            protocol=self._protocol,
            classes=self._data.classes,
            described=self._described,
            real=self._real.accuracy(result.paths, result.predictions) if self._real else None,
            published=self._published[0],
            no_published=self._published[1],
            per_class=self._options.per_class,
        )


@dataclass(frozen=True)
class ClassificationFindings:
    """The result of an evaluation, and what it is set beside."""

    result: Evaluation
    model: nn.Module
    data: ImageDataset
    protocol: Mapping[str, Any]  # how images are prepared, in timm's words
    classes: Sequence[str]
    described: Sequence[str]  # the same in plain words, where they are known
    real: tuple[float, int] | None  # accuracy on the ReaL labels, percent, and over how many images
    published: OfficialWeights | None
    no_published: str  # why there is none
    per_class: bool

    def figures(self) -> dict[str, float]:
        """Of the metrics of training."""
        return {"top1": self.result.top1, "top5": self.result.top5, "val_loss": self.result.loss}

    def as_json(self) -> dict[str, Any]:
        """Every figure with its interval; the classes too, if they were asked for."""
        result, topk = self.result, f"top{self.result.topk_size}"
        content: dict[str, Any] = {
            "protocol": self.protocol,
            "images": len(result.labels),
            "top1": result.top1,
            "top1_interval": result.top1_interval,
            topk: result.top5,
            f"{topk}_interval": result.top5_interval,
            "real": None,
            "loss": result.loss,
            "calibration_error": result.calibration_error,
            "published": None,
        }
        if self.real is not None:
            top1, images = self.real
            content["real"] = {"top1": top1, "top1_interval": wilson_interval(top1, images), "images": images}
        if self.published is not None:
            record = self.published
            content["published"] = {"top1": record.top1, "top5": record.top5, "source": record.source}
        if self.per_class:
            content["classes"] = [
                {
                    "class": self.classes[row.label],
                    "name": self.described[row.label],
                    "images": row.images,
                    "top1": row.top1,
                    "confused_with": None if row.confused_with is None else self.classes[row.confused_with],
                    "confused": row.confused,
                }
                for row in result.per_class()
            ]
        return content

    def lines(self) -> list[tuple[str, str]]:
        """Input, figures, what was published."""
        result, protocol, published = self.result, self.protocol, self.published
        _, height, width = protocol["input_size"]
        crop = "squashed to the square" if protocol["crop_mode"] == "squash" else f"crop ratio {protocol['crop_pct']:g}"
        figures = [
            ("top-1", result.top1, len(result.labels), published and published.top1),
            (f"top-{result.topk_size}", result.top5, len(result.labels), published and published.top5),
        ]
        if self.real is not None:
            figures.append(("ReaL top-1", *self.real, None))
        lines = [("input", f"{height} x {width}, {crop}, {protocol['interpolation']}")]
        for name, value, images, theirs in figures:
            low, high = wilson_interval(value, images)
            beside = f"  published: {theirs:.2f} %" if theirs else ""
            lines.append((name, f"{value:6.2f} %  (95 % interval {low:.2f} to {high:.2f}){beside}"))
        over = f", {self.real[1]:,} with ReaL labels" if self.real is not None else ""
        source = f"on ImageNet-1k's 50,000 validation images: {published.source}" if published else ""
        return [
            *lines,
            ("loss", f"{result.loss:.4f}"),
            ("calibration", f"{result.calibration_error:.2f} % expected error, 15 bins"),
            ("images", f"{len(result.labels):,}{over}"),
            ("published", source or f"none: {self.no_published}"),
        ]

    def tables(self) -> list[Table]:
        """The classes, the worst first, if they were asked for."""
        return [self._classes()] if self.per_class else []

    def page(self) -> dict[str, Any]:
        """The confusion of the classes, each class, and the mistakes of which the model was surest."""
        result, named = self.result, tuple(self._called(label) for label in range(len(self.classes)))
        index_of = {path: index for index, path in enumerate(self.data.paths)}
        is_counted = len(named) <= _MOST
        chosen = choose_samples(result.confidences, result.predictions, result.labels)
        return {
            "confusion": Confusion(named, tuple(map(tuple, result.confusion.tolist()))) if is_counted else None,
            "gallery": gallery(self.model, self.data, [index_of[result.paths[at]] for at in chosen], named),
            "tables": (self._classes(),),
        }

    def _classes(self) -> Table:
        rows = []
        for row in sorted(self.result.per_class(), key=lambda row: row.top1):
            confused = "-" if row.confused_with is None else f"{self._called(row.confused_with)} ({row.confused})"
            rows.append((self._called(row.label), f"{row.images:,}", f"{row.top1:.2f} %", confused))
        columns = ("class", "images", "top-1", "most confused with")
        return Table("Classes", columns, tuple(rows), numbers=frozenset({1, 2}), note="The worst first.")

    def _called(self, label: int) -> str:
        name, words = self.classes[label], self.described[label]
        return name if words == name else f"{name} {words}"


def _real_labels(path: Path, model: nn.Module, data: ImageDataset) -> RealLabels:
    cfg: Any = model.pretrained_cfg or {}
    if model.num_classes != 1000 or list(cfg.get("label_names") or _SYNSETS) != _SYNSETS:
        raise DataError(
            "--real-labels are for a model of ImageNet's 1,000 classes in their usual order; leave them out"
        )
    labels = read_real_labels(path)
    for name in data.paths:
        labels.of(name)
    return labels


def _published(source: str, data: ImageDataset) -> tuple[OfficialWeights | None, str]:
    """The record of the authors' weights that the model holds, if its figures are over the same classes; or why not."""
    if is_place(source) or source.startswith("timm:"):
        return None, "these are not the authors' weights"
    record = official_weights(source)
    if record.top1 is None:
        return None, f"the authors state no accuracy of {record.tag}"
    present = len(set(data.labels))
    if present < record.num_classes:
        return None, f"the data has {present:,} of the {record.num_classes:,} classes that the authors evaluate on"
    return record, ""
