"""The smallest training run that still has everything: a few pictures on disk and a network of a few channels."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convattn.classification.options import ClassificationOptions
from convattn.training.checkpoint import Checkpoint, checkpoint_folders, read_checkpoint
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)

TINY_OPTIONS = dict(
    dims=(4, 8, 8, 8), depths=(1, 1, 2, 1), attention_heads=(2, 2), mlp_ratios=(2, 2, 2, 2), num_heads=2
)

# Parts of `tiny_config` for a run that draws random numbers and keeps state wherever one can.
EVERYTHING = dict(
    model=dict(drop_path_rate=0.2, drop_rate=0.1),
    task=dict(mixup=0.5, cutmix=1.0, label_smoothing=0.1),
    schedule=dict(epochs=3, warmup_epochs=1),
    loop=dict(ema_decay=0.9, accumulation=2, device="cpu"),
    optimizer=dict(clip_grad=1.0),
)

# Figures of the log that are not the same twice.
VARYING = {"seconds", "images_per_second", "memory_gib"}


def write_pictures(folder: Path, train: int = 12, val: int = 4, size: int = 16, held_out: str = "val") -> Path:
    """`folder/train` and `folder/val`, two classes of noise, one dark and one bright; counts are images per class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), (held_out, val)):
        for name, low in (("bright", 128), ("dark", 0)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 128, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index:03d}.png")
    return folder


def tiny_config(source: Path | str, output: Path, /, **parts: dict) -> RunConfig:
    """A run of a second; `parts` names fields to change: `tiny_config(…, loop=dict(seed=1))`."""
    config = RunConfig(
        model=ModelConfig("smt_nano", options=TINY_OPTIONS),
        data=DataConfig(str(source), image_size=16, batch_size=4),
        task=ClassificationOptions(crop_ratio=1.0),
        optimizer=OptimizerConfig(lr=1e-2, lr_batch_size=None),
        schedule=ScheduleConfig(epochs=2, warmup_epochs=1),
        loop=LoopConfig(device="cpu"),
        output=OutputConfig(str(output), tensorboard=False),
    )
    changed = {name: replace(getattr(config, name), **fields) for name, fields in parts.items()}
    return replace(config, **changed)


def figures(folder: Path) -> list[dict]:
    """The log of a run without what varies."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: entry[key] for key in entry if key not in VARYING} for entry in entries]


def newest_checkpoint(folder: Path) -> Checkpoint:
    """Where a run stands."""
    return read_checkpoint(checkpoint_folders(folder)[0])


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs ended alike: every weight, every random state, every figure."""
    for name in ("last.safetensors", "best.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    ends = [newest_checkpoint(folder) for folder in (one, other)]
    for part in ("model", "ema", "state"):
        assert_same(*(getattr(end, part) for end in ends))
    assert figures(one) == figures(other)


def assert_same(one, other):
    """Equal in every tensor and every number, whatever the nesting."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other
