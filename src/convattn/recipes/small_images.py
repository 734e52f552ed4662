"""One recipe for colour images of 32 to 64 pixels on CPUs, for the smallest model of every family."""

from collections.abc import Mapping
from typing import Any

from convattn.classification.options import ClassificationOptions
from convattn.data.augmentation import Augmentation
from convattn.recipes.recipe import Recipe, recipe
from convattn.training.config import DataConfig, LoopConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["RECIPES", "small_images"]


def small_images(model: str, options: Mapping[str, Any] | None = None) -> RunConfig:
    """The run that all of them share; only the model and its options differ, so that results can be compared."""
    return RunConfig(
        model=ModelConfig(model, options=options or {}),
        data=DataConfig(source="data", image_size=32, batch_size=64),
        optimizer=OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.05, clip_grad=5.0),
        schedule=ScheduleConfig(epochs=4, warmup_epochs=0.5),
        task=ClassificationOptions(
            crop_ratio=1.0, augmentation=Augmentation(crop_area=(0.6, 1.0)), label_smoothing=0.1
        ),
        loop=LoopConfig(ema_decay=0.998),
    )


def _small_images(name: str, summary: str, config: RunConfig, result: str = "", notes: str = "") -> Recipe:
    return recipe(
        f"{name}_small_images",
        summary,
        config,
        result=result or "none published; this recipe is ours.",
        hardware="a CPU.",
        source="ours; the same for every model.",
        notes=notes,
    )


def _nano(model: str, result: str = "") -> Recipe:
    summary = f"{model} on colour images of 32 to 64 pixels, a short run for CPUs; more epochs give more."
    return _small_images(model, summary, small_images(model), result)


def _gated() -> Recipe:
    return _small_images(
        "resnet18_das_cifar",
        "A narrow ResNet-18 with deformable gates on colour images of 32 to 64 pixels, a short run for CPUs.",
        small_images("resnet18_das_cifar", {"dims": (10, 20, 40, 80)}),
        notes="Stages of 10 to 80 channels make 23 million multiply-adds at 32 pixels; the usual 64 to 512 make 595.",
    )


def _baseline(name: str, summary: str, options: Mapping[str, Any], notes: str) -> Recipe:
    summary = (
        f"A plain ResNet-18 of timm, {summary}, on colour images of 32 to 64 pixels: what the others are held against."
    )
    return _small_images(name, summary, small_images("timm:resnet18", options), notes=notes)


RECIPES: tuple[Recipe, ...] = (
    _nano(
        "smt_nano",
        "none published. On CIFAR-10 with two cores (376 images a second) ten minutes are four epochs: 74.5 % top-1 on "
        "the 10,000 test images at that point of a run laid out for six.",
    ),
    _nano("groupmixformer_nano"),
    _nano("nextvit_nano"),
    _nano("cotnet_nano"),
    _gated(),
    _baseline(
        "resnet18",
        "narrow",
        {"channels": (40, 80, 160, 320)},
        "It costs what smt_nano does at 32 pixels, 16.6 million multiply-adds, and ends in maps of one position.",
    ),
    _baseline(
        "resnet18_dilated",
        "narrow and dilated",
        {"channels": (18, 36, 72, 144), "output_stride": 8},
        "It costs about what smt_nano does at 32 pixels, 17.6 million multiply-adds, with about as many parameters; "
        "its maps keep 4x4 positions to the end.",
    ),
)
