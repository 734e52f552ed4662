"""Recipes of object detection: the authors' on COCO, and one for images with objects of your own."""

from convattn.detection.options import DetectionOptions
from convattn.recipes.recipe import Recipe
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)

__all__ = ["RECIPES", "detect_finetune"]


def detect_finetune() -> RunConfig:
    """A detector on a small data set of your own: images with boxes, some dozens or more.

    Images are seen about as large as they are, up to a short side of 640 pixels, and in training smaller and larger.
    The norms of the backbone stay as they were trained. Training ends when fifteen validations have brought nothing.

    Command: `convattn train detect_finetune --data DIR --output runs/detect_finetune`
    Hardware: a GPU, or a CPU and patience (`--model.name smt_nano` is a small network, `--task.detector retinanet
    --task.width 96` a small detector).
    Source: ours.
    Result: none published; this recipe is ours.
    With outlines: `--task.detector mask_rcnn`. Where left and right matter: `--task.variation.flip 0`.
    """
    return RunConfig(
        model=ModelConfig("smt_tiny", pretrained=True, drop_path_rate=0.1),
        data=DataConfig(source="data", batch_size=4, workers=2),
        optimizer=OptimizerConfig(lr=2e-4, lr_batch_size=None, weight_decay=0.05, clip_grad=10.0),
        schedule=ScheduleConfig("cosine", epochs=60, warmup_updates=100, warmup_factor=0.01),
        task=DetectionOptions(width=128, frozen_norms=True, scale=None),
        loop=LoopConfig(precision="auto", ema_decay=0.998, early_stopping=15),
        output=OutputConfig("runs/detect_finetune"),
    )


RECIPES: tuple[Recipe, ...] = (detect_finetune,)
