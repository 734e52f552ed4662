"""The first lines of a run: what is trained, how long, from what and on what."""

from typing import Any

from convattn.rooms import words_of
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.run import Run

__all__ = ["opening"]


def opening(run: Run) -> list[str]:
    """Two lines about a run that was built: the network and its start, the images and their number."""
    config, data = run.config, run.data
    height, width = data.image_size
    parameters = sum(parameter.numel() for parameter in run.bare_model.parameters())
    network = words_of(config.task.kind).network(config.model.name, vars(config.task))
    length = f"{run.updates:,} updates"
    if config.schedule.updates is None:
        length = f"{config.schedule.epochs:,} epochs, {length}"
    if config.loop.freeze_epochs:
        length += f" (the head alone in {min(config.loop.freeze_epochs, config.schedule.epochs)} epochs at first)"
    return [
        f"{network}: {parameters:,} parameters, images of {width} x {height} pixels, {length}, {_start(run)}",
        f"images: {data.train_loader.images:,} to train on in an epoch, {run.images_per_update:,} an update, "
        f"{len(data.validation):,} to validate on",
    ]


def _start(run: Run) -> str:
    model, cfg = run.config.model, getattr(run.bare_model, "pretrained_cfg", None)
    if checkpoint_folders(run.folder):
        return "going on from its checkpoint"
    if model.pretrained_path is not None:
        return f"from the weights in {model.pretrained_path}"
    if not model.pretrained:
        return "from scratch"
    known: dict[str, Any] = cfg if isinstance(cfg, dict) else {}
    return f"from published weights{f' ({tag})' if (tag := known.get('tag')) else ''}"
