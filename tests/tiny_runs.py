"""The smallest training run that still has everything: a few pictures on disk and a network of a few channels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from convattn.data.transforms import Augmentation
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
        data=DataConfig(str(source), image_size=16, crop_ratio=1.0, batch_size=4, augmentation=Augmentation()),
        optimizer=OptimizerConfig(lr=1e-2, lr_batch_size=None),
        schedule=ScheduleConfig(epochs=2, warmup_epochs=1),
        loop=LoopConfig(device="cpu"),
        output=OutputConfig(str(output), tensorboard=False),
    )
    changed = {name: replace(getattr(config, name), **fields) for name, fields in parts.items()}
    return replace(config, **changed)
