"""How right a classifier is, counted on the device: as much memory for a million images as for one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.data.loader import Batch

__all__ = ["Scores", "evaluating", "judge", "score", "widest_float"]


def judge(logits: Tensor, labels: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable classes (B, k), k = 5 or all if there are fewer, and each image's cross entropy (B,), nats.

    Args:
        logits: (B, classes) float32, on any device.
        labels: (B,), where they can be looked at without waiting for a device.
        moved: the same on that of the logits.

    Raises:
        ValueError: if a label lies outside the classes.
    """
    classes = logits.shape[1]
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise ValueError(f"label {int(outside[0])} does not exist in a model of {classes} classes")
    return logits.topk(min(5, classes), dim=1).indices, F.cross_entropy(logits, moved, reduction="none")


@dataclass(frozen=True)
class Scores:
    """Figures over so many images; not numbers where there are none."""

    images: int
    loss: float  # mean cross entropy, nats
    top1: float  # percent
    top5: float  # percent


@torch.inference_mode()
def score(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str = "cpu",
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
    on_batch: Callable[[int], None] | None = None,
    total: Callable[[Sequence[float]], list[float]] | None = None,
) -> Scores:
    """Run `model` over every batch of `loader` and count. The device is waited for at the end alone.

    Args:
        model, loader, device, autocast, memory_format, on_batch: as of `evaluate`.
        total: of several processes, each with its share of the images: sums numbers over them. All get the result.

    Raises:
        ValueError: if a label lies outside the model's classes.
    """
    device = torch.device(device)
    sums = torch.zeros(4, dtype=widest_float(device), device=device)
    with evaluating(model):
        for batch in loader:
            if len(batch):
                moved = batch.to(device, memory_format)
                with autocast():
                    logits = model(moved.images)
                ranked, losses = judge(logits.float(), batch.labels, moved.labels)
                right = ranked == moved.labels[:, None]
                counted = [torch.ones_like(losses), losses, right[:, 0], right.any(dim=1)]
                sums += torch.stack([values.to(sums.dtype).sum() for values in counted])
            if on_batch is not None:
                on_batch(len(batch) + len(batch.unreadable))
    images, loss, top1, top5 = sums.tolist() if total is None else total(sums.tolist())
    if not images:
        return Scores(0, *[float("nan")] * 3)
    return Scores(int(images), loss / images, 100 * (top1 / images), 100 * (top5 / images))


def widest_float(device: torch.device) -> torch.dtype:
    """What figures are added up in: Apple's GPUs have no float64, and their float32 counts to 16 million images."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While this lasts the model is in evaluation mode; it comes back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
