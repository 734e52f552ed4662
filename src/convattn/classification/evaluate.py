"""How good a classifier is on a set of labelled images, and what it said of each of them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.classification.calibration import calibration_error
from convattn.classification.scores import judge, widest_float
from convattn.evaluation import measure
from convattn.task import Batch, Meter

__all__ = ["ClassResult", "Evaluation", "Ranking", "evaluate", "wilson_interval"]


@dataclass(frozen=True)
class ClassResult:
    """What became of the images of one class."""

    label: int
    images: int
    right: int
    confused_with: int | None  # the wrong class most often predicted, the first of those that tie; None if all is right
    confused: int  # how often

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.right / self.images


@dataclass(frozen=True)
class Evaluation:
    """What a model said about N images, in the order of the data set; a few numbers an image, whatever the classes."""

    top1: float  # percent
    top5: float  # percent; of the `topk_size` most probable classes
    topk_size: int  # 5, or the number of classes if there are fewer
    loss: float  # mean cross entropy, nats
    calibration_error: float  # percent: by how much confidence and accuracy differ
    num_classes: int
    labels: Tensor  # (N,) int64
    ranked: Tensor  # (N, topk_size) int64: the most probable classes, the first is the prediction
    probabilities: Tensor  # (N, topk_size) float32, theirs
    paths: list[str]  # N names

    @property
    def predictions(self) -> Tensor:
        """The most probable class of each image, (N,) int64."""
        return self.ranked[:, 0]

    @property
    def confidences(self) -> Tensor:
        """Its probability, (N,) float32."""
        return self.probabilities[:, 0]

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of `top1`, percent."""
        return wilson_interval(self.top1, len(self.labels))

    @property
    def top5_interval(self) -> tuple[float, float]:
        """95 % interval of `top5`, percent."""
        return wilson_interval(self.top5, len(self.labels))

    @property
    def confusion(self) -> Tensor:
        """How often images of a class (row) were taken for another (column): (classes, classes) int64."""
        pairs = self.labels * self.num_classes + self.predictions
        return torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, self.num_classes)

    def per_class(self) -> list[ClassResult]:
        """One entry for each class that has images, in the order of the labels."""
        results = []
        for label in self.labels.unique().tolist():
            predicted = torch.bincount(self.predictions[self.labels == label], minlength=self.num_classes)
            images, right = int(predicted.sum()), int(predicted[label])
            predicted[label] = 0
            most = int(predicted.argmax())
            results.append(ClassResult(label, images, right, most if images > right else None, int(predicted[most])))
        return results


def evaluate(model: nn.Module, loader: Iterable[Batch], device: torch.device | str = "cpu", **how: Any) -> Evaluation:
    """What `model` says of every image of `loader`; arguments as of `convattn.evaluation.measure`.

    Raises:
        ValueError: if there is no readable image, or a label lies outside the model's classes.
    """
    ranking = Ranking()
    measure(model, loader, ranking, device, **how)
    return ranking.evaluation(ranking.parts())


class Ranking(Meter):
    """Keeps of each image what the model said of it: the meter behind `Evaluation`."""

    def __init__(self) -> None:
        self._num_classes = 0
        self._ranked: list[Tensor] = []  # (B, k) int64 each: the most probable classes
        self._probabilities: list[Tensor] = []  # (B, k) float32 each, theirs
        self._losses: list[Tensor] = []  # (B,) each
        self._labels: list[Tensor] = []  # (B,) each
        self._paths: list[str] = []

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Keep what matters of a batch by its logits (B, classes)."""
        ranked, losses = judge(outputs, batch.targets)
        k, self._num_classes = ranked.shape[1], outputs.shape[1]
        probabilities = outputs.softmax(dim=1).gather(1, ranked)
        parts, wide = (ranked, probabilities, losses[:, None], batch.targets[:, None]), widest_float(outputs.device)
        together = torch.cat([part.to(wide) for part in parts], dim=1)
        ranked, probabilities, losses, labels = together.cpu().split([k, k, 1, 1], dim=1)  # waits for the device, once
        self._ranked.append(ranked.long())
        self._probabilities.append(probabilities.float())
        self._losses.append(losses[:, 0].double())
        self._labels.append(labels[:, 0].long())
        self._paths += batch.paths

    def parts(self) -> dict[str, Any]:
        """Lists in the order of the images."""
        lists = (self._ranked, self._probabilities, self._losses, self._labels, self._paths)
        return dict(zip(("ranked", "probabilities", "losses", "labels", "paths"), lists, strict=True))

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """The figures, as `Scores` has them."""
        found = self.evaluation(parts)
        return {"val_loss": found.loss, "top1": found.top1, "top5": found.top5}

    def evaluation(self, parts: Mapping[str, Any]) -> Evaluation:
        """All of it; raises ValueError where there was no image."""
        if not parts["paths"]:
            raise ValueError("nothing to evaluate: the data set has no readable image")
        names = ("ranked", "probabilities", "losses", "labels")
        ranked, probabilities, losses, labels = (torch.cat(parts[name]) for name in names)
        right = ranked == labels[:, None]
        return Evaluation(
            top1=100 * right[:, 0].double().mean().item(),
            top5=100 * right.any(dim=1).double().mean().item(),
            topk_size=ranked.shape[1],
            loss=losses.mean().item(),
            calibration_error=100 * calibration_error(probabilities[:, 0], right[:, 0]),
            num_classes=self._num_classes,
            labels=labels,
            ranked=ranked,
            probabilities=probabilities,
            paths=parts["paths"],
        )


def wilson_interval(percent: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` trials, by Wilson's score: stays inside 0..100 and holds near its ends.

    Args:
        percent: the observed share, 0 to 100.
        count: number of trials, 1 or more.

    Returns:
        Lower and upper bound, percent.
    """
    z = 1.959964
    share = percent / 100
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
