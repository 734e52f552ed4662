from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import timm.optim
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.models import split_model_name_tag
from torch import nn

import convattn
from convattn.backbones.registry import image_size_of
from convattn.classification.task import Classification
from convattn.data.transforms import training_transform
from convattn.recipes import RECIPES, cotnet
from convattn.weights.records import OFFICIAL_WEIGHTS

RELEASED = [(model, weights) for model, files in OFFICIAL_WEIGHTS.items() for weights in files]

# What a released file is the result of.
SUFFIXES = {
    "in1k": "imagenet",
    "in1k_320": "imagenet_320",
    "in1k_384": "imagenet_384",
    "ssld_6m_in1k": "ssld_imagenet",
    "ssld_6m_in1k_384": "ssld_imagenet_384",
    "in22k": "imagenet22k",
    "in22k_ft_in1k": "imagenet_from_22k",
    "in22k_ft_in1k_384": "imagenet_from_22k_384",
}


@cache
def model_of(architecture: str, options: tuple) -> nn.Module:
    with torch.device("meta"):
        return convattn.create_model(architecture, num_classes=10, drop_rate=0.1, drop_path_rate=0.1, **dict(options))


def built(config) -> nn.Module:
    """The model of a recipe without its weights, whose tag may stand in the name; built once for all that share it."""
    return model_of(split_model_name_tag(config.model.name)[0], tuple(config.model.options.items()))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_documented_and_its_model_can_be_built(name):
    config = RECIPES[name]()
    assert built(config).num_classes == 10
    assert (config.data.image_size or image_size_of(config.model.name)) >= 24
    assert config.output.folder == f"runs/{name}"
    text = RECIPES[name].__doc__
    assert RECIPES[name].__name__ == name
    assert text.splitlines()[0].endswith(".")
    assert f"Command: `convattn train {name} " in text
    assert f"--output runs/{name}`" in text
    for part in ("Hardware: ", "Source: ", "Result: "):
        assert part in text


SAID = {
    "smt_large_imagenet_from_22k": ["named by synsets", "`--model.head-rows imagenet-22k`", "each keep their own"],
    "smt_tiny_imagenet": ["DDP sends its buffers", "The authors' processes each keep their own"],
    "groupmixformer_small_imagenet_384": [
        "Chosen too, for 1,024 images: the rate that the warm-up starts at, 1e-8, and the floor of the cosine, 1e-7."
    ],
    "nextvit_small_imagenet": ["Their figure is that of the best epoch", "DDP sends its buffers"],
    "resnet18_das_dogs": ["from scratch is assumed"],
    "resnet18_das_cifar100": ["the best epoch on the images that it is then evaluated on"],
    "smt_nano_digits": ["the best epoch is chosen on those same images"],
}


@pytest.mark.parametrize("name", SAID)
def test_what_was_assumed_or_chosen_is_said(name):
    text = " ".join(RECIPES[name].__doc__.split())
    assert [phrase for phrase in SAID[name] if phrase not in text] == []


def test_the_chosen_rates_at_384_pixels_are_those_that_are_said():
    schedule = RECIPES["groupmixformer_small_imagenet_384"]().schedule
    assert (schedule.warmup_lr, schedule.min_lr) == (1e-8, 1e-7)


CLASSIFIERS = [name for name in RECIPES if RECIPES[name]().task.kind == "classification"]
AUGMENTATIONS = {RECIPES[name]().task.augmentation: name for name in CLASSIFIERS}  # each once, with one that has it


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=AUGMENTATIONS.get)
def test_the_augmentation_of_a_recipe_can_be_applied(augmentation):
    model = built(RECIPES["smt_nano_small_images"]())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    transform = training_transform(model, augmentation)
    images = torch.stack([transform(picture) for _ in range(8)])
    assert images.shape == (8, *model.pretrained_cfg["input_size"])
    assert torch.isfinite(images).all()


@pytest.mark.parametrize(("model", "weights"), RELEASED, ids=[f"{model}.{weights.tag}" for model, weights in RELEASED])
def test_a_released_file_has_its_recipe_which_states_its_accuracy(model, weights):
    name = f"{model}_{SUFFIXES[weights.tag]}"
    config, text = RECIPES[name](), RECIPES[name].__doc__
    assert (config.data.image_size or image_size_of(config.model.name)) == weights.image_size
    result = next(line for line in text.splitlines() if line.strip().startswith("Result: "))
    if weights.top1 is None:
        assert "none published" in result
        return
    assert f"{weights.top1:.1f} % top-1" in result
    assert (f"{weights.top5:.1f} % top-5" in result) if weights.top5 else ("top-5" not in result)
    assert weights.source in result
    assert "Not run here." in result


# Images an update, learning rate at that, weight decay, stochastic depth, epochs: as the papers and their code have it.
PUBLISHED = {
    "smt_tiny_imagenet": (1024, 2e-3, 0.05, 0.1, 300),
    "smt_small_imagenet": (1024, 2e-3, 0.05, 0.2, 300),
    "smt_base_imagenet": (1024, 2e-3, 0.05, 0.3, 300),
    "smt_large_imagenet": (1024, 2e-3, 0.05, 0.4, 300),
    "smt_large_imagenet22k": (4096, 1e-3, 0.05, 0.1, 90),
    "smt_large_imagenet_from_22k": (512, 1e-5, 0.05, 0.1, 30),
    "smt_large_imagenet_from_22k_384": (512, 2e-5, 0.05, 0.1, 30),
    "groupmixformer_mobile_imagenet": (1024, 1e-3, 0.05, 0.0, 300),
    "groupmixformer_base_imagenet": (1024, 1e-3, 0.05, 0.4, 300),
    "groupmixformer_large_imagenet": (1024, 1e-3, 0.05, 0.5, 300),
    "groupmixformer_large_imagenet_384": (1024, 1e-5, 1e-8, 0.5, 30),
    "nextvit_small_imagenet": (2048, 2e-3, 0.1, 0.1, 300),
    "nextvit_large_imagenet": (2048, 2e-3, 0.1, 0.2, 300),
    "nextvit_base_imagenet_384": (1024, 1e-5, 1e-8, 0.2, 30),
    "nextvit_base_ssld_imagenet_384": (1024, 1e-5, 1e-8, 0.2, 30),
    "cotnet_50_imagenet": (640, 0.25, 4e-5, 0.1, 350),
    "cotnext_50_imagenet": (512, 0.2, 4e-5, 0.1, 350),
    "cotnet_101_imagenet": (448, 0.175, 6e-5, 0.1, 350),
    "cotnext_101_imagenet": (512, 0.2, 6e-5, 0.1, 350),
    "se_cotnetd_101_imagenet": (512, 0.2, 4e-5, 0.1, 350),
    "se_cotnetd_152_imagenet": (512, 0.2, 4e-5, 0.15, 350),
    "resnet50_das_imagenet": (256, 0.1, 1e-4, 0.0, 100),
    "mobilenetv2_das_imagenet": (96, 0.045, 4e-5, 0.0, 300),
    "resnet18_das_cifar100": (128, 0.1, 5e-4, 0.0, 300),
    "resnet18_das_dogs": (32, 0.1, 1e-4, 0.0, 100),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_batch_rate_decay_depth_and_epochs_are_the_published_ones(name):
    config = RECIPES[name]()
    images = config.data.batch_size * config.loop.accumulation
    lr = config.optimizer.lr * images / (config.optimizer.lr_batch_size or images)
    decay, depth, epochs = config.optimizer.weight_decay, config.model.drop_path_rate, config.schedule.epochs
    assert (images, decay, depth, epochs) == (PUBLISHED[name][0], *PUBLISHED[name][2:])
    assert lr == pytest.approx(PUBLISHED[name][1])


def final_lr(config) -> float:
    """At the end of the schedule, for the recipe's own batch."""
    images = config.data.batch_size * config.loop.accumulation
    return config.schedule.min_lr * images / config.optimizer.lr_batch_size


@pytest.mark.parametrize(
    ("name", "mixup", "warmup", "prefix", "end"),
    [
        ("smt_base_imagenet", 0.2, 5, True, 2e-6),
        ("smt_large_imagenet22k", 0.2, 5, True, 1e-5),
        ("groupmixformer_tiny_imagenet", 0.8, 20, False, 1e-5),
        ("nextvit_small_imagenet", 0.8, 20, False, 1e-5),
        ("cotnet_50_imagenet", 0.8, 5, False, 1e-5),
    ],
)
def test_schedule_and_mixing_are_the_published_ones(name, mixup, warmup, prefix, end):
    config = RECIPES[name]()
    schedule, task = config.schedule, config.task
    assert (task.mixup, task.cutmix, task.mix_probability, task.cutmix_probability) == (
        mixup,
        1.0,
        1.0,
        0.5,
    )
    assert config.task.label_smoothing == 0.1
    assert (schedule.name, schedule.warmup_epochs, schedule.warmup_prefix) == ("cosine", warmup, prefix)
    assert final_lr(config) == pytest.approx(end)


@pytest.mark.parametrize("name", ["smt_tiny_imagenet", "groupmixformer_tiny_imagenet", "nextvit_small_imagenet"])
def test_three_families_share_optimiser_and_augmentation(name):
    config = RECIPES[name]()
    optimizer, augmentation = config.optimizer, config.task.augmentation
    assert (optimizer.name, optimizer.betas, optimizer.eps, optimizer.clip_grad) == ("adamw", (0.9, 0.999), 1e-8, 5.0)
    assert (augmentation.auto_augment, augmentation.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (augmentation.crop_area, augmentation.horizontal_flip, augmentation.color_jitter) == ((0.08, 1.0), 0.5, 0.0)
    assert config.loop.ema_decay is None


def test_cotnet_is_trained_by_nesterovs_momentum_and_averaged():
    config = RECIPES["cotnet_50_imagenet"]()
    optimizer = timm.optim.create_optimizer_v2(nn.Linear(2, 2), config.optimizer.name, lr=1.0, momentum=0.9)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["nesterov"]
    assert (config.model.drop_rate, config.loop.ema_decay, config.loop.ema_warmup) == (0.25, 0.9999, False)
    assert (config.optimizer.clip_grad, config.loop.precision, config.schedule.per_epoch) == (None, "fp32", True)


def test_timms_rand_augment_is_as_strong_as_cotnets_apart_from_what_is_stated():
    operations = rand_augment_transform(cotnet.RAND_AUGMENT, {"translate_pct": 0.45}).ops
    strongest = {op.name: [abs(arg) for arg in op.level_fn(15, op.hparams)] for op in operations if op.level_fn}
    assert all(op.magnitude_max == 15 and op.magnitude == 15 for op in operations)
    assert strongest["Rotate"] == [45]
    assert strongest["ShearX"] == [pytest.approx(0.45)]
    assert strongest["TranslateXRel"] == [pytest.approx(150 / 224, abs=0.01)]
    assert strongest["Color"] == [pytest.approx(2.8)]
    assert strongest["Posterize"] == [6]
    assert strongest["SolarizeAdd"] == [128]
    assert "Cutout" not in {op.name for op in operations}
    assert "Invert" in {op.name for op in operations}


def test_the_rate_of_mobilenet_falls_by_two_percent_an_epoch():
    schedule = RECIPES["mobilenetv2_das_imagenet"]().schedule
    assert schedule.milestones == tuple(range(1, schedule.epochs))
    assert schedule.decay_rate == 0.98


def test_fine_tuning_behind_ssld_starts_from_its_run():
    first, second = RECIPES["nextvit_base_ssld"](), RECIPES["nextvit_base_ssld_imagenet"]()
    assert second.model.pretrained_path == f"{first.output.folder}/last.safetensors"


def test_the_teacher_of_ssld_exists_and_teaches():
    config = RECIPES["nextvit_small_ssld"]()
    teacher_name = config.task.distillation.teacher.removeprefix("timm:")
    expected = timm.get_pretrained_cfg(teacher_name)
    student = built(config).pretrained_cfg
    assert (expected.num_classes, expected.mean, expected.std) == (1000, student["mean"], student["std"])
    teacher = nn.Linear(1, 1)
    teacher.num_classes = 1000
    Classification(1000, config.task, teacher=teacher)
    assert (config.task.distillation.loss, config.task.distillation.unlabelled) == ("js", "unlabelled")


SMALL_IMAGES = [name for name in RECIPES if name.endswith("_small_images")]


def test_small_images_differ_in_the_model_alone():
    assert len(SMALL_IMAGES) == 7
    first, *others = (RECIPES[name]() for name in SMALL_IMAGES)
    for other in others:
        assert replace(other, model=first.model, output=first.output) == first


def small_macs(name: str) -> int:
    return convattn.count(built(RECIPES[f"{name}_small_images"]()), (3, 32, 32)).macs


@pytest.mark.parametrize("name", ["resnet18", "resnet18_dilated"])
def test_the_baselines_for_small_images_cost_what_smt_nano_does(name):
    assert small_macs(name) == pytest.approx(small_macs("smt_nano"), rel=0.1)
    assert f"{small_macs(name) / 1e6:.1f} million multiply-adds" in RECIPES[f"{name}_small_images"].__doc__


def test_the_narrow_gated_network_costs_what_its_recipe_says():
    macs = small_macs("resnet18_das_cifar")
    assert f"make {macs / 1e6:.0f} million" in RECIPES["resnet18_das_cifar_small_images"].__doc__


def test_digits_are_never_mirrored():
    assert RECIPES["smt_nano_digits"]().task.augmentation.horizontal_flip == 0


def test_fine_tuning_uses_what_small_data_needs():
    config = RECIPES["finetune"]()
    assert config.model.pretrained
    assert config.optimizer.layer_decay < 1
    assert config.task.class_weights == "balanced"
    assert 0 < config.loop.freeze_epochs < config.loop.early_stopping < config.schedule.epochs
