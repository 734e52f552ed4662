"""Run folders as training leaves them, written by hand: `config.json` and `log.jsonl`."""

import json
from dataclasses import replace

from convattn.training.config import OutputConfig, RunConfig, ScheduleConfig
from convattn.training.config_json import config_to_json

__all__ = ["write_run"]


def entry(epoch, top1, **figures):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 2.0 / epoch,
        "val_loss": 1.0 / epoch,
        "top1": top1,
        "top5": 99.0,
        "lr": 0.001,
        "images_per_second": 1234.5,
        "seconds": 600.0,
        **figures,
    }


def write_run(folder, top1s, **parts):
    """A run folder of `len(top1s)` epochs; `parts` are those of its configuration."""
    folder.mkdir(parents=True)
    config = replace(
        RunConfig(), **{"schedule": ScheduleConfig(epochs=4), "output": OutputConfig(str(folder)), **parts}
    )
    (folder / "config.json").write_text(config_to_json(config))
    entries = [entry(number, top1) for number, top1 in enumerate(top1s, 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    return folder
