import math
import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from torch import nn
from torchvision.transforms import ToPILImage

from convattn.data.augmentation import Augmentation
from convattn.data.transforms import training_transform, transforms_for

STILL = dict(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0), horizontal_flip=0.0)


class Described(nn.Module):
    def __init__(self, **cfg):
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0, "interpolation": "bicubic", **cfg}


@pytest.fixture
def image():
    return ToPILImage()(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))


def draws(image, **fields):
    transform = training_transform(Described(), Augmentation(**{**STILL, **fields}))
    return torch.stack([transform(image) for _ in range(8)])


def test_evaluation_is_timms_transform_for_the_model(image):
    model = Described(input_size=(3, 24, 24), crop_pct=0.75, mean=(0.1, 0.2, 0.3))
    expected = create_transform(**resolve_data_config({}, model=model))
    assert torch.equal(transforms_for(model)(image), expected(image))
    assert transforms_for(model)(image).shape == (3, 24, 24)


@pytest.mark.parametrize("size", [(500, 3), (3, 500), (1001, 10), (400, 400)])
@pytest.mark.parametrize("cfg", [{}, {"input_size": (3, 12, 20)}, {"crop_mode": "squash"}], ids=["", "wide", "squash"])
def test_a_very_long_image_looks_as_timm_makes_it(size, cfg):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    model = Described(crop_pct=0.9, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), **cfg)
    expected = create_transform(**resolve_data_config({}, model=model))(image)
    error = (transforms_for(model)(image) - expected).abs() * 255
    assert error.max() < (1.01 if max(size) > 400 else 0.01)  # a step of 8 bits, of white noise
    assert error.mean() < 0.1


@pytest.mark.parametrize("size", [(10**6, 1), (1, 10**6), (5, 3)])
@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_an_extreme_image_takes_no_memory_and_keeps_its_colour(size, crop_mode, monkeypatch):
    largest = 0
    resize = Image.Image.resize

    def watched(self, *args, **kwargs):
        nonlocal largest
        resized = resize(self, *args, **kwargs)
        largest = max(largest, resized.width * resized.height)
        return resized

    monkeypatch.setattr(Image.Image, "resize", watched)
    model = Described(crop_mode=crop_mode, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = Image.new("RGB", size, (255, 0, 51))
    for transform in (
        transforms_for(model),
        training_transform(model, Augmentation()),
        training_transform(model, Augmentation(**STILL)),
    ):
        seen = transform(image)
        assert seen.shape == (3, 16, 16)
        assert torch.allclose(seen.amax((1, 2)), torch.tensor([1.0, 0.0, 0.2]), atol=0.01)
    assert largest < 100_000


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 2)])
def test_an_image_of_few_pixels_is_not_black(size):
    model = Described(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    transform = training_transform(model, Augmentation(crop_area=(0.001, 1.0)))
    seen = torch.stack([transform(Image.new("RGB", size, "white")) for _ in range(30)])
    assert seen.min() == 1.0


def test_with_everything_off_training_sees_the_image_as_evaluation_does(image):
    assert torch.allclose(draws(image), transforms_for(Described())(image).expand(8, 3, 16, 16))


@pytest.mark.parametrize(
    "fields",
    [
        dict(crop_area=(0.3, 0.6)),
        dict(crop_aspect=(0.5, 2.0), crop_area=(0.5, 0.5)),
        dict(horizontal_flip=0.5),
        dict(rotation=30.0),
        dict(shift=0.3),
        dict(zoom=(0.5, 1.5)),
        dict(color_jitter=0.4),
        dict(auto_augment="rand-m9-mstd0.5-inc1"),
        dict(random_erasing=1.0),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_field_varies_the_image(image, fields):
    images = draws(image, **fields)
    assert len({tuple(one.flatten().tolist()) for one in images}) > 1


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        # A white image stays white but where something is laid over it, and what that is tells when it was done.
        (dict(crop_area=(0.3, 0.6)), {1.0}),
        (dict(crop_aspect=(0.5, 2.0), crop_area=(0.5, 0.5)), {1.0}),
        (dict(horizontal_flip=0.5), {1.0}),
        (dict(rotation=30.0), {0.0, 1.0}),  # black corners of the image, not the grey of a normalised zero
        (dict(shift=0.5), {0.0, 1.0}),
        (dict(zoom=(0.5, 0.8)), {0.0, 1.0}),
        (dict(auto_augment="rand-m9-n1-mstd0-inc1"), None),
        (dict(color_jitter=0.4), None),
        (dict(random_erasing=1.0), None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_images_are_varied_before_they_are_normalised(fields, allowed):
    mean, std = (0.25, 0.5, 0.75), (0.1, 0.2, 0.4)
    model = Described(mean=mean, std=std)
    transform = training_transform(model, Augmentation(**{**STILL, **fields}))
    shape = (3, 1, 1)
    seen = torch.stack([transform(Image.new("RGB", (16, 16), "white")) for _ in range(8)])
    pixels = seen * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    if "random_erasing" in fields:  # last of all: normal noise in the model's own units
        erased = seen[(pixels - 1).abs() > 1e-4]
        assert len(erased) > 100
        assert erased.mean().abs() < 0.2
        assert abs(erased.std() - 1) < 0.2
        return
    assert pixels.min() > -1e-4
    assert pixels.max() < 1 + 1e-4
    steps = pixels * 255
    assert (steps - steps.round()).abs().max() < 1e-3  # each is still one of 256 steps, as in the file
    if allowed is not None:
        inside = pixels[((pixels - 1).abs() > 1e-4) & (pixels.abs() > 1e-4)]
        assert len(inside) < 0.2 * pixels.numel()  # the blend along an edge
        assert ((pixels.abs() < 1e-4).sum() > 20) == (0.0 in allowed)


POLICIES = [
    "rand-m9-mstd0.5-inc1",  # of the recipes
    "rand-m9-mstd0.5",
    "rand-m15-mmax15-inc1",
    "rand-m15-mmax15-mstd0.5-n2",  # of CoTNet's
    "rand-m9-tweights-inc1",
    "rand-m9-t3a",
    "rand-m9-t3aw",
    "augmix-m5",
    "augmix-m5-b1",
    "original",
    "originalr",
    "v0-mstd0.5",
    "v0r",
    "3a",
]


def operations_of(policy: str) -> list:
    parts = training_transform(Described(), Augmentation(**STILL, auto_augment=policy)).transforms
    chosen = next(part for part in parts if isinstance(part, AutoAugment | RandAugment | AugMixAugment))
    return [*chain.from_iterable(chosen.policy)] if isinstance(chosen, AutoAugment) else chosen.ops


@pytest.mark.parametrize("policy", POLICIES)
def test_every_operation_of_a_policy_can_be_applied_at_every_strength(image, policy):
    kept = {}  # bits: images
    for operation in operations_of(policy):
        operation.prob, operation.magnitude_std = 1.0, 0.0
        for strength in range(2 * int(operation.magnitude_max or 10) + 1):
            operation.magnitude = strength / 2
            varied = operation(image)
            assert (varied.mode, varied.size) == ("RGB", image.size), (operation, strength)
            if operation.name.startswith("Posterize"):
                kept[operation.level_fn(operation.magnitude, operation.hparams)[0]] = np.asarray(varied)
    if policy not in ("rand-m9-t3a", "3a"):
        assert len(kept) > 4
    for bits, varied in kept.items():
        dropped = 2 ** max(8 - bits, 0) - 1  # as Pillow wrote it before it asked for a bit at least
        assert np.array_equal(varied, np.asarray(image) & ~np.uint8(min(dropped, 255))), bits


@pytest.mark.parametrize("policy", POLICIES)
def test_a_transform_with_a_policy_goes_to_another_process(image, policy):
    transform = training_transform(Described(), Augmentation(**STILL, auto_augment=policy))
    assert pickle.loads(pickle.dumps(transform))(image).shape == (3, 16, 16)


def test_a_certain_flip_mirrors(image):
    assert torch.equal(draws(image, horizontal_flip=1.0)[0], draws(image)[0].flip(-1))


def test_an_input_that_is_not_square_keeps_its_shape(image):
    model = Described(input_size=(3, 12, 20))
    assert training_transform(model, Augmentation(rotation=5))(image).shape == (3, 12, 20)
    assert transforms_for(model)(Image.new("RGB", (50, 40))).shape == (3, 12, 20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(horizontal_flip=1.5), r"horizontal_flip 1.5 must be between 0 and 1"),
        (dict(crop_area=(0.9, 0.1)), r"crop_area 0.9 to 0.1 must be positive, finite and rising"),
        (dict(crop_area=(0.5, 2.0)), r"crop_area up to 2.0 must stay within the image"),
        (dict(rotation=200), r"rotation 200 must be between 0 and 180 degrees"),
        (dict(color_jitter=-1), r"color_jitter -1 must be between 0 and 1"),
        (
            dict(color_jitter=0.4, auto_augment="rand-m9"),
            r"color_jitter 0.4 has no effect beside auto_augment 'rand-m9'",
        ),
        (dict(auto_augment="m9"), r"auto_augment 'm9' is unknown; write for example rand-m9"),
        (dict(auto_augment="rand-m9-foo3"), r"auto_augment 'rand-m9-foo3' is unknown"),
        (dict(auto_augment="random"), r"auto_augment 'random' is unknown"),
        (dict(zoom=(1.0, math.inf)), r"zoom 1.0 to inf must be positive, finite and rising"),
        (dict(color_jitter=50.0), r"color_jitter 50.0 must be between 0 and 1"),
    ],
)
def test_values_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)
