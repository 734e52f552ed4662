"""Updates that were skipped: a line in `skipped.jsonl`, and in `skipped/` what is needed to look into the last ones.

skipped/step_00000012.rank0.pt   batches, weights, random state and configuration as they were before the update
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.atomic import write_atomically
from convattn.data.loader import Batch
from convattn.seeding import restore_random_state
from convattn.training.build import build_model, build_task_for
from convattn.training.config_json import config_from_json, config_to_json
from convattn.training.run import Run
from convattn.weights.read import CheckpointError

__all__ = ["record_skipped", "replay_skipped"]

_LOG, _FOLDER, _KEEP = "skipped.jsonl", "skipped", 3


def record_skipped(run: Run, group: list[Batch], random: dict[str, Any], problem: str) -> Path:
    """Write down the update that `run` has just skipped; returns the file to replay it from.

    Args:
        run: after the skip, so its weights are those from before the update.
        group: the batches of this process.
        random: `random_state()` from before the update.
        problem: why it was skipped.
    """
    step = run.counters.step
    if run.processes.is_main:
        entry = {"step": step, "reason": problem, "paths": [path for batch in group for path in batch.paths]}
        with open(run.folder / _LOG, "a") as file:
            file.write(json.dumps(entry) + "\n")
    content = {
        "config": config_to_json(run.config),
        "classes": run.task.num_classes,
        "epoch": run.counters.epoch,
        "model": run.bare_model.state_dict() if run.config.loop.sharding == "none" else None,
        "random": random,
        "batches": [{"images": batch.images, "labels": batch.labels, "paths": batch.paths} for batch in group],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    rank = run.processes.rank
    path = run.folder / _FOLDER / f"step_{step:08d}.rank{rank}.pt"
    write_atomically(path, buffer.getvalue())
    for old in sorted(path.parent.glob(f"step_*.rank{rank}.pt"))[:-_KEEP]:
        old.unlink()
    return path


def replay_skipped(path: Path) -> Iterator[str]:
    """Run the forward and backward pass of a skipped update again, on the CPU in float32, and say what goes wrong.

    Yields:
        Lines for the user: the loss of each batch, and the first module whose output, or the first parameter whose
        gradient, is not finite.

    Raises:
        CheckpointError: if the file cannot be read, or holds no weights (of a sharded run).
    """
    content = _read(path)
    config = config_from_json(content["config"])
    model = build_model(config.model, content["classes"])
    model.load_state_dict(content["model"])
    task = build_task_for(config, content["classes"])
    task.start_epoch(content["epoch"])
    restore_random_state({**content["random"], "cuda": []})
    first = _watch(model.train())
    for entry in content["batches"]:
        batch = Batch(entry["images"].float(), entry["labels"], entry["paths"])
        if not batch.images.isfinite().all():
            yield f"the images themselves are not finite: {', '.join(batch.paths)}"
        loss = task.loss(model, batch)
        yield f"loss {float(loss.detach()):.6g} on {', '.join(batch.paths)}"
        loss.backward()
    if first:
        yield f"first output that is not finite: {first[0]}"
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad:
        yield f"gradients that are not finite: {len(bad)}, the first of {bad[0]}"
    elif not first:
        yield "everything is finite in float32 on the CPU; the precision or the device made the difference"


def _watch(model: nn.Module) -> list[str]:
    """A list that will begin with the name of the first module whose output is not finite."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [output] if isinstance(output, Tensor) else output
            if any(isinstance(tensor, Tensor) and not tensor.isfinite().all() for tensor in tensors):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(look(name))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"config", "classes", "epoch", "model", "random", "batches"} - content.keys()
    except Exception as error:  # whatever a damaged or foreign file makes the reader stumble on
        raise CheckpointError(f"{path}: not a skipped update, or damaged ({str(error).splitlines()[0]})") from None
    if missing:
        raise CheckpointError(f"{path}: not a skipped update: it lacks {', '.join(sorted(missing))}")
    if content["model"] is None:
        raise CheckpointError(f"{path}: of a sharded run, whose weights are not in it")
    return content
