import math

import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn
from torchvision.transforms import ToPILImage

from convattn.data.transforms import Augmentation, training_transform, transforms_for

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
