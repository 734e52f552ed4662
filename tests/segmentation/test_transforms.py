"""The steps against the golden file, and whole transforms against naive loops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convattn.data.loader import SeededSamples, TrainingLoader
from convattn.segmentation.options import IGNORED, SegmentationOptions
from convattn.segmentation.transforms import (
    evaluation_transform,
    is_varied,
    nearest_places,
    normalised,
    padded,
    random_crop,
    resized,
    resized_part,
    size_within,
    training_transform,
)
from segmentation_golden import load_golden

GOLDEN = load_golden("pipeline")
IMAGE, LABEL = GOLDEN.given("rgb").permute(2, 0, 1), GOLDEN.given("label")
SIZES = GOLDEN.meta["resize_sizes"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = SegmentationOptions(scale=None, scale_range=(1.0, 1.0), category_cap=1.0, flip=0.0, photometric=False)


@pytest.mark.parametrize("index", range(len(SIZES)))
def test_images_and_labels_are_resized_as_by_the_reference(index):
    size = SIZES[index]
    image = resized(IMAGE, size).permute(1, 2, 0)
    assert GOLDEN.error(f"resized{index}", image) * float(GOLDEN.arrays[f"resized{index}_peak"]) <= 1
    rows, columns = (nearest_places(old, new) for old, new in zip(LABEL.shape, size, strict=True))
    assert GOLDEN.error(f"resized_label{index}", LABEL[rows][:, columns]) < 1e-9


def test_sizes_within_a_scale_are_the_references():
    rows = GOLDEN.arrays["rescale_sizes_value"].reshape(-1, 5)
    assert len(rows) == 64
    for height, width, ratio, *want in rows.tolist():
        assert [*size_within(int(height), int(width), (int(2048 * ratio), int(512 * ratio)))] == want


def test_the_short_side_follows_the_scale_unless_the_long_one_would_pass_it():
    assert size_within(480, 640, (2048, 512)) == (512, 683)
    assert size_within(640, 480, (512, 2048)) == (683, 512)
    assert size_within(300, 3000, (2048, 512)) == (205, 2048)
    assert size_within(1, 100_000, (2048, 512)) == (1, 2048)


def test_windows_are_accepted_as_by_the_reference():
    label, side, cap = GOLDEN.given("crop_label"), GOLDEN.meta["crop"], GOLDEN.meta["cap"]
    accepted = [is_varied(label[y : y + side, x : x + side], cap) for y, x in GOLDEN.arrays["in_crop_windows"]]
    assert GOLDEN.error("crop_accepted", accepted) < 1e-9
    assert 0 < sum(accepted) < len(accepted)


def test_nothing_but_ignored_pixels_or_one_class_is_not_varied():
    assert not is_varied(torch.full((4, 4), IGNORED, dtype=torch.uint8), 0.75)
    half = torch.tensor([[3, 3, IGNORED, IGNORED]], dtype=torch.uint8)
    assert not is_varied(half, 0.75)
    assert not is_varied(torch.tensor([[3, 3, 3, 4]], dtype=torch.uint8), 0.75)
    assert is_varied(torch.tensor([[3, 3, 4, IGNORED]], dtype=torch.uint8), 0.75)


def test_normalised_and_padded_are_the_references():
    assert GOLDEN.error("normalised", normalised(IMAGE, MEAN, STD).permute(1, 2, 0)) < 1e-6
    below, right = GOLDEN.meta["pad"]
    size = IMAGE.shape[1] + below, IMAGE.shape[2] + right
    assert GOLDEN.error("padded", padded(IMAGE, size, 0).permute(1, 2, 0)) < 1e-9
    assert GOLDEN.error("padded_label", padded(LABEL, size, IGNORED)) < 1e-9


def test_labels_take_the_pixel_that_double_precision_says():
    old, new = 300, 430  # where float32 takes another one
    want = [min(math.floor(at * (1 / (new / old))), old - 1) for at in range(new)]
    assert nearest_places(old, new).tolist() == want
    other = torch.nn.functional.interpolate(torch.arange(old)[None, None].double().float(), new, mode="nearest")
    assert other.flatten().tolist() != want


sides = st.integers(1, 60)


@settings(max_examples=60)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.data())
def test_a_window_of_a_resized_picture_is_that_of_the_whole_one(old, new, data):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    height, width = (data.draw(st.integers(1, side)) for side in new)
    top, left = data.draw(st.integers(0, new[0] - height)), data.draw(st.integers(0, new[1] - width))
    part = resized_part(Image.fromarray(pixels), new, (top, left, height, width))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert torch.equal(part, resized(image, new)[:, top : top + height, left : left + width])
    exact = torch.nn.functional.interpolate(image[None].double(), new, mode="bilinear")[0]
    assert (part - exact[:, top : top + height, left : left + width]).abs().max() <= 1 + 1e-9


def test_crops_begin_anywhere_and_are_the_resized_label_map():
    labels = np.random.default_rng(0).integers(0, 5, (6, 7), dtype=np.uint8)
    torch.manual_seed(0)
    whole = labels[np.floor(np.arange(9) * (1 / (9 / 6))).astype(int)][:, np.floor(np.arange(10) * 0.7).astype(int)]
    corners = set()
    for _ in range(300):
        (top, left, height, width), seen = random_crop(labels, (9, 10), 8, 1.0)
        assert (height, width) == (8, 8)
        assert np.array_equal(seen.numpy(), whole[top : top + 8, left : left + 8])
        corners.add((top, left))
    assert corners == {(top, left) for top in (0, 1) for left in (0, 1, 2)}


def test_a_crop_of_one_class_is_drawn_anew_ten_times(monkeypatch):
    from convattn.segmentation import transforms

    looked = []
    monkeypatch.setattr(transforms, "is_varied", lambda seen, cap: looked.append(seen) or False)
    labels = np.zeros((20, 20), dtype=np.uint8)
    random_crop(labels, (20, 20), 4, 0.75)
    assert len(looked) == 10
    random_crop(labels, (20, 20), 4, 1.0)
    assert len(looked) == 10
    monkeypatch.setattr(transforms, "is_varied", lambda seen, cap: looked.append(seen) or True)
    random_crop(labels, (20, 20), 4, 0.75)
    assert len(looked) == 11


def test_crops_of_many_classes_are_preferred():
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[:, 30:] = 1  # 3 of 33 places across have at most three quarters of one class
    torch.manual_seed(0)
    crops = [[random_crop(labels, (40, 40), 8, cap)[1] for _ in range(300)] for cap in (0.75, 1.0)]
    preferred, any_ = (sum(is_varied(seen, 0.75) for seen in drawn) / 300 for drawn in crops)
    assert abs(preferred - (1 - (30 / 33) ** 11)) < 0.08
    assert abs(any_ - 3 / 33) < 0.06


def test_without_any_variation_the_whole_picture_comes_out_normalised():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, (5, 7), dtype=np.uint8)
    image, target = training_transform(PLAIN, 8, MEAN, STD)(Image.fromarray(pixels), labels)
    assert (image.shape, image.dtype, target.shape, target.dtype) == ((3, 8, 8), torch.float32, (8, 8), torch.uint8)
    want = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    torch.testing.assert_close(image[:, :5, :7], want, rtol=1e-5, atol=1e-5)
    assert torch.equal(target[:5, :7], torch.from_numpy(labels))
    assert not image[:, 5:].any()
    assert not image[:, :, 7:].any()
    assert (target[5:] == IGNORED).all()
    assert (target[:, 7:] == IGNORED).all()


def test_image_and_labels_are_cropped_and_mirrored_together():
    labels = np.arange(13 * 17, dtype=np.uint8).reshape(13, 17)
    picture = Image.fromarray(np.stack([labels] * 3, -1))  # the image shows the labels
    mirrored = set()
    torch.manual_seed(0)
    for _ in range(20):
        image, target = training_transform(replace(PLAIN, flip=0.5), 8, (0,) * 3, (1 / 255,) * 3)(picture, labels)
        assert torch.equal(image[0].round().byte(), target)
        mirrored.add(bool(target[0, 0] > target[0, 1]))
    assert mirrored == {True, False}


def test_image_and_labels_are_scaled_together():
    labels = (np.arange(24)[:, None] // 8 * 3 + np.arange(24) // 8).astype(np.uint8)  # nine squares
    picture = Image.fromarray(np.stack([labels * 20] * 3, -1))
    sizes = set()
    torch.manual_seed(0)
    for _ in range(40):
        options = replace(PLAIN, scale_range=(0.5, 2.0), scale=(100, 24))
        image, target = training_transform(options, 48, (0,) * 3, (1 / 255,) * 3)(picture, labels)
        known = target != IGNORED
        sizes.add(int(known[:, 0].sum()))
        off = (image[0] - 20.0 * target)[known].abs() > 1  # where neighbours are mixed, beside the edges of squares
        assert off.float().mean() < 0.4
        assert not image[0][~known].any()
    assert min(sizes) < 16
    assert max(sizes) > 40


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 200)])
def test_pictures_of_any_shape_are_taken(size):
    picture = Image.new("RGB", size[::-1], (10, 200, 30))
    labels = np.ones(size, dtype=np.uint8)
    for options in (SegmentationOptions(), SegmentationOptions(scale=None)):
        image, target = training_transform(options, 16, MEAN, STD)(picture, labels)
        assert (image.shape, target.shape) == ((3, 16, 16), (16, 16))
        assert torch.isfinite(image).all()
    image, target = evaluation_transform((64, 16), MEAN, STD)(picture, labels)
    assert tuple(target.shape) == size
    assert min(image.shape[1:]) >= 1


def test_evaluation_resizes_the_picture_alone():
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image, target = evaluation_transform((100, 10), MEAN, STD)(picture, labels)
    assert image.shape == (3, 10, 15)
    assert np.array_equal(target.numpy(), labels)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    again, nothing = evaluation_transform((100, 10), MEAN, STD)(pixels, None)
    assert nothing is None
    assert torch.equal(image, again)
    assert torch.equal(evaluation_transform(None, MEAN, STD)(picture, None)[0], normalised(pixels, MEAN, STD))


class Pictures:
    paths = tuple(f"{index}.png" for index in range(6))

    def __len__(self):
        return 6

    def read(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def target(self, index):
        return np.random.default_rng(100 + index).integers(0, 4, (20, 24), dtype=np.uint8)


def test_a_sample_depends_on_its_key_alone():
    transform = training_transform(SegmentationOptions(scale=None), 16, MEAN, STD)
    alone = SeededSamples(Pictures(), transform, seed=3)
    for workers in (0, 1):
        loader = TrainingLoader(SeededSamples(Pictures(), transform, seed=3), 2, workers=workers, seed=3)
        for batch in loader.batches(1):
            for image, target, path in zip(batch.images, batch.targets, batch.paths, strict=True):
                sample = alone.__getitems__([(1, 0, int(path[:-4]))])[0]
                assert torch.equal(image, sample.image)
                assert torch.equal(target, sample.target)
    first, other = (alone.__getitems__([(epoch, 0, 0)])[0] for epoch in (0, 1))
    assert not torch.equal(first.image, other.image)


def test_neither_python_nor_numpy_is_drawn_from():
    import random

    transform = training_transform(SegmentationOptions(scale=None), 16, MEAN, STD)
    images = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(7)
        images.append(transform(Pictures().read(0), Pictures().target(0)))
    assert torch.equal(images[0][0], images[1][0])
    assert torch.equal(images[0][1], images[1][1])
