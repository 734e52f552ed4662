import json

import pytest
import torch
from timm.data import RealLabelsImagenet

from convattn.classification.real_labels import RealLabels, read_real_labels
from convattn.data.dataset import DataError


def file_name(number):
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def real_file(path, entries=None):
    """A file of 50,000 lists, most of them empty; `entries` gives those of some images by number."""
    content = [[]] * 50_000
    for number, classes in (entries or {}).items():
        content[number - 1] = classes
    path.write_text(json.dumps(content))
    return path


def test_a_prediction_is_right_if_it_is_one_of_the_images_classes(tmp_path):
    labels = read_real_labels(real_file(tmp_path / "real.json", {1: [3.0], 2: [5, 6], 3: [], 50_000: [999]}))
    paths = [f"val/n01440764/{file_name(number)}" for number in (50_000, 3, 2, 1)]
    assert labels.accuracy(paths, torch.tensor([999, 0, 6, 4])) == (pytest.approx(200 / 3), 3)
    assert labels.of("elsewhere/ILSVRC2012_val_00000002.webp") == [5, 6]
    assert labels.of("flat/ILSVRC2012_val_00000002_n01440764.JPEG") == [5, 6]


def test_it_agrees_with_timms_evaluator_on_its_own_labels():
    labels = read_real_labels("timm")
    names = [file_name(number) for number in range(1, 50_001)]
    generator = torch.Generator().manual_seed(0)
    predictions = torch.tensor([(labels.of(name) or [0])[0] for name in names])
    wrong = torch.rand(50_000, generator=generator) < 0.3
    predictions[wrong] = torch.randint(1000, (int(wrong.sum()),), generator=generator)
    reference = RealLabelsImagenet(names, topk=(1,))
    for start in range(0, 50_000, 5_000):
        reference.add_result(torch.nn.functional.one_hot(predictions[start : start + 5_000], 1000).float())
    accuracy, images = labels.accuracy(names, predictions)
    assert accuracy == pytest.approx(reference.get_accuracy(1))
    assert images == len(reference.is_correct[1]) == 46_837  # as many as the paper has left


@pytest.mark.parametrize("name", ["cat.jpg", "ILSVRC2012_val_1.JPEG", "ILSVRC2012_val_00050001.JPEG"])
def test_files_of_other_names_have_no_real_label(name):
    with pytest.raises(DataError, match=rf"{name}: ReaL labels go by the names of ImageNet's validation images"):
        RealLabels([[]] * 50_000).of(f"some/{name}")


def test_no_labelled_image_is_an_error():
    with pytest.raises(DataError, match="none of the 1 images has a ReaL label"):
        RealLabels([[]] * 50_000).accuracy([file_name(7)], torch.tensor([0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"real.json: no JSON \("),
        ("[" * 100_000, r"real.json: no JSON \("),
        ("{}", r"real.json: holds a dict; ReaL labels are a list of 50,000 lists"),
        ("[[1], [2]]", r"real.json: holds 2 entries; ReaL labels are a list of 50,000 lists, one a validation image"),
        (json.dumps([[0], 7] + [[]] * 49_998), r"real.json: entry 2 is 7; it must be a list of class indices"),
        (json.dumps([[0], [1000]] + [[]] * 49_998), r"real.json: entry 2 is \[1000\]; .* 0 to 999"),
        (json.dumps([[1.5]] + [[]] * 49_999), r"real.json: entry 1 is \[1.5\]"),
        (json.dumps([["cat"]] + [[]] * 49_999), r"real.json: entry 1 is \['cat'\]; it must be a list of class indices"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_real_labels(tmp_path / "real.json")
    with pytest.raises(DataError, match=r"gone.json: could not be read \(No such file"):
        read_real_labels(tmp_path / "gone.json")
