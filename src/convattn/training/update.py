"""One update: the gradient of a group of batches, checked, clipped and applied."""

import gc
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.data.loader import Batch
from convattn.training.run import Run

__all__ = ["GRADIENT", "OutOfMemory", "Update", "update"]

GRADIENT = "the gradient's norm"  # begins a problem that all processes see, whichever it came from

_STATISTICS = (".running_mean", ".running_var")  # how the names of batch norm's buffers end


class OutOfMemory(ValueError):
    """A batch is too large for the memory of the machine."""


@dataclass(frozen=True)
class Update:
    """What an update came to."""

    loss: float  # mean over its images, of all processes
    images: int  # of all processes
    problem: str | None  # what was not finite in this process
    skipped: bool  # because something was not finite in some process
    stop: bool  # a process was asked to stop


def update(run: Run, group: list[Batch], *, stop: bool = False) -> Update:
    """One step of the optimiser on the mean loss of a group of batches.

    Where the loss, the gradient or batch norm's statistics are not finite in any process, all of them skip the step:
    weights, buffers, moving average and optimiser stay as they were.

    Args:
        run: its model, optimiser, schedule and moving average are moved on, and its counters.
        group: batches of this process; empty ones (no image could be read) count for nothing.
        stop: this process was asked to stop; all learn of it.

    Raises:
        OutOfMemory: naming a batch size that fits. The run cannot go on behind it.
    """
    try:
        return _update(run, group, stop)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    raise _out_of_memory(run, group)  # out here, where what the pass held in memory is gone with its error


def _update(run: Run, group: list[Batch], stop: bool) -> Update:
    buffers = list(run.bare_model.buffers())
    before = [buffer.clone() for buffer in buffers]
    loss, images = _backward(run, group)
    learning = [p for p in run.bare_model.parameters() if p.requires_grad]
    norm = run.processes.gradient_norm(learning, run.config.optimizer.clip_grad)
    problem = _problem(run, loss, norm)
    loss_sum, total, bad, stops = run.processes.total([loss * images, images, problem is not None, stop])
    if bad:
        _forget(run)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
    elif total:
        run.optimizer.step()
    run.optimizer.zero_grad()
    _count(run, loss_sum, int(total), bool(bad))
    return Update(loss_sum / total if total else math.nan, int(total), problem, bool(bad), bool(stops))


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


def _problem(run: Run, loss: float, norm: float) -> str | None:
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    scaler = run.processes.accelerator.scaler
    may_overflow = scaler is not None and scaler.get_scale() > 1  # then the scaler skips by itself and scales less
    if not math.isfinite(norm) and not may_overflow:
        return f"{GRADIENT} is {norm}"
    statistics = [buffer for name, buffer in run.bare_model.named_buffers() if name.endswith(_STATISTICS)]
    largest = float(torch.nn.utils.get_total_norm(statistics, math.inf)) if statistics else 0.0
    return None if math.isfinite(largest) else f"the largest of batch norm's statistics is {largest}"


def _forget(run: Run) -> None:
    """Let a scaler of losses forget the gradients of this update, its scale unchanged."""
    scaler = run.processes.accelerator.scaler
    if scaler is not None:
        scaler.update(scaler.get_scale())


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


def _is_out_of_memory(error: Exception) -> bool:
    texts = ("can't allocate memory", "ALLOC_FAILED")  # of the CPU's allocator; of cuDNN and cuBLAS
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in texts)


def _out_of_memory(run: Run, group: list[Batch]) -> OutOfMemory:
    """The error, with the largest batch that goes through of those that make up the same update."""
    data, loop = run.config.data, run.config.loop
    told = f"out of memory with data.batch_size {data.batch_size} on {run.processes.device}"
    if run.processes.count > 1 and (loop.sharding != "none" or loop.sync_batch_norm):
        return OutOfMemory(f"{told}; lower it, and raise loop.accumulation by as much")  # none can try it alone
    images = data.batch_size * loop.accumulation
    mixes = bool(data.mixup or data.cutmix)  # images in pairs
    sizes = [size for size in range(data.batch_size - 1, 1, -1) if images % size == 0 and not (mixes and size % 2)]
    batch = max(group, key=len)
    for size in sizes:
        if _fits(run, Batch(batch.images[:size], batch.labels[:size], batch.paths[:size])):
            setting = f"--data.batch-size {size} --loop.accumulation {images // size}"
            return OutOfMemory(f"{told}; {size} fits: {setting} makes the same updates, with --resume too")
    return OutOfMemory(f"{told}; no smaller one fits: set model.grad_checkpointing, or take a smaller model or image")


def _fits(run: Run, batch: Batch) -> bool:
    """Whether an update on such batches goes through. It spoils the weights: for a run that has ended."""
    run.optimizer.zero_grad()
    gc.collect()
    if run.processes.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        for _ in range(2):  # the second time beside the gradients of the first, as with accumulation
            with run.processes.accelerator.autocast():
                loss = run.task.loss(run.bare_model, batch.to(run.processes.device, run.memory_format))
            loss.backward()
        run.optimizer.optimizer.step()  # past a scaler
    except (RuntimeError, MemoryError):  # oneDNN without memory cannot "create a primitive", and does not say why
        return False
    return True
