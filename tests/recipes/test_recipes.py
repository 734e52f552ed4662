import pytest

from convattn.backbones.registry import list_models
from convattn.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_a_model_and_tells_its_command(name):
    config = RECIPES[name]()
    assert config.model.name in list_models()
    assert config.output.folder == f"runs/{name}"
    text = RECIPES[name].__doc__
    assert "Command: `convattn train" in text
    assert "Result: " in text


@pytest.mark.parametrize(("size", "drop_path"), [("tiny", 0.1), ("small", 0.2), ("base", 0.3)])
def test_the_authors_recipe_is_theirs(size, drop_path):
    config = RECIPES[f"smt_{size}_imagenet"]()
    assert config.model.drop_path_rate == drop_path
    assert config.data.batch_size * config.loop.accumulation == 1024  # so a rate of 2e-3
    optimizer, schedule, data = config.optimizer, config.schedule, config.data
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch_size, optimizer.weight_decay) == ("adamw", 1e-3, 512, 0.05)
    assert (optimizer.betas, optimizer.eps, optimizer.clip_grad) == ((0.9, 0.999), 1e-8, 5.0)
    assert (schedule.epochs, schedule.warmup_epochs, schedule.warmup_lr, schedule.min_lr) == (300, 5, 1e-7, 1e-6)
    assert schedule.warmup_prefix
    assert (data.mixup, data.cutmix, data.mix_probability, data.cutmix_probability) == (0.2, 1.0, 1.0, 0.5)
    augmentation = data.augmentation
    assert (augmentation.auto_augment, augmentation.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert (augmentation.crop_area, augmentation.horizontal_flip, augmentation.color_jitter) == ((0.08, 1.0), 0.5, 0.0)
    assert config.loop.label_smoothing == 0.1
    assert config.loop.ema_decay is None


def test_digits_are_never_mirrored():
    assert RECIPES["smt_nano_digits"]().data.augmentation.horizontal_flip == 0
