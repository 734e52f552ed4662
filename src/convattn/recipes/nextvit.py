"""Recipes of Next-ViT: the authors' for ImageNet-1k at 224 and 384 pixels, and pre-training on a teacher's labels."""

from dataclasses import replace
from typing import Any

from convattn.classification.options import ClassificationOptions, DistillationConfig
from convattn.data.augmentation import Augmentation
from convattn.recipes.recipe import BUFFERS, NOT_RUN, Recipe, published, recipe, several_gpus
from convattn.training.config import DataConfig, LoopConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["RECIPES"]

SOURCE = "code and logs of github.com/bytedance/Next-ViT; mixed precision is bfloat16 here and float16 there."

DROP_PATH = {"nextvit_small": 0.1, "nextvit_base": 0.2, "nextvit_large": 0.2}

TEACHER = "timm:convnext_large.fb_in22k_ft_in1k"  # normalises images as Next-ViT does


def _imagenet(model: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model, drop_path_rate=DROP_PATH[model]),
        data=DataConfig(source="imagenet", batch_size=256, workers=8),
        optimizer=OptimizerConfig(
            lr=2e-3, lr_batch_size=2048, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-8, clip_grad=5.0
        ),
        schedule=ScheduleConfig(
            epochs=300, warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=False, per_epoch=True
        ),
        task=ClassificationOptions(
            augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
            mixup=0.8,
            cutmix=1.0,
            label_smoothing=0.1,
        ),
        loop=LoopConfig(precision="bf16", accumulation=8),
    )


def _fine_tuning(model: ModelConfig) -> RunConfig:
    config = _imagenet(model.name.partition(".")[0])
    return replace(
        config,
        model=replace(model, drop_path_rate=config.model.drop_path_rate),
        data=replace(config.data, batch_size=128),
        optimizer=replace(config.optimizer, lr=1e-5, lr_batch_size=1024, weight_decay=1e-8),
        schedule=ScheduleConfig("constant", epochs=30),
    )


def _from_scratch(model: str) -> Recipe:
    return recipe(
        f"{model}_imagenet",
        f"The authors' recipe for {model} on ImageNet-1k: 300 epochs, 2,048 images an update.",
        _imagenet(model),
        result=published(f"{model}.in1k"),
        hardware=several_gpus(8, 256),
        source=SOURCE,
        notes=(
            "The authors' schedule lags an epoch behind: their first two epochs both run at 1e-6. Here the second is "
            f"one step up the warm-up.\nTheir figure is that of the best epoch as well.\n{BUFFERS}"
        ),
    )


def _at_384(model: str, first: str = "") -> Recipe:
    """Fine-tuning at 384 pixels; `first` names the weights that learned from a teacher."""
    tag = "in1k" if not first else "ssld_6m_in1k"
    config = _fine_tuning(ModelConfig(f"{model}.{tag}", pretrained=True))
    return recipe(
        f"{model}_{first}imagenet_384",
        f"The authors' fine-tuning of {model} at 384 pixels{', behind a teacher' if first else ''}: 30 epochs.",
        replace(config, data=replace(config.data, image_size=384)),
        result=published(f"{model}.{tag}_384"),
        hardware=several_gpus(8, 128),
        source=SOURCE,
        notes=(
            "Starts from the authors' weights for 224 pixels; `--model.pretrained-path FILE` for others.\n"
            f"The learning rate is the one of their command; the log of nextvit_base shows 3e-6.\n{BUFFERS}"
        ),
    )


def _ssld(model: str) -> Recipe:
    start = _imagenet(model)
    options: Any = start.task
    config = replace(
        start,
        task=replace(
            options, distillation=DistillationConfig(TEACHER, loss="js", unlabelled="unlabelled"), label_smoothing=0.0
        ),
    )
    return recipe(
        f"{model}_ssld",
        f"Pre-training of {model} on a teacher's soft labels for ImageNet-1k and millions of unlabelled images.",
        config,
        result=f"none published before fine-tuning. {NOT_RUN}",
        hardware=several_gpus(8, 256),
        source=(
            "SSLD (Cui et al., arXiv 2103.05959), which the authors name: Jensen-Shannon divergence to the teacher, no "
            "labels. No code or log of theirs is public: teacher, epochs, rates and augmentation are our choice, the "
            "last three as from scratch."
        ),
        notes=(
            "`--task.distillation.unlabelled DIR` is any tree of images; by the name of their weights, the authors had "
            f"six million images in all. Fine-tune with {model}_ssld_imagenet."
        ),
    )


def _behind_ssld(model: str) -> Recipe:
    return recipe(
        f"{model}_ssld_imagenet",
        f"Fine-tuning of {model} on ImageNet-1k at 224 pixels, behind a teacher: 30 epochs.",
        _fine_tuning(ModelConfig(model, pretrained_path=f"runs/{model}_ssld/last.safetensors")),
        result=published(f"{model}.ssld_6m_in1k"),
        hardware=several_gpus(8, 128),
        source="not published; the settings are the authors' for fine-tuning at 384 pixels.",
        notes=f"Starts from a run of {model}_ssld; `--model.pretrained-path FILE` for another.",
    )


RECIPES: tuple[Recipe, ...] = tuple(
    made
    for model in DROP_PATH
    for made in (_from_scratch(model), _at_384(model), _ssld(model), _behind_ssld(model), _at_384(model, "ssld_"))
)
