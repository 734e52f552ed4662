"""The one loop over images that learns nothing: a model, batches, and a meter that looks at what comes out."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from convattn.task import Batch, Meter

__all__ = ["Speed", "evaluating", "measure"]


@dataclass(frozen=True)
class Speed:
    """How fast the images went by."""

    images: int
    seconds: float  # loading included
    model_seconds: float  # without: copying to the device, the model, the meter; the device may still be busy with it


@torch.inference_mode()
def measure(
    model: nn.Module,
    loader: Iterable[Batch],
    meter: Meter,
    device: torch.device | str = "cpu",
    *,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    memory_format: torch.memory_format = torch.contiguous_format,
    on_batch: Callable[[int], None] | None = None,
) -> Speed:
    """Run `model` over every batch of `loader` and let `meter` look. The model is left in the mode it came in.

    Args:
        model: on `device`.
        loader: batches; empty ones are passed over.
        meter: runs the model on the batch on the device, and sees float32 outputs.
        device: where the batches go.
        autocast: makes the context in which the model runs, for lower precision.
        memory_format: of the images; that of the model's weights.
        on_batch: called with the number of images after each batch, unreadable ones too.
    """
    device, images, model_seconds, start = torch.device(device), 0, 0.0, time.perf_counter()
    with evaluating(model):
        for batch in loader:
            if len(batch):
                loaded = time.perf_counter()
                moved = batch.to(device, memory_format)
                with autocast():
                    outputs = meter.run(model, moved)
                meter.update(tree_map(_as_float32, outputs), moved)
                model_seconds += time.perf_counter() - loaded
                images += len(batch)
            if on_batch is not None:
                on_batch(len(batch) + len(batch.unreadable))
    return Speed(images, time.perf_counter() - start, model_seconds)


def _as_float32(output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) and output.is_floating_point() else output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While this lasts the model is in evaluation mode; it comes back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
