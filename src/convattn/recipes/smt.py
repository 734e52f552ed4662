"""Recipes of SMT: two for small images on two CPU cores, and the authors' for ImageNet-1k."""

from dataclasses import replace

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

__all__ = [
    "RECIPES",
    "smt_base_imagenet",
    "smt_nano_digits",
    "smt_nano_small_images",
    "smt_small_imagenet",
    "smt_tiny_imagenet",
]


def smt_nano_digits() -> RunConfig:
    """SMT-nano on scikit-learn's handwritten digits, enlarged from 8 to 24 pixels.

    Command: `convattn train smt_nano_digits --output runs/digits`
    Hardware and time: one thread of an AMD EPYC with AVX-512, 55 to 57 s of processor time.
    Result: 99.7 % and 99.2 % top-1 on the test split with seeds 0 and 1.
    """
    return RunConfig(
        model=ModelConfig("smt_nano"),
        data=DataConfig(
            source="digits",
            image_size=24,
            crop_ratio=1.0,
            batch_size=32,
            augmentation=Augmentation(
                crop_area=(1.0, 1.0),
                crop_aspect=(1.0, 1.0),
                horizontal_flip=0.0,  # a mirrored digit is another sign
                rotation=15.0,
                shift=0.1,
                zoom=(0.8, 1.2),
            ),
        ),
        optimizer=OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.05, clip_grad=5.0),
        schedule=ScheduleConfig(epochs=16, warmup_epochs=1),
        loop=LoopConfig(label_smoothing=0.1, ema_decay=0.99),
        output=OutputConfig("runs/smt_nano_digits"),
    )


def smt_nano_small_images() -> RunConfig:
    """SMT-nano on colour images of 32 to 64 pixels, a short run for CPUs; more epochs give more.

    Command: `convattn train smt_nano_small_images --data DIR --output runs/small`
    Result: none published; this recipe is ours. On CIFAR-10 with two cores (376 images a second) ten minutes are four
    epochs: 74.5 % top-1 on the 10,000 test images at that point of a run laid out for six.
    """
    return RunConfig(
        model=ModelConfig("smt_nano"),
        data=DataConfig(
            source="data",
            image_size=32,
            crop_ratio=1.0,
            batch_size=64,
            augmentation=Augmentation(crop_area=(0.6, 1.0)),
        ),
        optimizer=OptimizerConfig(lr=2e-3, lr_batch_size=None, weight_decay=0.05, clip_grad=5.0),
        schedule=ScheduleConfig(epochs=4, warmup_epochs=0.5),
        loop=LoopConfig(label_smoothing=0.1, ema_decay=0.998),
        output=OutputConfig("runs/smt_nano_small_images"),
    )


def smt_tiny_imagenet() -> RunConfig:
    """The authors' recipe for SMT-T on ImageNet-1k from scratch: 300 epochs, 1,024 images an update.

    Command: `convattn train smt_tiny_imagenet --data imagenet --output runs/smt_tiny`
    Hardware: eight GPUs with 128 images each in the authors' README; one process here adds up 8 batches of 128.
    Result: 82.2 % top-1, 96.0 % top-5 (README of github.com/AFeng-x/SMT). Not run here.
    """
    return RunConfig(
        model=ModelConfig("smt_tiny", drop_path_rate=0.1),
        data=DataConfig(
            source="imagenet",
            batch_size=128,
            workers=8,
            augmentation=Augmentation(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
            mixup=0.2,
            cutmix=1.0,
        ),
        optimizer=OptimizerConfig(
            lr=1e-3, lr_batch_size=512, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8, clip_grad=5.0
        ),
        schedule=ScheduleConfig(epochs=300, warmup_epochs=5, warmup_lr=1e-7, min_lr=1e-6),
        loop=LoopConfig(precision="bf16", label_smoothing=0.1, accumulation=8),
        output=OutputConfig("runs/smt_tiny_imagenet"),
    )


def smt_small_imagenet() -> RunConfig:
    """The authors' recipe for SMT-S on ImageNet-1k: that of SMT-T with more stochastic depth.

    Command: `convattn train smt_small_imagenet --data imagenet --output runs/smt_small`
    Result: 83.7 % top-1, 96.5 % top-5 (README of github.com/AFeng-x/SMT). Not run here.
    """
    return replace(
        smt_tiny_imagenet(),
        model=ModelConfig("smt_small", drop_path_rate=0.2),
        output=OutputConfig("runs/smt_small_imagenet"),
    )


def smt_base_imagenet() -> RunConfig:
    """The authors' recipe for SMT-B on ImageNet-1k: that of SMT-T with more stochastic depth.

    Command: `convattn train smt_base_imagenet --data imagenet --output runs/smt_base`
    Result: 84.3 % top-1, 96.9 % top-5 (README of github.com/AFeng-x/SMT). Not run here.
    """
    return replace(
        smt_tiny_imagenet(),
        model=ModelConfig("smt_base", drop_path_rate=0.3),
        output=OutputConfig("runs/smt_base_imagenet"),
    )


RECIPES = (smt_nano_digits, smt_nano_small_images, smt_tiny_imagenet, smt_small_imagenet, smt_base_imagenet)
