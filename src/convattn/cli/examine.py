"""A model looked at on images of which the truth is known, with a bar: what `eval`, `export` and `train` share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convattn.cli.console import progress_bar
from convattn.data.loader import Samples, evaluation_loader
from convattn.deploy.load import ExportedModel
from convattn.evaluation import Speed, measure
from convattn.task import Batch, Dataset, Examiner, Findings, TaskRoom
from convattn.training.unreadable import check_unreadable

__all__ = ["Examined", "examine"]


@dataclass(frozen=True)
class Examined:
    """What was found, how fast, and on what not."""

    findings: Findings
    speed: Speed
    unreadable: dict[str, str]  # file -> why


def examine(
    model: nn.Module,
    room: TaskRoom,
    data: Dataset,
    examiner: Examiner,
    options: Any,
    *,
    told: str,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> Examined:
    """Look at every image once.

    Args:
        model: moved to `device`.
        room: of its task.
        data: the images, in its terms.
        examiner: what looks.
        options: of the room's `words.evaluation`, by which it looks.
        told: what the images are called where too many cannot be read, which is an UnreadableError.
        batch_size, workers, device, autocast: as of `measure` and `evaluation_loader`.
    """
    # Runtimes read images as they lie in memory.
    layout = torch.contiguous_format if isinstance(model, ExportedModel) else torch.channels_last
    model = model.to(device).to(memory_format=torch.channels_last)
    samples = Samples(data, room.evaluation_transform(model, options))
    loader = evaluation_loader(samples, batch_size, targets=room.collate, workers=workers, device=device)
    unreadable: dict[str, str] = {}

    def batches() -> Iterator[Batch]:
        for batch in loader:
            unreadable.update(batch.unreadable)
            check_unreadable(unreadable.values(), len(data), told)
            yield batch

    with progress_bar() as progress:
        task = progress.add_task("evaluating", total=len(data))
        speed = measure(
            model,
            batches(),
            examiner,
            device,
            autocast=autocast,
            memory_format=layout,
            on_batch=lambda images: progress.advance(task, images),
        )
    return Examined(examiner.findings(examiner.parts()), speed, unreadable)
