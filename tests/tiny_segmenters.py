"""Pictures with masks on disk, and the smallest segmenter that learns from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from convattn.segmentation.options import SegmentationOptions
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)

CLASSES = ("ground", "square", "sky")
TINY_OPTIONS = dict(
    dims=(8, 8, 16, 16),
    depths=(1, 1, 2, 1),
    attention_heads=(2, 2),
    mlp_ratios=(2, 2, 2, 2),
    num_heads=2,
    stem_stride=4,
)


def write_masks(folder: Path, train: int = 8, val: int = 3, sizes=((64, 48),)) -> Path:
    """`folder/images/{train,val}` and `folder/masks/{train,val}`: a bright square between dark ground and grey sky.

    The outermost pixels of each mask count for nothing (255).
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            width, height = sizes[index % len(sizes)]
            labels = np.zeros((height, width), dtype=np.uint8)
            labels[: height // 3] = 2
            top, left = rng.integers(2, height // 2), rng.integers(2, width // 2)
            labels[top : top + height // 3, left : left + width // 3] = 1
            colours = np.array([(40, 60, 30), (250, 220, 90), (130, 140, 150)])
            pixels = colours[labels] + rng.integers(-20, 20, (height, width, 3))
            labels[[0, -1]] = labels[:, [0, -1]] = 255
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / split / f"{index:02d}.png")
            Image.fromarray(labels).save(folder / "masks" / split / f"{index:02d}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def tiny_segmentation(source: Path, output: Path, /, **parts: dict) -> RunConfig:
    """A run of seconds; `parts` names fields to change: `tiny_segmentation(…, loop=dict(seed=1))`."""
    config = RunConfig(
        model=ModelConfig("smt_nano", options=TINY_OPTIONS),
        data=DataConfig(str(source), image_size=32, batch_size=4),
        optimizer=OptimizerConfig(lr=1e-2, lr_batch_size=None),
        schedule=ScheduleConfig(updates=6),
        task=SegmentationOptions(head="semantic_fpn", width=16, scale=None),
        loop=LoopConfig(device="cpu", validation_updates=3),
        output=OutputConfig(str(output), tensorboard=False),
    )
    changed = {name: replace(getattr(config, name), **fields) for name, fields in parts.items()}
    return replace(config, **changed)
