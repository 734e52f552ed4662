"""Recipes of SMT: handwritten digits on one CPU core, and the authors' for ImageNet-1k and ImageNet-22k."""

from dataclasses import replace

from convattn.classification.options import ClassificationOptions
from convattn.data.augmentation import Augmentation
from convattn.recipes.recipe import BUFFERS, NOT_RUN, Recipe, published, recipe, record_of, several_gpus
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)

__all__ = ["RECIPES", "smt_nano_digits"]

SOURCE = "configurations of github.com/AFeng-x/SMT; mixed precision is bfloat16 here and float16 there."
DIFFERENCE = f"{BUFFERS} The authors' processes each keep their own."


def smt_nano_digits() -> RunConfig:
    """SMT-nano on scikit-learn's handwritten digits, enlarged from 8 to 24 pixels.

    Command: `convattn train smt_nano_digits --output runs/smt_nano_digits`
    Hardware: one thread of an AMD EPYC with AVX-512, 55 to 57 s of processor time.
    Source: ours.
    Result: 99.7 % and 99.2 % top-1 on the test split with seeds 0 and 1; the best epoch is chosen on those same images.
    """
    return RunConfig(
        model=ModelConfig("smt_nano"),
        data=DataConfig(source="digits", image_size=24, batch_size=32),
        optimizer=OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.05, clip_grad=5.0),
        schedule=ScheduleConfig(epochs=16, warmup_epochs=1),
        task=ClassificationOptions(
            crop_ratio=1.0,
            augmentation=Augmentation(
                crop_area=(1.0, 1.0),
                crop_aspect=(1.0, 1.0),
                horizontal_flip=0.0,  # a mirrored digit is another sign
                rotation=15.0,
                shift=0.1,
                zoom=(0.8, 1.2),
            ),
            label_smoothing=0.1,
        ),
        loop=LoopConfig(ema_decay=0.99),
        output=OutputConfig("runs/smt_nano_digits"),
    )


def _imagenet(model: str, drop_path: float) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model, drop_path_rate=drop_path),
        data=DataConfig(source="imagenet", batch_size=128, workers=8),
        optimizer=OptimizerConfig(
            lr=1e-3, lr_batch_size=512, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8, clip_grad=5.0
        ),
        schedule=ScheduleConfig(epochs=300, warmup_epochs=5, warmup_lr=1e-7, min_lr=1e-6),
        task=ClassificationOptions(
            augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
            mixup=0.2,
            cutmix=1.0,
            label_smoothing=0.1,
        ),
        loop=LoopConfig(precision="bf16", accumulation=8),
    )


def _from_scratch(model: str, drop_path: float, result: str) -> Recipe:
    return recipe(
        f"{model}_imagenet",
        f"The authors' recipe for {model} on ImageNet-1k from scratch: 300 epochs, 1,024 images an update.",
        _imagenet(model, drop_path),
        result=result,
        hardware=several_gpus(8, 128),
        source=SOURCE,
        notes=DIFFERENCE,
    )


def _pretraining() -> Recipe:
    start = _imagenet("smt_large", 0.1)
    config = replace(
        start,
        data=replace(start.data, source="imagenet22k"),
        optimizer=replace(start.optimizer, lr=1.25e-4),
        schedule=ScheduleConfig(epochs=90, warmup_epochs=5, warmup_lr=1.25e-7, min_lr=1.25e-6),
        loop=replace(start.loop, accumulation=32),
    )
    return recipe(
        "smt_large_imagenet22k",
        "The authors' pre-training of smt_large on ImageNet-22k: 90 epochs, 4,096 images an update.",
        config,
        result=f"none published for these weights themselves. {NOT_RUN}",
        hardware="8 GPUs with 128 images each and 4 batches added up; one process adds up 32.",
        source=SOURCE,
        notes=(
            f"The data is the release of fall 2011 with 21,841 classes; hold out a val/ folder yourself.\n{DIFFERENCE}"
        ),
    )


def _from_22k(size: int, lr: float) -> Recipe:
    tag = "in22k_ft_in1k" if size == 224 else f"in22k_ft_in1k_{size}"
    start = _imagenet(f"smt_large.{tag}", 0.1)
    file = record_of("smt_large.in22k")
    config = replace(
        start,
        model=replace(start.model, pretrained_path=file.file_name),
        data=replace(start.data, batch_size=64),
        optimizer=replace(start.optimizer, lr=lr),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=5, warmup_lr=lr / 1000, min_lr=lr / 100),
    )
    return recipe(
        "smt_large_imagenet_from_22k" + (f"_{size}" if size != 224 else ""),
        f"The authors' fine-tuning of smt_large from ImageNet-22k to ImageNet-1k at {size} pixels: 30 epochs.",
        config,
        result=published(f"smt_large.{tag}"),
        hardware=several_gpus(8, 64),
        source=SOURCE + (" The batch is that of the 384-pixel run; the authors' is not given." if size == 224 else ""),
        notes=(
            f"Starts from {file.file_name} ({file.url}), or from a run of smt_large_imagenet22k: set "
            "`--model.pretrained-path`.\nThe authors keep the outputs of the old classifier that are ImageNet-1k's. "
            "So does this where the folders of the images are named by synsets (n01440764, …). Where they are not, the "
            "classifier is fresh, or `--model.head-rows imagenet-22k` takes them in ImageNet's order. Either is said.\n"
            f"{DIFFERENCE}"
        ),
    )


RECIPES: tuple[Recipe, ...] = (
    smt_nano_digits,
    _from_scratch("smt_tiny", 0.1, published("smt_tiny.in1k")),
    _from_scratch("smt_small", 0.2, published("smt_small.in1k")),
    _from_scratch("smt_base", 0.3, published("smt_base.in1k")),
    _from_scratch("smt_large", 0.4, f"none published without ImageNet-22k. {NOT_RUN}"),
    _pretraining(),
    _from_22k(224, 1e-5),
    _from_22k(384, 2e-5),
)
