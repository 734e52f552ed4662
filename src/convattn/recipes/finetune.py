"""The recipe for own images: a trained network on a small data set."""

from convattn.classification.options import ClassificationOptions
from convattn.data.augmentation import Augmentation
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

__all__ = ["RECIPES", "finetune"]


def finetune() -> RunConfig:
    """A trained network on a small data set of your own, some hundred images or more.

    The classifier is trained alone for an epoch; then everything is, the front of the network least. Classes with few
    images count as much as those with many, and training ends when ten epochs have brought nothing.

    Command: `convattn train finetune --data DIR --output runs/finetune`
    Hardware: a GPU, or a CPU and patience (`--model.name NAME` takes another network).
    Source: ours.
    Result: none published; this recipe is ours.
    Start from a run of your own by `--model.pretrained-path runs/NAME/best.safetensors`. To train the classifier alone
    throughout: `--loop.freeze-epochs 30`, with a higher `--optimizer.lr`. Where left and right matter:
    `--task.augmentation.horizontal-flip 0`.
    """
    return RunConfig(
        model=ModelConfig("smt_tiny", pretrained=True, drop_path_rate=0.1),
        data=DataConfig(source="data", batch_size=32, workers=2),
        optimizer=OptimizerConfig(lr=5e-4, lr_batch_size=None, weight_decay=0.05, layer_decay=0.75, clip_grad=5.0),
        schedule=ScheduleConfig(epochs=30, warmup_epochs=2, min_lr=1e-6),
        task=ClassificationOptions(
            augmentation=Augmentation(crop_area=(0.35, 1.0), auto_augment="rand-m6-mstd0.5-inc1", random_erasing=0.1),
            label_smoothing=0.1,
            class_weights="balanced",
        ),
        loop=LoopConfig(freeze_epochs=1, early_stopping=10),
        output=OutputConfig("runs/finetune"),
    )


RECIPES: tuple[Recipe, ...] = (finetune,)
