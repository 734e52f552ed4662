"""How good a classifier is on a set of labelled images, and what it said of each of them."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from convattn.classification.calibration import calibration_error
from convattn.classification.scores import evaluating, judge, widest_float
from convattn.data.loader import Batch

__all__ = ["ClassResult", "Evaluation", "evaluate", "wilson_interval"]


@dataclass(frozen=True)
class ClassResult:
    """What became of the images of one class."""

    label: int
    images: int
    right: int
    confused_with: (
        int | None
    )  # the wrong class most often predicted, the first of those that tie; None without mistakes
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
    calibration_error: float  # percent: by how much confidence and accuracy differ (`expected_calibration_error`)
    num_classes: int
    labels: Tensor  # (N,) int64
    ranked: Tensor  # (N, topk_size) int64: the most probable classes, the first is the prediction
    probabilities: Tensor  # (N, topk_size) float32, theirs
    paths: list[str]  # N names
    images_per_second: float  # of all processes together, loading included
    model_images_per_second: float  # the same without loading: copying to the device, the model, copying back
    unreadable: dict[str, str]  # file -> why; not among the N

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


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str = "cpu",
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
    on_batch: Callable[[int], None] | None = None,
    gather: Callable[[list], list] | None = None,
) -> Evaluation:
    """Run `model` over every batch of `loader`. The model is left in the mode it came in.

    Of several processes each takes its share of the images (`evaluation_loader(…, rank=…, replicas=…)`), and all return
    the same result, which is that of one process. (Where an unreadable image stood in its batch is found by comparing
    names; in data that is not sorted by name its neighbours in the batch may trade places.)

    Args:
        model: images (B, 3, H, W) -> logits (B, classes), on `device`.
        loader: batches in a fixed order (`evaluation_loader`).
        device: where the batches go.
        autocast: makes the context in which the model runs, for lower precision.
        memory_format: of the images; that of the model's weights.
        on_batch: called with the number of images after each batch.
        gather: of several processes: joins the lists that each gives, in the order of their ranks, for all of them
            (`accelerate.utils.gather_object`).

    Raises:
        ValueError: if there is no readable image, or a label lies outside the model's classes.
    """
    with evaluating(model):
        share = _run(model, loader, torch.device(device), autocast, memory_format, on_batch)
    return _summary([share] if gather is None else gather([share]))


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


@dataclass
class _Share:
    """What one process saw; entries of the first six lists belong together, batch by batch."""

    ranked: list[Tensor] = field(default_factory=list)  # (B, k) int64 each: the most probable classes
    probabilities: list[Tensor] = field(default_factory=list)  # (B, k) float32 each, theirs
    losses: list[Tensor] = field(default_factory=list)  # (B,) each
    labels: list[Tensor] = field(default_factory=list)  # (B,) each
    paths: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # of each image among all that the process took, unreadable too
    num_classes: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    model_seconds: float = 0.0

    def add(self, logits: Tensor, ranked: Tensor, losses: Tensor) -> None:
        """Keep what matters of a batch."""
        k, self.num_classes = ranked.shape[1], logits.shape[1]
        probabilities = logits.softmax(dim=1).gather(1, ranked)
        parts, wide = (ranked, probabilities, losses[:, None]), widest_float(logits.device)
        together = torch.cat([part.to(wide) for part in parts], dim=1)
        ranked, probabilities, losses = together.cpu().split([k, k, 1], dim=1)  # waits for the device, once
        self.ranked.append(ranked.long())
        self.probabilities.append(probabilities.float())
        self.losses.append(losses[:, 0].double())


def _run(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    memory_format: torch.memory_format,
    on_batch: Callable[[int], None] | None,
) -> _Share:
    share, taken, start = _Share(), 0, time.perf_counter()
    for batch in loader:
        if len(batch):
            loaded = time.perf_counter()
            moved = batch.to(device, memory_format)
            with autocast():
                logits = model(moved.images).float()
            share.add(logits, *judge(logits, batch.labels, moved.labels))
            share.model_seconds += time.perf_counter() - loaded
            share.labels.append(batch.labels)
            share.paths += batch.paths
            share.places += [taken + place for place in _places(batch)]
        share.unreadable.update(batch.unreadable)
        taken += len(batch) + len(batch.unreadable)
        if on_batch is not None:
            on_batch(len(batch) + len(batch.unreadable))
    share.seconds = time.perf_counter() - start
    return share


def _places(batch: Batch) -> list[int]:
    """Where the images of a batch stood before the unreadable ones, which are sorted in by name, were left out."""
    places, before = [], 0
    for index, path in enumerate(batch.paths):
        before = max(before, sum(name < path for name in batch.unreadable))
        places.append(index + before)
    return places


def _summary(shares: list[_Share]) -> Evaluation:
    places = [(place, rank) for rank, share in enumerate(shares) for place in share.places]
    if not places:
        raise ValueError("nothing to evaluate: the data set has no readable image")
    order = sorted(range(len(places)), key=places.__getitem__)  # the processes take turns

    def joined(name: str) -> Tensor:
        parts = torch.cat([part for share in shares for part in getattr(share, name)])
        return parts[order] if len(shares) > 1 else parts

    ranked, probabilities, losses, labels = map(joined, ("ranked", "probabilities", "losses", "labels"))
    paths = [path for share in shares for path in share.paths]
    right = ranked == labels[:, None]
    return Evaluation(
        top1=100 * right[:, 0].double().mean().item(),
        top5=100 * right.any(dim=1).double().mean().item(),
        topk_size=ranked.shape[1],
        loss=losses.mean().item(),
        calibration_error=100 * calibration_error(probabilities[:, 0], right[:, 0]),
        num_classes=max(share.num_classes for share in shares),
        labels=labels,
        ranked=ranked,
        probabilities=probabilities,
        paths=[paths[index] for index in order],
        images_per_second=len(labels) / max(share.seconds for share in shares),
        model_images_per_second=len(labels) / max(share.model_seconds for share in shares),
        unreadable={file: why for share in shares for file, why in share.unreadable.items()},
    )
