from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from convattn.segmentation import windows
from convattn.segmentation.looking import Look
from convattn.segmentation.options import EvaluationOptions
from convattn.segmentation.room import ROOM
from convattn.segmentation.windows import image_logits, label_bands, places, resized_bands, window_bands
from convattn.task import Batch
from segmentation_golden import image, load_golden

CASES = range(len(load_golden("slide").meta["cases"]))


def network(golden, stride):
    conv = nn.Conv2d(3, 4, 3, stride, 1).double().requires_grad_(False)
    conv.load_state_dict({name.removeprefix("conv."): tensor for name, tensor in golden.state().items()})

    def run(images):
        return F.interpolate(conv(images), images.shape[-2:], mode="bilinear", align_corners=False)

    return run


def look(net, window=None, step=None):
    class Net(nn.Module):
        def forward(self, images):
            return net(images)

    return Look(Net(), 4, window or (10**6, 10**6), step or (1, 1), always=window is not None)


@pytest.fixture(scope="module")
def golden():
    return load_golden("slide")


@pytest.mark.parametrize("case", CASES)
def test_windows_give_the_references_numbers(golden, case):
    sizes = golden.meta["cases"][case]
    images = image(sizes["batch"], *sizes["image"], golden.salt)
    window, step = (tuple(sizes[key]) if sizes[key] else None for key in ("crop", "stride"))
    seen, size = look(network(golden, golden.meta["net_stride"]), window, step), tuple(sizes["original"])
    logits = seen.logits(images)
    rescaled = torch.cat([*resized_bands(logits, size)], dim=2)
    labels = torch.cat([*seen.labels(images, size)], dim=1)
    assert golden.error(f"case{case}_logits", logits) < 1e-12
    assert golden.error(f"case{case}_rescaled", rescaled) < 1e-12
    assert golden.error(f"case{case}_probability", rescaled.softmax(1)) < 1e-12
    assert golden.error(f"case{case}_prediction", labels) == 0


def test_several_sizes_and_mirrors_are_averaged_as_the_reference_does():
    golden = load_golden("augment")
    seen, size = look(network(golden, 2)), tuple(golden.meta["original"])
    views = [image(1, *view, golden.salt) for view in golden.meta["sizes"]]
    found = seen.probabilities(views, size, flip=True)
    assert golden.error("probability", found) < 1e-12
    assert golden.error("prediction", found.argmax(1)) == 0
    assert golden.error("probability_first", seen.probabilities(views[:1], size, flip=False)) < 1e-12


@pytest.mark.parametrize(
    ("side", "window", "step", "want"),
    [
        (10, 4, 3, [(0, 4), (3, 7), (6, 10)]),
        (11, 4, 3, [(0, 4), (3, 7), (6, 10), (7, 11)]),  # the last is moved back
        (3, 4, 3, [(0, 3)]),  # a shorter one, nothing is added
        (4, 4, 3, [(0, 4)]),
        (5, 4, 4, [(0, 4), (1, 5)]),
    ],
)
def test_where_windows_lie(side, window, step, want):
    assert places(side, window, step) == want


@pytest.mark.parametrize("size", [(40, 33), (17, 60), (90, 91), (20, 24), (1, 1)])
def test_bands_join_to_what_one_resize_gives(monkeypatch, size):
    monkeypatch.setattr(windows, "_AT_ONCE", 700)
    logits = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bands = [*resized_bands(logits, size)]
    want = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    assert (torch.cat(bands, dim=2) - want).abs().max() < 1e-12
    assert len(bands) > 1 or size in ((20, 24), (1, 1))


def test_windows_of_an_average_are_averaged_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 23, 19, generator=generator, dtype=torch.float64)

    def net(part):  # depends on the place in the window, so that an average is none by chance
        return part * torch.linspace(0, 1, part.shape[-1], dtype=part.dtype)

    total, counts = torch.zeros_like(images), torch.zeros(23, 19)
    for top, bottom in places(23, 8, 5):
        for left, right in places(19, 7, 3):
            total[:, :, top:bottom, left:right] += net(images[:, :, top:bottom, left:right])
            counts[top:bottom, left:right] += 1
    assert torch.equal(image_logits(net, images, (8, 7), (5, 3)), total / counts)
    assert torch.equal(image_logits(net, images, None, (5, 3)), net(images))


def test_labels_come_in_bands_that_hold_no_more_than_a_window(golden):
    net, shapes = network(golden, 2), []
    images = image(1, 64, 40, golden.salt)

    def watched(part):
        shapes.append(part.shape[-2:])
        return net(part)

    bands = [*label_bands(watched, images, (64, 40), (16, 16), (11, 11))]
    assert {*shapes} == {(16, 16)}
    assert len(bands) > 3
    assert len({band.data_ptr() for band in window_bands(net, images, (16, 16), (5, 11))}) == 1  # nothing is held twice
    assert torch.equal(torch.cat(bands, dim=1), image_logits(net, images, (16, 16), (11, 11)).argmax(1).to(torch.uint8))


def test_a_file_of_one_size_sees_a_border_where_a_picture_is_smaller_and_nothing_of_it_is_left():
    sizes = []

    class Net(nn.Module):
        def forward(self, images):
            sizes.append(images.shape[-2:])
            return images

    images = torch.randn(1, 3, 10, 30)
    seen = Look(Net(), 3, (16, 16), (8, 8), fixed=True)
    assert torch.allclose(seen.logits(images), images)
    assert {*sizes} == {(16, 16)}


def test_classes_instead_of_logits_vote():
    class Net(nn.Module):
        def forward(self, images):
            return images.argmax(1)

    images = torch.randn(1, 3, 20, 20)
    seen = Look(Net(), 3, (8, 8), (5, 5), always=True)
    assert torch.equal(torch.cat([*seen.labels(images, (20, 20))], dim=1), images.argmax(1).to(torch.uint8))


class Seeing(nn.Module):
    """Notes the sizes of what it sees, and takes the three colours for classes."""

    num_classes = 3

    def __init__(self, scale):
        super().__init__()
        self.pretrained_cfg = dict(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, scale=scale)
        self.sizes = []

    def forward(self, images):
        assert images.dtype == torch.float32
        self.sizes.append(tuple(images.shape[-2:]))
        return images


@pytest.mark.parametrize(
    ("scale", "size", "ratios", "want"),
    [
        (None, (20, 30), (0.5, 2.0), [(10, 15), (40, 60)]),
        ((90, 40), (20, 30), (0.5, 2.0), [(20, 30), (80, 120)]),
        (None, (20, 30), (0.5,), [(10, 15)]),
        (None, (1024, 1024), (1.0, 1.25), [(1024, 1024), (1280, 1280)]),  # whole at every size
        (None, (1100, 1000), (1.0,), [(64, 64)]),
    ],
)
def test_scales_multiply_the_size_at_which_an_image_is_seen(scale, size, ratios, want):
    model, options = Seeing(scale), EvaluationOptions(scales=ratios)
    picture = Image.new("RGB", size[::-1], (10, 200, 30))
    image, labels = ROOM.evaluation_transform(model, options)(picture, np.ones(size, np.uint8))
    meter = ROOM.examine(model, SimpleNamespace(classes="abc"), "", options)
    (found,) = meter.run(model, Batch(image[None], labels[None], ["picture"]))
    assert [*dict.fromkeys(model.sizes)] == want
    assert found.shape == size and (found == 1).all()
