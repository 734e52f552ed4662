"""Images are prepared as each record's authors evaluate: sizes as in their code, pixels as Pillow makes them."""

import numpy as np
import pytest
import torch
from PIL import Image

import convattn
from convattn.data.transforms import transforms_for
from convattn.weights.records import OFFICIAL_WEIGHTS

PHOTO = (613, 407)  # width, height: odd, and no factor fits both

# (family, input size) -> side that the shorter one is resized to; None: straight to the square, whatever the shape.
# SMT: int(256 / 224 · size), and 384 without keeping the aspect ratio. Next-ViT: int(256 / 224 · size) = 438 at 384.
# GroupMixFormer: 256. CoTNet: floor(size / crop) with crop 0.875 at 224, 0.888 at 256, 0.909 at 320.
RESIZED = {
    ("smt", 224): 256,
    ("smt", 384): None,
    ("groupmixformer", 224): 256,
    ("nextvit", 224): 256,
    ("nextvit", 384): 438,
    ("cotnet", 224): 256,
    ("cotnext", 224): 256,
    ("se", 224): 256,
    ("se", 256): 288,
    ("se", 320): 352,
}
RECORDS = [(name, record) for name, records in OFFICIAL_WEIGHTS.items() for record in records]
ONE_OF_EACH = {(name.partition("_")[0], record.image_size): f"{name}.{record.tag}" for name, record in RECORDS}


def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (PHOTO[1], PHOTO[0], 3), dtype=np.uint8))


def as_the_authors(image, size, resized):
    """Resize, centre crop, and ImageNet's mean and standard deviation, by Pillow and numpy alone."""
    if resized is None:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    else:
        width, height = image.size
        assert height < width
        image = image.resize((int(resized * width / height), resized), Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.float32) / 255
    normal = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return torch.from_numpy(normal).permute(2, 0, 1)


@pytest.mark.parametrize(("family", "size"), RESIZED)
def test_images_are_prepared_as_the_authors_evaluate(family, size):
    with torch.device("meta"):
        model = convattn.create_model(ONE_OF_EACH[family, size])
    want = as_the_authors(photo(), size, RESIZED[family, size])
    got = transforms_for(model)(photo())
    assert got.shape == want.shape == (3, size, size)
    assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("name", "record"), RECORDS, ids=[f"{name}.{record.tag}" for name, record in RECORDS])
def test_every_record_states_the_sizes_of_its_family(name, record):
    resized = RESIZED[name.partition("_")[0], record.image_size]
    if resized is None:
        assert (record.crop_mode, record.crop_ratio) == ("squash", 1.0)
    else:
        assert (record.crop_mode, int(record.image_size / record.crop_ratio)) == ("center", resized)
