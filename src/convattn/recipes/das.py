"""Recipes of DAS: the paper's for ImageNet-1k, CIFAR-100 and Stanford Dogs."""

from convattn.classification.options import ClassificationOptions
from convattn.data.augmentation import Augmentation
from convattn.recipes.recipe import NOT_RUN, Recipe, recipe
from convattn.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig

__all__ = ["RECIPES"]

PAPER = "arXiv 2311.12091"
SOURCE = f"{PAPER}; momentum 0.9 and the decay of biases and norms are assumed."
HARDWARE = "one GPU; the paper names none."

# The article's accuracy; no weights were released.
IMAGENET = {
    "resnet18_das": f"72.03 % top-1, 90.70 % top-5 ({PAPER})",
    "resnet34_das": "none published",
    "resnet50_das": f"78.04 % top-1, 94.00 % top-5 ({PAPER})",
    "resnet101_das": f"78.62 % top-1 ({PAPER})",
}
GAINS = {  # points of top-1 over the plain network
    "resnet18": {"cifar100": "+0.79", "dogs": "+4.91"},
    "resnet50": {"cifar100": "+2.8", "dogs": "+4.47"},
}


def _sgd(lr: float, weight_decay: float) -> OptimizerConfig:
    """Plain momentum, and decay of everything, as in the recipes that the paper builds on."""
    return OptimizerConfig(
        "momentum", lr=lr, lr_batch_size=None, weight_decay=weight_decay, momentum=0.9, decay_all=True
    )


def _imagenet(model: str) -> Recipe:
    config = RunConfig(
        model=ModelConfig(model),
        data=DataConfig(source="imagenet", batch_size=256, workers=8),
        optimizer=_sgd(0.1, 1e-4),
        schedule=ScheduleConfig("multistep", epochs=100, milestones=(30, 60, 90)),
    )
    return recipe(
        f"{model}_imagenet",
        f"The paper's recipe for {model} on ImageNet-1k: 100 epochs, a tenth of the rate after 30, 60 and 90.",
        config,
        result=f"{IMAGENET[model]}. {NOT_RUN}",
        hardware=HARDWARE,
        source=SOURCE,
    )


def _mobilenet() -> Recipe:
    epochs = 300
    config = RunConfig(
        model=ModelConfig("mobilenetv2_das"),
        data=DataConfig(source="imagenet", batch_size=96, workers=8),
        optimizer=_sgd(0.045, 4e-5),
        schedule=ScheduleConfig("multistep", epochs=epochs, milestones=tuple(range(1, epochs)), decay_rate=0.98),
    )
    return recipe(
        "mobilenetv2_das_imagenet",
        "The paper's recipe for mobilenetv2_das on ImageNet-1k: 2 % off the rate after each epoch.",
        config,
        result=f"72.79 % top-1, 90.87 % top-5 ({PAPER}). {NOT_RUN}",
        hardware=HARDWARE,
        source=SOURCE + f" The number of epochs is not given; {epochs} are chosen.",
    )


def _cifar100(network: str) -> Recipe:
    config = RunConfig(
        model=ModelConfig(f"{network}_das_cifar"),
        data=DataConfig(source="cifar100", image_size=32, batch_size=128, workers=4),
        optimizer=_sgd(0.1, 5e-4),
        schedule=ScheduleConfig("multistep", epochs=300, milestones=(70, 130, 200, 260), decay_rate=0.2),
        task=ClassificationOptions(
            crop_ratio=1.0,
            # Moved by up to 4 pixels and mirrored, which the paper does not say and everyone does.
            augmentation=Augmentation(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), shift=0.125),
        ),
    )
    return recipe(
        f"{network}_das_cifar100",
        f"The paper's recipe for {network} with gates on CIFAR-100: 300 epochs, four steps to a fifth of the rate.",
        config,
        result=f"{GAINS[network]['cifar100']} points of top-1 over {network} ({PAPER}); no more is given. {NOT_RUN}",
        hardware=HARDWARE,
        source=SOURCE + " So are the stem (3x3, no pooling) and the augmentation.",
    )


def _dogs(network: str) -> Recipe:
    config = RunConfig(
        model=ModelConfig(f"{network}_das"),
        data=DataConfig(source="stanford_dogs", batch_size=32, workers=4),
        optimizer=_sgd(0.1, 1e-4),
        schedule=ScheduleConfig(epochs=100),
    )
    return recipe(
        f"{network}_das_dogs",
        f"The paper's recipe for {network} with gates on Stanford Dogs: 32 images an update, cosine.",
        config,
        result=f"{GAINS[network]['dogs']} points of top-1 over {network} ({PAPER}). {NOT_RUN}",
        hardware=HARDWARE,
        source=SOURCE + " The number of epochs is not given; 100 are chosen.",
        notes=(
            "The paper does not say what it starts from; from scratch is assumed. `--model.pretrained-path FILE` "
            "starts from weights."
        ),
    )


RECIPES: tuple[Recipe, ...] = (*map(_imagenet, IMAGENET), _mobilenet(), *map(_cifar100, GAINS), *map(_dogs, GAINS))
