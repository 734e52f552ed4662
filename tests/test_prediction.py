"""`convattn.predict`: pictures from wherever they are, one prediction each, in their order."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.segmentation.room import ROOM as SEGMENTATION
from tiny_runs import write_pictures


class Brightness(nn.Module):
    """Two classes: how dark a picture is, and how bright."""

    num_classes = 2

    def __init__(self, names=("dark", "bright")):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(20.0))
        self.pretrained_cfg = dict(
            input_size=(3, 16, 16), crop_pct=1.0, interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        )
        self.pretrained_cfg["label_names"] = names
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        bright = self.gain * (images.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-bright, bright], dim=1)


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures", train=1, val=2) / "val"


@pytest.fixture
def model():
    return Brightness()


def said(model, pictures, **options):
    return [each.names[0] for each in convattn.predict(model, pictures, **options)]


def test_files_folders_patterns_and_lists_are_taken(model, pictures, tmp_path, monkeypatch):
    dark, bright = pictures / "dark" / "000.png", pictures / "bright" / "001.png"
    assert said(model, dark) == ["dark"]
    assert said(model, str(bright)) == ["bright"]
    assert said(model, pictures) == ["bright", "bright", "dark", "dark"]
    assert said(model, f"{pictures}/*/000.png") == ["bright", "dark"]
    assert said(model, [pictures / "dark", bright]) == ["dark", "dark", "bright"]
    monkeypatch.chdir(tmp_path)
    for name, text in (("list.txt", "{}\n{}\n"), ("list.csv", "path\n{}\n{}\n")):
        (tmp_path / name).write_text(text.format(dark, bright))
        assert said(model, tmp_path / name) == ["dark", "bright"]


def test_pictures_in_memory_are_taken(model, pictures):
    picture = Image.open(pictures / "bright" / "000.png")
    array = np.asarray(picture)
    assert said(model, picture) == said(model, array) == ["bright"]
    assert said(model, np.stack([array, np.zeros_like(array)])) == ["bright", "dark"]
    assert said(model, [array[..., 0], np.dstack([array, array[..., :1]]), picture.convert("L")]) == ["bright"] * 3
    assert said(
        model, (Image.new("RGB", size, colour) for size, colour in (((9, 30), "black"), ((40, 7), "white")))
    ) == [
        "dark",
        "bright",
    ]


def test_formats_that_are_not_read_are_said_and_the_model_keeps_its_mode(model, pictures):
    (pictures / "dark" / "raw.heic").write_bytes(b"x")
    with pytest.warns(DataWarning, match=f"{pictures}: passed over, because Pillow reads no such format here: 1 .heic"):
        assert len(said(model, pictures)) == 4
    assert model.training
    model.eval()
    said(model, pictures / "bright")
    assert not model.training


def test_they_go_through_in_batches_and_come_as_they_are_ready(model, pictures):
    model.train()
    found = convattn.predict(model, pictures, batch_size=3, progress=False)
    first = next(found)
    assert model.sizes == [3]
    assert not model.training
    assert len([first, *found]) == 4
    assert model.sizes == [3, 1]


def test_a_prediction_is_a_plain_object(model, pictures):
    (found,) = convattn.predict(model, pictures / "dark" / "000.png", top=1)
    assert (found.names, found.indices) == (("dark",), (0,))
    assert found.as_json() == {"predictions": found.rows()}
    assert found.rows() == [{"class": "dark", "probability": found.probabilities[0], "index": 0}]
    assert found.line() == f"dark {100 * found.probabilities[0]:.1f} %"
    picture = Image.open(pictures / "dark" / "000.png").resize((80, 60))
    drawn = found.draw(picture)
    assert drawn.size == picture.size
    assert drawn.tobytes() != picture.tobytes()


def test_two_classes_of_one_name_are_told_apart(pictures):
    (found,) = convattn.predict(Brightness(("crane", "crane")), pictures / "dark" / "000.png")
    assert found.names == ("crane (0)", "crane (1)")


def test_a_wrong_path_is_told_as_a_path(model, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("gone.jpg", r"gone.jpg: no such file or folder"),
        (f"{tmp_path}/*.jpg", r"\*.jpg: no such file or folder, and no pattern that fits one"),
        (tmp_path / "empty", r"empty: no image in this folder"),
        ("", r"the name of a picture is empty"),
    ):
        with pytest.raises(DataError, match=message):
            list(convattn.predict(model, source))


def test_what_cannot_be_seen_is_refused(model, pictures):
    broken = pictures / "dark" / "000.png"
    broken.write_bytes(b"")
    with pytest.raises(ImageError, match=r"000.png: the file is empty"):
        list(convattn.predict(model, pictures))
    for array in (np.zeros((4, 4, 3), np.float32), np.zeros((3, 5, 5), np.uint8), np.zeros((1, 2, 4, 4, 3), np.uint8)):
        with pytest.raises(ImageError, match=r"picture 0: an array of shape .* give \(H, W, 3\) uint8, RGB"):
            list(convattn.predict(model, array))
    for thing in (3, None, [None]):
        with pytest.raises(ImageError, match=r"picture 0: (int|NoneType); give a file, a PIL image or an array"):
            list(convattn.predict(model, thing))


def test_wrong_options_are_refused(model, pictures):
    for options, message in (
        ({"threshold": 0.5}, r"classification takes no such option: .*'threshold'"),
        ({"top": 0}, r"top 0 must be 1 or more"),
        ({"batch_size": 0}, r"batch_size 0 must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            list(convattn.predict(model, pictures, **options))
    with pytest.raises(ValueError, match=r"ReLU: outputs no classes; take a model with a head"):
        list(convattn.predict(nn.ReLU(), pictures))


def test_the_bar_moves_within_a_picture():
    """Of a photograph that is looked at by windows each band is told."""
    parts = []
    model = convattn.create_segmenter("smt_nano", "semantic_fpn", 2, width=16, stem_stride=4).eval()
    options = SEGMENTATION.words.prediction(window=32, step=32)
    SEGMENTATION.predict(model, [Image.new("RGB", (40, 96))], options, parts.append)
    assert parts == pytest.approx([1 / 3] * 3)
