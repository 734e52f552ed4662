"""What each design costs on this machine, measured before anything is trained."""

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.bench.count import count
from convattn.bench.latency import measure_latency
from convattn.sizes import input_shape
from convattn.training.config import RunConfig
from convattn.training.processes import Processes, peak_memory, without_settings
from convattn.training.run import Run
from convattn.training.update import update

__all__ = ["Costs", "measure_costs", "run_once"]

_UPDATES = 8  # timed, behind two that are not
_WARMUP = 2
_SECONDS = 30.0  # after which fewer are enough
_REPEATS = 20
_REST = 0.02  # seconds before a timed call, in which the threads of the design before it fall asleep


@dataclass(frozen=True)
class Costs:
    """Of one design; None for what its task's networks do not give."""

    parameters: int
    macs: int | None  # in full, of one image
    median_ms: float | None  # of a forward pass of one image, in turns with the other designs
    p10_ms: float | None
    p90_ms: float | None
    update_seconds: float  # processor time of an update on the CPU, time of the clock on a GPU; loading included
    images_per_second: float  # by it
    updates_per_epoch: int
    memory: int  # bytes: the most that this process, or its GPU, held up to here


def measure_costs(
    configs: Mapping[str, RunConfig], *, note: Callable[[str], object] = lambda name: None
) -> dict[str, Costs]:
    """Time some updates of each design, count it, and time forward passes of all of them in turn.

    Raises:
        ConfigError, DataError, OutOfMemory: as `train`, with the design in front.
    """
    models: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        note(name)
        models[name], found[name] = _trained_a_little(config)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        with suppress(Exception):  # a detector's input is no single tensor
            call = partial(run_once, model)
            call()
            calls[name] = call
    latencies = {row.name: row for row in measure_latency(calls, repeats=_REPEATS, rest=_REST)} if calls else {}
    costs = {}
    for name, figures in found.items():
        row = latencies.get(name)
        times = ("median_ms", "p10_ms", "p90_ms")
        figures |= {time: getattr(row, time, None) for time in times}
        costs[name] = Costs(**figures)
    return costs


@torch.no_grad()
def run_once(model: nn.Module) -> object:
    """A forward pass of one image of the size that the model expects."""
    device = next(model.parameters()).device
    return model(torch.zeros(1, *input_shape(model, None), device=device))


def _trained_a_little(config: RunConfig) -> tuple[nn.Module, dict[str, Any]]:
    with without_settings(), tempfile.TemporaryDirectory(prefix="convattn-") as folder:
        output = replace(config.output, folder=folder, tensorboard=False)
        processes = Processes(config.loop)
        run = Run(replace(config, output=output), Path(folder), processes)
        run.start_epoch()
        clock = time.process_time if processes.device.type == "cpu" else time.perf_counter
        batches, images, seconds, counted = run.data.train_loader.batches(0), 0, 0.0, 0
        begun = time.perf_counter()
        for index in range(_WARMUP + _UPDATES):
            started = clock()
            group = list(itertools.islice(batches, config.loop.accumulation))
            if not group:  # a short epoch
                break
            done = update(run, group)
            if index >= _WARMUP or run.updates_per_epoch <= _WARMUP:
                images, seconds, counted = images + done.images, seconds + clock() - started, counted + 1
            if counted and time.perf_counter() - begun > _SECONDS:
                break
        model = run.bare_model.eval()
        macs: int | None = None
        with suppress(Exception):
            macs = count(model, input_shape(model, None)).macs
        seconds = max(seconds, 1e-6)
        return model, dict(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=macs,
            update_seconds=seconds / max(counted, 1),
            images_per_second=images / seconds,
            updates_per_epoch=run.updates_per_epoch,
            memory=peak_memory(processes.device),
        )
