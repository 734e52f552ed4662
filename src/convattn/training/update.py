"""One update: the gradient of a group of batches, checked, clipped and applied."""

import gc
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from convattn.config_errors import ConfigError
from convattn.task import Batch
from convattn.training.batch_norm import measures_nothing
from convattn.training.run import Run

__all__ = ["GRADIENT", "OutOfMemory", "Update", "update"]

GRADIENT = "the gradient's norm"  # begins a problem that all processes see, whichever it came from


class OutOfMemory(ValueError):
    """A batch is too large for the memory of the machine."""


@dataclass(frozen=True)
class Update:
    """What an update came to."""

    loss: float  # mean over its images, of all processes; the sum of the task's losses
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
        ConfigError: if a norm has too few values to measure.
    """
    try:
        return _update(run, group, stop)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    except ValueError as error:
        told = _too_few_values(run, str(error))
        if told is None:
            raise
        raise ConfigError(told) from None
    raise _out_of_memory(run, group)  # out here, where what the pass held in memory is gone with its error


def _update(run: Run, group: list[Batch], stop: bool) -> Update:
    run.statistics.keep()
    losses = _backward(run, group)
    learning = [p for p in run.bare_model.parameters() if p.requires_grad]
    norm = run.processes.gradient_norm(learning, run.config.optimizer.clip_grad)
    seen = _Seen.of(run, losses, norm, sum(map(len, group)), stop)
    total = int(seen.total)
    scaler = run.processes.accelerator.scaler
    if seen.bad:
        if scaler is not None:
            scaler.update(scaler.get_scale())  # it forgets these gradients, its scale unchanged
        run.statistics.put_back()
    elif total:
        run.optimizer.step()
    run.optimizer.zero_grad()
    _count(run, seen.loss_sums, total, bool(seen.bad))
    loss = sum(seen.loss_sums.values()) / total if total else math.nan
    return Update(loss, total, _problem(seen), bool(seen.bad), bool(seen.stops))


def _backward(run: Run, group: list[Batch]) -> dict[str, Tensor]:
    """Add up the gradients; returns the mean losses of this process, on the device."""
    device, full = run.processes.device, sum(len(batch) > 0 for batch in group)
    means: dict[str, Tensor] = {}
    for index, batch in enumerate(group):
        last = index == len(group) - 1
        with nullcontext() if last else run.processes.accelerator.no_sync(run.model):
            if len(batch):
                batch = batch.to(device, run.memory_format)
                with run.processes.accelerator.autocast():
                    losses = {name: loss / full for name, loss in run.task.losses(run.model, batch).items()}
                run.processes.accelerator.backward(sum(losses.values()))
            else:
                losses = _nothing(run)
        for name, loss in losses.items():
            means[name] = means[name] + loss.detach() if name in means else loss.detach()
    return means


def _nothing(run: Run) -> dict[str, Tensor]:
    """Take part in what the processes exchange in a pass with nothing to add, so that none waits for ever; zeros.

    In every pass: synchronised norms and sharded weights exchange in each, and not only gradients in the last.
    """
    if run.processes.count == 1:
        return {}
    with measures_nothing(run.bare_model):  # a black image is none of the data
        losses = run.task.losses(run.model, run.task.blank(run.processes.device))
        run.processes.accelerator.backward(0 * sum(losses.values()))
    return {name: torch.zeros_like(loss) for name, loss in losses.items()}


@dataclass(frozen=True)
class _Seen:
    """What an update needs to know of its figures. They come from the device together: it is waited for once."""

    loss_sums: dict[str, float]  # of all processes, as the next three
    total: float  # images
    bad: float  # processes in which something is not finite
    stops: float  # processes that were asked to stop
    loss: float  # of this process, as the next three
    norm: float  # of its gradient
    may_overflow: float  # whether a scaler of losses looks after a norm that is not finite
    largest: float  # of batch norm's statistics

    @classmethod
    def of(cls, run: Run, losses: dict[str, Tensor], norm: Tensor, images: int, stop: bool) -> "_Seen":
        scaler, largest = run.processes.accelerator.scaler, run.statistics.largest()
        one = torch.ones((), dtype=torch.float64, device=norm.device)
        # Its scale on the device: above 1 it skips by itself and scales less.
        may_overflow = 0 * one if scaler is None else (scaler.scale(one.float()) > 1).double()
        means = torch.stack([loss.double() for loss in losses.values()]) if losses else one.new_zeros(0)
        own = torch.stack([means.sum(), norm.double(), may_overflow, 0 * one if largest is None else largest.double()])
        loss, norm, may_overflow, largest = own
        fine = loss.isfinite() & (norm.isfinite() | (may_overflow > 0)) & largest.isfinite()
        shared = torch.cat([means * images, torch.stack([images * one, (~fine).double(), float(stop) * one])])
        figures = torch.cat([run.processes.summed(shared), own]).tolist()
        return cls(dict(zip(losses, figures, strict=False)), *figures[len(losses) :])


def _problem(seen: _Seen) -> str | None:
    """What is not finite in this process."""
    if not math.isfinite(seen.loss):
        return f"the loss is {seen.loss}"
    if not math.isfinite(seen.norm) and not seen.may_overflow:
        return f"{GRADIENT} is {seen.norm}"
    return None if math.isfinite(seen.largest) else f"the largest of batch norm's statistics is {seen.largest}"


def _count(run: Run, loss_sums: dict[str, float], images: int, skipped: bool) -> None:
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
    for name, loss_sum in loss_sums.items():
        counters.loss_sums[name] = counters.loss_sums.get(name, 0.0) + loss_sum
    if run.ema is not None:
        run.ema.update(run.bare_model, counters.step)


def _too_few_values(run: Run, error: str) -> str | None:
    """Which option to change where torch's norms have nothing to take a variance of; None for another error."""
    data, name = run.config.data, run.config.model.name
    if "more than 1 value per channel" in error:
        return (
            f"data.batch_size {data.batch_size}: a batch norm of {name} sees one value a channel, which has no "
            "variance; set data.batch_size to 2 or more"
        )
    if "more than 1 spatial element" in error:
        height, width = run.data.image_size
        return (
            f"data.image_size {height if height == width else (height, width)}: an instance norm of {name} sees one "
            f"pixel of images of {height} x {width}, which has no variance; set a larger data.image_size"
        )
    return None


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
    step = run.config.task.batch_multiple
    sizes = [size for size in range(data.batch_size - 1, 1, -1) if images % size == 0 and size % step == 0]
    batch = max(group, key=len)
    for size in sizes:
        if _fits(run, batch.first(size)):
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
                losses = run.task.losses(run.bare_model, batch.to(run.processes.device, run.memory_format))
            sum(losses.values()).backward()  # type: ignore[union-attr]
        run.optimizer.optimizer.step()  # past a scaler
    except (RuntimeError, MemoryError):  # oneDNN without memory cannot "create a primitive", and does not say why
        return False
    return True
