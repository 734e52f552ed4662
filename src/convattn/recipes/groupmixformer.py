"""Recipes of GroupMixFormer: the authors' for ImageNet-1k, and their fine-tuning at 384 pixels."""

from dataclasses import replace
from typing import Any

from convattn.classification.options import ClassificationOptions
from convattn.data.augmentation import Augmentation
from convattn.recipes.recipe import BUFFERS, NOT_RUN, Recipe, published, recipe, several_gpus
from convattn.training.config import DataConfig, LoopConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["RECIPES"]

SOURCE = (
    "the paper, and what it leaves open from the configurations of github.com/AILab-CVC/GroupMixFormer; mixed "
    "precision is bfloat16 here and float16 there."
)

# Stochastic depth of the paper, and what the authors' files say where that is something else.
DROP_PATH: dict[str, tuple[float, str]] = {
    "groupmixformer_mobile": (0.0, "0.1"),
    "groupmixformer_tiny": (0.1, ""),
    "groupmixformer_small": (0.2, ""),
    "groupmixformer_base": (0.4, "0.5"),
    "groupmixformer_large": (0.5, "0.1, with the remark that it needs adjusting"),
}

# Top-1 at 384 pixels; no weights of it were released.
AT_384 = {"groupmixformer_small": 85.0, "groupmixformer_large": 86.2}


def _imagenet(model: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model, drop_path_rate=DROP_PATH[model][0]),
        data=DataConfig(source="imagenet", batch_size=128, workers=8),
        optimizer=OptimizerConfig(
            lr=5e-4, lr_batch_size=512, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8, clip_grad=5.0
        ),
        schedule=ScheduleConfig(epochs=300, warmup_epochs=20, warmup_lr=5e-7, min_lr=5e-6, warmup_prefix=False),
        task=ClassificationOptions(
            augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
            mixup=0.8,
            cutmix=1.0,
            label_smoothing=0.1,
        ),
        loop=LoopConfig(precision="bf16", accumulation=8),
    )


def _from_scratch(model: str) -> Recipe:
    other = DROP_PATH[model][1]
    return recipe(
        f"{model}_imagenet",
        f"The authors' recipe for {model} on ImageNet-1k: 300 epochs, 1,024 images an update.",
        _imagenet(model),
        result=published(f"{model}.in1k"),
        hardware=several_gpus(8, 128),
        source=SOURCE,
        notes=(f"Stochastic depth is the paper's; the authors' configuration has {other}.\n" if other else "")
        + BUFFERS,
    )


def _at_384(model: str) -> Recipe:
    start = _imagenet(model)
    options: Any = start.task
    config = replace(
        start,
        model=replace(start.model, pretrained=True),
        data=replace(start.data, image_size=384),
        task=replace(options, crop_ratio=1.0),
        optimizer=replace(start.optimizer, lr=1e-5, lr_batch_size=1024, weight_decay=1e-8),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=5, warmup_lr=1e-8, min_lr=1e-7, warmup_prefix=False),
    )
    return recipe(
        f"{model}_imagenet_384",
        f"Fine-tuning of {model} at 384 pixels on ImageNet-1k: 30 epochs from the weights of 224.",
        config,
        result=f"{AT_384[model]:.1f} % top-1 (the paper). {NOT_RUN}",
        hardware=several_gpus(8, 128),
        source="the paper for epochs, number of warm-up epochs and cosine; no configuration was released.",
        notes=(
            "Learning rate, weight decay, batch and crop are not known. Chosen: 1e-5 for 1,024 images and 1e-8, those "
            "of Swin's recipe, which the paper cites, and a validation crop as high as the image. Chosen too, for "
            "1,024 images: the rate that the warm-up starts at, 1e-8, and the floor of the cosine, 1e-7.\n"
            f"Starts from the authors' weights; `--model.pretrained-path FILE` for others.\n{BUFFERS}"
        ),
    )


RECIPES: tuple[Recipe, ...] = (*map(_from_scratch, DROP_PATH), *map(_at_384, AT_384))
