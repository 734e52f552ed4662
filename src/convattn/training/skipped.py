"""Updates that were skipped: a line in `skipped.jsonl`, and in `skipped/` what is needed to look into the last ones.

skipped/step_00000012.rank0.pt   batches, weights, random state and configuration as they were before the update
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.atomic import append_line, write_atomically
from convattn.model_files import build_within
from convattn.rooms import room
from convattn.seeding import restore_random_state
from convattn.shown import reason
from convattn.task import Batch
from convattn.training.config import RunConfig
from convattn.training.config_json import config_from_json, config_to_json
from convattn.training.places import field_of, model_fields, reaches_out
from convattn.training.run import Run
from convattn.training.update import GRADIENT
from convattn.weights.read import CheckpointError

__all__ = ["Skipped", "record_skipped", "replay_skipped"]

_LOG, _FOLDER, _KEEP = "skipped.jsonl", "skipped", 3
_PARTS = {"config", "built_as", "state", "epoch", "model", "random", "batches"}


@dataclass(frozen=True)
class Skipped:
    """An update that was skipped, as the processes saw it from which it may have come."""

    reason: str
    paths: list[str]  # of their images
    file: Path  # to replay it from, of the first of them


def record_skipped(run: Run, group: list[Batch], random: dict[str, Any], problem: str | None) -> Skipped:
    """Write down the update that `run` has just skipped; all processes call it.

    Args:
        run: after the skip, so its weights are those from before the update.
        group: the batches of this process.
        random: `random_state()` from before the update.
        problem: what was not finite in this process.
    """
    step, processes = run.counters.step, run.processes
    found = processes.gather([(problem, [path for batch in group for path in batch.paths])])
    seen = [rank for rank, (problem, _) in enumerate(found) if problem is not None]
    ranks = [rank for rank in seen if not found[rank][0].startswith(GRADIENT)] or seen
    why, paths = found[ranks[0]][0], [path for rank in ranks for path in found[rank][1]]
    if processes.is_main:
        append_line(run.folder / _LOG, json.dumps({"step": step, "reason": why, "ranks": ranks, "paths": paths}))
    content = {
        "config": config_to_json(run.config),
        "built_as": json.dumps(run.bare_model.built_as),
        "state": run.task.state(),
        "epoch": run.counters.epoch,
        "model": run.bare_model.state_dict() if run.config.loop.sharding == "none" else None,
        "random": random,
        "batches": [_entry(batch) for batch in group],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(_file(run, processes.rank), buffer.getvalue())
    for old in sorted((run.folder / _FOLDER).glob(f"step_*.rank{processes.rank}.pt"))[:-_KEEP]:
        old.unlink()
    return Skipped(why, paths, _file(run, ranks[0]))


def _file(run: Run, rank: int) -> Path:
    return run.folder / _FOLDER / f"step_{run.counters.step:08d}.rank{rank}.pt"


def replay_skipped(path: Path) -> Iterator[str]:
    """Run the forward and backward pass of a skipped update again, on the CPU in float32, and say what goes wrong.

    Yields:
        Lines for the user: the loss of each batch; the first module whose output is not finite; the parameters and
        buffers that follow.

    Raises:
        CheckpointError: if the file cannot be read, holds no weights (of a sharded run), or describes what its weights
            do not fill.
    """
    content = _read(path)
    try:
        config = _config(content)
        model = build_within(json.loads(content["built_as"]), content["model"]).train()
        if config.model.grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        kind = room(config.task.kind)
        task = kind.rebuild(config, model, content["state"])
        if content["epoch"] < config.loop.freeze_epochs:
            model.eval().requires_grad_(False)
            task.head(model).train().requires_grad_(True)
        task.start_epoch(content["epoch"])
        batches = []
        for entry in content["batches"]:
            targets = entry["targets"] if isinstance(entry["targets"], Tensor) else kind.collate(entry["targets"])
            batches.append(Batch(_in_float32(entry["images"]), targets, entry["paths"]))
        restore_random_state({**content["random"], "cuda": []})
    except Exception as error:  # anything at all may stand in a file
        raise CheckpointError(f"{path}: cannot be replayed: {reason(error)}") from None
    first = _watch(model)
    for batch in batches:
        if not len(batch):
            continue
        if not all(image.isfinite().all() for image in batch.images):
            yield f"the images themselves are not finite: {', '.join(batch.paths)}"
        losses = task.losses(model, batch)
        loss = torch.stack([*losses.values()]).sum()
        each = ", ".join(f"{name} {float(part.detach()):.6g}" for name, part in losses.items())
        parts = f" ({each})" if len(losses) > 1 else ""
        yield f"loss {float(loss.detach()):.6g}{parts} on {', '.join(batch.paths)}"
        loss.backward()
    if first:
        yield f"first output that is not finite: {first[0]}"
    gradients = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if gradients:
        yield f"gradients that are not finite: {len(gradients)}, nearest to the loss {gradients[-1]}"
    buffers = [name for name, buffer in model.named_buffers() if not buffer.isfinite().all()]
    if buffers:
        yield f"buffers that are not finite: {len(buffers)}, the first {buffers[0]}"
    if not (first or gradients or buffers):
        yield "everything is finite in float32 on the CPU; the precision or the device made the difference"


def _entry(batch: Batch) -> dict[str, Any]:
    """A batch as what is read back without running code: tensors, lists, dicts."""
    targets = batch.targets if isinstance(batch.targets, Tensor) else [*batch.targets]
    return {"images": batch.images, "targets": targets, "paths": batch.paths}


def _config(content: dict[str, Any]) -> RunConfig:
    config = config_from_json(content["config"])
    for name in model_fields(config):
        value = field_of(config, name)
        if value is not None and reaches_out(config, name, value):
            raise ValueError(f"its {name} would fetch {value!r}")
    return config


def _in_float32(images: Any) -> Any:
    return [image.float() for image in images] if isinstance(images, list) else images.float()


def _watch(model: nn.Module) -> list[str]:
    """A list that will begin with the name of the first module whose output is not finite."""
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple | list) else [output]
        if any(isinstance(tensor, Tensor) and not tensor.isfinite().all() for tensor in tensors):
            found.append(f"{name} ({type(module).__name__})")

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(partial(look, name))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        missing = _PARTS - content.keys()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except Exception:  # whatever a damaged or foreign file makes the reader stumble on; its advice is not for users
        raise CheckpointError(f"{path}: not a skipped update, or damaged; name a file of skipped/ in a run") from None
    if missing:
        raise CheckpointError(f"{path}: not a skipped update: it lacks {', '.join(sorted(missing))}")
    if content["model"] is None:
        raise CheckpointError(f"{path}: of a sharded run, whose weights are not in it")
    return content
