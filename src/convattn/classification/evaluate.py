"""How good a classifier is on a set of labelled images."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.data.loader import Batch

__all__ = ["Evaluation", "evaluate", "wilson_interval"]


@dataclass(frozen=True)
class Evaluation:
    """What a model said about N images, in the order of the loader."""

    top1: float  # percent
    top5: float  # percent; of the `topk_size` most probable classes
    topk_size: int  # 5, or the number of classes if there are fewer
    loss: float  # mean cross entropy, nats
    probabilities: Tensor  # (N, classes) float32
    labels: Tensor  # (N,) int64
    paths: list[str]  # N names
    confusion: Tensor  # (classes, classes) int64; row: label, column: prediction
    images_per_second: float  # loading included
    unreadable: dict[str, str]  # file -> why; not among the N

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of `top1`, percent."""
        return wilson_interval(self.top1, len(self.labels))

    @property
    def top5_interval(self) -> tuple[float, float]:
        """95 % interval of `top5`, percent."""
        return wilson_interval(self.top5, len(self.labels))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str = "cpu",
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run `model` over every batch of `loader`. The model is left in the mode it came in.

    Args:
        model: images (B, 3, H, W) -> logits (B, classes), on `device`.
        loader: batches in a fixed order (`evaluation_loader`).
        device: where the batches go.
        autocast: makes the context in which the model runs, for lower precision.
        on_batch: called with the number of images after each batch.

    Raises:
        ValueError: if there is no readable image, or a label lies outside the model's classes.
    """
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    logits, labels, paths, unreadable = [], [], [], {}
    try:
        for batch in loader:
            unreadable.update(batch.unreadable)
            if len(batch):
                with autocast():
                    output = model(batch.images.to(device))
                logits.append(output.float().cpu())
                labels.append(batch.labels)
                paths += batch.paths
            if on_batch is not None:
                on_batch(len(batch) + len(batch.unreadable))
    finally:
        model.train(was_training)
    if not paths:
        raise ValueError("nothing to evaluate: the data set has no readable image")
    return _summary(torch.cat(logits), torch.cat(labels), paths, unreadable, time.perf_counter() - start)


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


def _summary(
    logits: Tensor, labels: Tensor, paths: list[str], unreadable: dict[str, str], seconds: float
) -> Evaluation:
    classes = logits.shape[1]
    if labels.max() >= classes:
        raise ValueError(f"label {int(labels.max())} does not exist in a model of {classes} classes")
    topk_size = min(5, classes)
    ranked = logits.topk(topk_size, dim=1).indices
    right = ranked == labels[:, None]
    pairs = labels * classes + ranked[:, 0]
    return Evaluation(
        top1=100 * right[:, 0].double().mean().item(),
        top5=100 * right.any(dim=1).double().mean().item(),
        topk_size=topk_size,
        loss=F.cross_entropy(logits, labels).item(),
        probabilities=logits.softmax(dim=1),
        labels=labels,
        paths=paths,
        confusion=torch.bincount(pairs, minlength=classes * classes).view(classes, classes),
        images_per_second=len(labels) / seconds,
        unreadable=unreadable,
    )
