"""One update: the gradient of a group of batches, checked, clipped and applied."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.data.loader import Batch
from convattn.training.run import Run

__all__ = ["OutOfMemory", "Update", "update"]


class OutOfMemory(ValueError):
    """A batch is too large for the memory of the machine."""


@dataclass(frozen=True)
class Update:
    """What an update came to, over all processes."""

    loss: float  # mean over its images
    images: int
    problem: str | None  # why it was skipped
    stop: bool  # a process was asked to stop


def update(run: Run, group: list[Batch], *, stop: bool = False) -> Update:
    """One step of the optimiser on the mean loss of a group of batches.

    Where the loss or the gradient is not finite in any process, all of them skip the step: weights, optimiser and batch
    statistics stay as they were.

    Args:
        run: its model, optimiser, schedule and moving average are moved on, and its counters.
        group: batches of this process; empty ones (no image could be read) count for nothing.
        stop: this process was asked to stop; all learn of it.

    Raises:
        OutOfMemory: naming a batch size that fits.
    """
    buffers = list(run.bare_model.buffers())
    before = [buffer.clone() for buffer in buffers]
    try:
        loss, images = _backward(run, group)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise _out_of_memory(run, group) from None
    learning = [p for p in run.bare_model.parameters() if p.requires_grad]
    norm = run.processes.gradient_norm(learning, run.config.optimizer.clip_grad)
    scaled = run.processes.accelerator.scaler is not None
    problem = _problem(loss, norm, scaled)
    loss_sum, total, bad, stops = run.processes.total([loss * images, images, problem is not None, stop])
    if bad:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
    if not bad or scaled:  # the scaler skips by itself, and has to hear of it
        run.optimizer.step()
    run.optimizer.zero_grad()
    _count(run, loss_sum, int(total), bool(bad))
    mean = loss_sum / total if total else math.nan
    return Update(mean, int(total), (problem or "not finite in another process") if bad else None, bool(stops))


def _backward(run: Run, group: list[Batch]) -> tuple[float, int]:
    """Add up the gradients; returns the mean loss and the number of images, of this process."""
    full = [batch for batch in group if len(batch)]
    if not full:
        return _nothing(run), 0
    losses: list[Tensor] = []
    for index, batch in enumerate(full):
        last = index == len(full) - 1
        with nullcontext() if last else run.processes.no_sync(run.model):
            batch = batch.to(run.processes.device, run.memory_format)
            with run.processes.accelerator.autocast():
                loss = run.task.loss(run.model, batch) / len(full)
            run.processes.accelerator.backward(loss)
        losses.append(loss.detach())
    return float(torch.stack(losses).sum()), sum(len(batch) for batch in full)


def _nothing(run: Run) -> float:
    """Take part in the exchange of gradients with nothing to add, so that the other processes do not wait for ever."""
    if run.processes.count > 1:
        size = run.data.image_size
        blank = torch.zeros(2, 3, *size, device=run.processes.device)
        run.processes.accelerator.backward(0 * run.model(blank).sum())
    return 0.0


def _count(run: Run, loss_sum: float, images: int, skipped: bool) -> None:
    counters = run.counters
    counters.step += 1
    counters.updates += 1
    run.schedule.step_update(counters.step)
    if skipped:
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        return
    counters.skipped_in_a_row = 0
    counters.images += images
    counters.loss_sum += loss_sum
    if run.ema is not None:
        run.ema.update(run.bare_model, counters.step)


def _problem(loss: float, norm: float, scaled: bool) -> str | None:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm) and not scaled:  # a scaled loss may overflow; the scaler skips the step and scales less
        return f"the gradient's norm is {norm}"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(run: Run, group: list[Batch]) -> OutOfMemory:
    """The error, with the largest batch of those halved again and again that goes through."""
    config = run.config
    size = config.data.batch_size
    fits = _largest_that_fits(run, max(group, key=len))
    setting = f"--data.batch_size {fits} --loop.accumulation {math.ceil(config.loop.accumulation * size / fits)}"
    advice = f"{fits} fits: go on with {setting}" if fits else "not even 2 fit: take a smaller model or image"
    return OutOfMemory(f"out of memory with data.batch_size {size} on {run.processes.device}; {advice}")


def _largest_that_fits(run: Run, batch: Batch) -> int:
    size = len(batch) // 2
    while size >= 2:
        run.optimizer.zero_grad()
        if run.processes.device.type == "cuda":
            torch.cuda.empty_cache()
        part = Batch(batch.images[:size], batch.labels[:size], batch.paths[:size])
        try:
            loss = run.task.loss(run.bare_model, part.to(run.processes.device, run.memory_format))
            loss.backward()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0
