import io

import torch
from PIL import Image
from torch import nn

import convattn
from convattn.classification.gallery import choose_samples, gallery


class Squares:
    """Four plain images of two classes."""

    classes = ("dark", "bright")
    labels = (0, 1, 0, 1)
    paths = ("a", "b", "c", "d")

    def __len__(self):
        return 4

    def read(self, index):
        return Image.new("RGB", (32, 32), (200, 100, 50) if self.labels[index] else (10, 20, 30))


def test_mistakes_come_first_then_one_right_image_of_each_class():
    probabilities = torch.tensor([[0.4, 0.6], [0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]])
    labels = torch.tensor([0, 0, 1, 1, 0, 0])  # wrong: 0 (0.6), 3 (0.8), 5 (0.9)
    confidences, predicted = probabilities.max(dim=1)
    assert choose_samples(confidences, predicted, labels) == [5, 3, 0, 1, 2]
    assert choose_samples(confidences, predicted, labels, most_wrong=1) == [5, 1, 2]


def test_of_many_classes_some_are_shown():
    many = torch.arange(1000)
    assert choose_samples(torch.ones(1000), many, many) == list(range(0, 1000, 50))


def test_a_network_without_maps_is_shown_without_heat():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    model.num_classes, model.pretrained_cfg = 2, {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    found = gallery(model, Squares(), [1], Squares.classes)
    assert "Without heat maps: Sequential does not say what its last level is" in found.intro
    ((image, _), (overlay, _)) = found.items[0].pictures
    assert image == overlay


def test_items_show_what_the_model_saw_and_said():
    torch.manual_seed(0)
    model = convattn.create_model("smt_nano", num_classes=2, dims=(8, 16, 16, 16), depths=(1, 1, 2, 1)).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32), "crop_pct": 1.0}
    found = gallery(model, Squares(), [1, 2], Squares.classes)
    item, other = found.items
    shown, overlay = (Image.open(io.BytesIO(image)) for image, _ in item.pictures)
    assert shown.size == (192, 192)
    assert max(abs(a - b) for a, b in zip(shown.getpixel((96, 96)), (200, 100, 50), strict=True)) <= 1
    assert overlay.size == (192, 192)
    assert (item.pictures[0][1], item.name, other.pictures[0][1], other.name) == ("bright", "b", "dark", "c")
    for each, true in ((item, "bright"), (other, "dark")):
        assert each.said in Squares.classes
        assert each.is_right is (each.said == true)
        assert each.truth == ("" if each.is_right else true)
        assert each.share >= 0.5
    assert found.intro.endswith("then images that are right, each the first of its class.")
    assert gallery(model, Squares(), [], Squares.classes).items == ()
