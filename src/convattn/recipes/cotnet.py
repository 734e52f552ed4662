"""Recipes of CoTNet, CoTNeXt and SE-CoTNetD on ImageNet-1k: the advanced set-up of 350 epochs, and a default one."""

from dataclasses import dataclass, replace

from convattn.classification.options import ClassificationOptions
from convattn.data.augmentation import Augmentation
from convattn.recipes.recipe import NOT_RUN, Recipe, published, recipe, several_gpus
from convattn.training.config import DataConfig, LoopConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["RECIPES"]


@dataclass(frozen=True)
class Row:
    """What differs between the variants in the advanced set-up."""

    batch_size: int  # of each of 8 GPUs; the learning rate is 0.1 for 256 images
    weight_decay: float = 4e-5
    drop_path: float = 0.1


ADVANCED = {
    "cotnet_50": Row(80),
    "cotnext_50": Row(64),
    "se_cotnetd_50": Row(80),
    "cotnet_101": Row(56, weight_decay=6e-5),
    "cotnext_101": Row(64, weight_decay=6e-5),
    "se_cotnetd_101": Row(64),
    "se_cotnetd_152": Row(64, drop_path=0.15),
}

# Top-1 in the default set-up and where it is from.
DEFAULT = {
    "cotnet_50": (79.2, "the paper's ablation"),
    "se_cotnetd_50": (79.8, "read off a figure of the authors' README"),
    "se_cotnetd_101": (80.5, "read off a figure of the authors' README"),
}

RAND_AUGMENT = "rand-m15-mmax15-mstd0.5-n2"
DIFFERENCES = (
    "The authors' RandAugment is timm's here at their strength (the probability of an operation, 0.2 to 0.8 at random, "
    "is its mean, 0.5); it lacks Cutout, one of their 16 operations, and SolarizeAdd adds at most 128 instead of 165.\n"
    "They average the statistics of batch norm over the GPUs after each epoch; here those of the first count."
)


def _advanced(model: str) -> RunConfig:
    row = ADVANCED[model]
    images = 8 * row.batch_size
    return RunConfig(
        model=ModelConfig(model, drop_rate=0.25, drop_path_rate=row.drop_path),
        data=DataConfig(source="imagenet", batch_size=row.batch_size, workers=8),
        optimizer=OptimizerConfig(
            "sgd",  # timm's name for the one with Nesterov's momentum
            lr=0.1 * images / 256,
            lr_batch_size=images,
            weight_decay=row.weight_decay,
            momentum=0.9,
        ),
        schedule=ScheduleConfig(
            epochs=350, warmup_epochs=5, warmup_lr=1e-4, min_lr=1e-5, warmup_prefix=False, per_epoch=True
        ),
        task=ClassificationOptions(
            augmentation=Augmentation(auto_augment=RAND_AUGMENT), mixup=0.8, cutmix=1.0, label_smoothing=0.1
        ),
        loop=LoopConfig(ema_decay=0.9999, ema_warmup=False, accumulation=8),
    )


def _advanced_recipe(model: str) -> Recipe:
    return recipe(
        f"{model}_imagenet",
        f"The authors' advanced set-up for {model} on ImageNet-1k: 350 epochs with a moving average of the weights.",
        _advanced(model),
        result=published(f"{model}.in1k"),
        hardware=several_gpus(8, ADVANCED[model].batch_size),
        source="configurations of github.com/JDAI-CV/CoTNet.",
        notes=DIFFERENCES,
    )


def _at_320() -> Recipe:
    config = _advanced("se_cotnetd_152")
    return recipe(
        "se_cotnetd_152_imagenet_320",
        "The advanced set-up for se_cotnetd_152 on ImageNet-1k with images of 320 pixels.",
        replace(config, model=replace(config.model, name="se_cotnetd_152.in1k_320")),
        result=published("se_cotnetd_152.in1k_320"),
        hardware=several_gpus(8, ADVANCED["se_cotnetd_152"].batch_size),
        source="not published; everything but the size is that of the run at 256 pixels.",
        notes=DIFFERENCES,
    )


def _default(model: str) -> Recipe:
    top1, where = DEFAULT[model]
    config = RunConfig(
        model=ModelConfig(model),
        data=DataConfig(source="imagenet", batch_size=64, workers=8),
        optimizer=OptimizerConfig("sgd", lr=0.1, lr_batch_size=256, weight_decay=1e-4, momentum=0.9),
        schedule=ScheduleConfig(epochs=100, warmup_epochs=5, warmup_lr=1e-4, min_lr=1e-5, per_epoch=True),
        task=ClassificationOptions(label_smoothing=0.1),
        loop=LoopConfig(accumulation=4),
    )
    return recipe(
        f"{model}_imagenet_default",
        f"The default set-up for {model} on ImageNet-1k, as in the paper's ablations: 100 epochs, plain augmentation.",
        config,
        result=f"{top1:.1f} % top-1 ({where}). {NOT_RUN}",
        hardware=several_gpus(4, 64),
        source="not published; the usual settings for residual networks, our choice.",
    )


RECIPES: tuple[Recipe, ...] = (*map(_advanced_recipe, ADVANCED), _at_320(), *map(_default, DEFAULT))
