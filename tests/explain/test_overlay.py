import numpy as np
import pytest
import torch
from PIL import Image

from convattn.explain.overlay import overlay


def test_cold_places_keep_the_image_and_hot_ones_are_tinted():
    image = Image.new("RGB", (4, 2), (10, 200, 90))
    heat = torch.zeros(2, 4)
    heat[:, 2:] = 1
    tinted = np.asarray(overlay(image, heat))
    assert tinted.shape == (2, 4, 3)
    assert (tinted[:, :2] == (10, 200, 90)).all()
    # 0.28 of the image and 0.72 of the last colour of inferno, (252, 255, 164)
    assert np.abs(tinted[:, 2:].astype(int) - (184, 240, 143)).max() <= 1


def test_heat_takes_the_size_of_the_image_and_grey_images_become_colour():
    image = Image.new("L", (50, 30), 128)
    tinted = overlay(image, torch.eye(8))
    assert (tinted.mode, tinted.size) == ("RGB", (50, 30))


def test_more_than_one_map():
    with pytest.raises(ValueError, match=r"heat has shape \(2, 8, 8\); expected one map \(H, W\)"):
        overlay(Image.new("L", (8, 8)), torch.zeros(2, 8, 8))
