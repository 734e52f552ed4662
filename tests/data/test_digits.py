from collections import Counter

import numpy as np
import pytest

from convattn.data.dataset import DataError
from convattn.data.digits import open_digits


def test_the_splits_are_disjoint_complete_and_stratified():
    splits = {name: open_digits(name, 8) for name in ("train", "val", "test")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 1257, "val": 180, "test": 360}
    paths = [path for split in splits.values() for path in split.paths]
    assert len(set(paths)) == 1797
    for split in splits.values():
        shares = [count / len(split) for count in Counter(split.labels).values()]
        assert len(shares) == 10
        assert max(shares) - min(shares) < 0.012  # classes have 174 to 183 images: 0.5 % apart, and rounding


def test_the_splits_are_the_same_every_time():
    assert open_digits("test").paths == open_digits("test").paths


def test_images_are_the_digits_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = load_digits()
    train = open_digits("train", 8)
    index = int(train.paths[5].rpartition("/")[2])
    assert train.labels[5] == digits.target[index]
    pixels = np.asarray(train.read(5))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels[..., 0] - digits.images[index] * 255 / 16).max() <= 0.5


def test_images_have_the_size_asked_for():
    assert open_digits("val", 24).read(0).size == (24, 24)


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(DataError, match=r"unknown split 'valid'; choose one of train, val, test"):
        open_digits("valid")
