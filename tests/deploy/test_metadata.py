"""What an exported file says of itself."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from convattn.deploy.formats import formats
from convattn.deploy.metadata import NoMetadata, Preprocessing, describe, read, seal
from convattn.deploy.runtimes import onnx, torch_export
from convattn.deploy.runtimes.runtime import UnreadableFile
from tiny_exports import SIZE, tiny_net, write, write_sealed
from toys import build_toy

LOGITS = torch.zeros(2, 3)
FILE = dict(input_size=(3, 32, 48), precision="fp32", dynamic="batch", format="onnx", batch=2)


def test_a_classifier_is_described():
    found = describe(tiny_net(), LOGITS, **FILE)
    assert (found.model, found.format, found.precision, found.dynamic) == ("tiny", "onnx", "fp32", "batch")
    assert (found.input_size, found.batch) == ((3, 32, 48), None)
    assert (found.outputs, found.returns, found.channels) == (("output",), "tensor", ())
    names = ("ant", "bee", "cat")
    assert (found.task, found.details) == (
        "classification",
        {"num_classes": 3, "label_names": names, "class_names": names},
    )
    assert found.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bilinear", 0.8, "squash")
    assert found.opset == onnx.OPSET
    assert found.versions["torch"] == torch.__version__.partition("+")[0]
    assert {"convattn", "timm", "onnxruntime"} <= found.versions.keys()


def test_a_model_by_name_a_pyramid_and_a_backbone_alone_are_told_apart():
    model = build_toy("smt_nano")
    assert describe(model, LOGITS, **FILE).model == "smt_nano"
    pyramid = build_toy("smt_nano", features_only=True, out_indices=(1, 3))
    levels = describe(pyramid, [LOGITS, LOGITS], **FILE)
    assert (levels.outputs, levels.returns, levels.task, levels.details) == (("level_0", "level_1"), "list", None, {})
    assert (levels.channels, levels.reductions) == ((16, 24), (4, 16))
    assert describe(build_toy("smt_nano", num_classes=0), LOGITS, **FILE).task is None
    several = {"masks": LOGITS, "scores": LOGITS}
    other = describe(nn.Sequential(nn.ReLU()), several, **{**FILE, "format": "torch_export", "dynamic": "none"})
    assert (other.model, other.task, other.preprocessing, other.opset) == ("Sequential", None, None, None)
    assert (other.outputs, other.returns) == (("masks", "scores"), "dict")
    assert describe(nn.ReLU(), (LOGITS,), **FILE).outputs == ("output_0",)
    assert other.batch == 2


def test_the_classes_of_imagenet_are_named_for_people():
    model = tiny_net()
    model.num_classes, model.pretrained_cfg = 1000, {}
    found = describe(model, LOGITS, **FILE)
    assert found.details.keys() == {"num_classes", "class_names"}
    assert found.details["class_names"][:2] == ("tench", "goldfish")
    assert len(found.details["class_names"]) == 1000


def test_names_of_other_classes_are_left_out():
    model = tiny_net()
    model.num_classes = 5
    assert describe(model, LOGITS, **FILE).details == {"num_classes": 5}


@pytest.mark.parametrize("name", ["onnx", "openvino", "torch_export"])
def test_what_is_sealed_is_read(tmp_path, name):
    for library in formats()[name].LIBRARIES:
        pytest.importorskip(library, reason="needs the extra deploy")
    path = write(tmp_path, name)
    with pytest.raises(NoMetadata, match=r": says nothing about its model, as convattn did not write it"):
        read(name, path)
    described = describe(tiny_net(), LOGITS, **{**FILE, "format": name, "input_size": SIZE})
    seal(name, path, described)
    found = read(name, path)
    assert found == dataclasses.replace(described, checksum=formats()[name].digest(path))
    assert len(found.checksum) == 64


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    return write_sealed(tmp_path_factory.mktemp("sealed"), "torch_export")


def with_text(sealed, folder, text):
    path = folder / "m.pt2"
    path.write_bytes(sealed.read_bytes())
    torch_export.write_metadata(path, text)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "its description has version 3 and this convattn reads up to 2; update convattn or export"),
        ({"format": "onnx"}, "describes itself as 'onnx' and is 'torch_export'; export it again"),
        ({"checksum": "0" * 64}, "its contents were changed after export, the checksum does not fit; export it again"),
        ({"precision": "fp7"}, r"its description is damaged \(ValueError: 'fp7' is none of fp32, bf16, fp16, int8\)"),
        ({"input_size": [3, 224]}, r"its description is damaged \(ValueError: not enough values to unpack"),
        ({"model": 5}, r"its description is damaged \(TypeError: 5 is no text\)"),
        ({"versions": []}, r"its description is damaged \(AttributeError: "),
        ({"preprocessing": {}}, r"its description is damaged \(KeyError: 'mean'\)"),
        ({"outputs": None}, r"its description is damaged \(TypeError: "),
        (
            {"task": "telling"},
            "its task 'telling' is unknown to this version; known are classification, segmentation, detection; "
            "update convattn$",
        ),
        ({"details": [3]}, r"its description is damaged \(TypeError: details \[3\] are no texts and numbers by name\)"),
        ({"details": {}}, r"its description is damaged \(KeyError: 'num_classes'\)"),
    ],
)
def test_a_description_that_does_not_hold_is_refused_in_one_line(sealed, tmp_path, change, message):
    entry = json.loads(torch_export.read_metadata(sealed))
    path = with_text(sealed, tmp_path, json.dumps({**entry, **change}))
    with pytest.raises(UnreadableFile, match=rf"m.pt2: {message}") as caught:
        read("torch_export", path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["version", "model", "outputs", "task", "details", "checksum"])
def test_a_description_without_a_field_is_refused(sealed, tmp_path, field):
    entry = json.loads(torch_export.read_metadata(sealed))
    del entry[field]
    with pytest.raises(UnreadableFile, match=r"m.pt2: its description is damaged"):
        read("torch_export", with_text(sealed, tmp_path, json.dumps(entry)))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00\xff"])
def test_what_is_no_description_is_refused(sealed, tmp_path, text):
    with pytest.raises(UnreadableFile, match=r"m.pt2: its description is damaged; export it again"):
        read("torch_export", with_text(sealed, tmp_path, text))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("preprocessing", {"mean": []}, "mean .* must be a finite number for each channel"),
        ("preprocessing", {"mean": [float("nan")] * 3}, "mean .* must be a finite number for each channel"),
        ("preprocessing", {"mean": [10**400] * 3}, "mean .* must be a finite number for each channel"),
        ("preprocessing", {"std": [1]}, "mean has 3 values and std 1"),
        ("preprocessing", {"std": [0, 0, 0]}, "std .* must be above 0"),
        ("preprocessing", {"crop_pct": 0}, "crop_pct 0 must be above 0"),
        ("preprocessing", {"crop_pct": 1e-9}, "crop_pct 1e-09 would have images resized to"),
        ("preprocessing", {"crop_pct": True}, "crop_pct True must be above 0"),
        ("preprocessing", {"crop_mode": "evil"}, "crop_mode 'evil' is unknown"),
        ("preprocessing", {"interpolation": "evil"}, "interpolation 'evil' is unknown to timm"),
        ("", {"input_size": [3, 0, 16]}, "input_size .* must be"),
        ("", {"input_size": [3, 16.5, 16]}, "input_size .* must be"),
        ("", {"batch": 0}, "0 is no whole number from 1"),
        ("details", {"num_classes": 2.5}, "num_classes 2.5 is no whole number from 1"),
        ("details", {"num_classes": 0}, "num_classes 0 is no whole number from 1"),
        ("details", {"label_names": ["ant", "bee"]}, "2 names of 3 classes"),
        ("details", {"label_names": None}, "label_names None must be texts"),
        ("details", {"class_names": ["ant", "bee", "cat", "dog"]}, "4 names of 3 classes"),
        ("", {"outputs": ["a", "a"]}, r"outputs \('a', 'a'\) are not one name each"),
        ("", {"outputs": []}, r"outputs \(\) are not one name each"),
        ("", {"outputs": ["a", "b"]}, "one tensor with 2 names"),
        ("", {"returns": "everything"}, "'everything' is none of tensor, list, dict"),
        ("", {"channels": [4], "reductions": []}, r"\('output',\) with channels"),
        ("", {"channels": [4, 8], "reductions": [2, 4]}, r"\('output',\) with channels"),
    ],
)
def test_what_nothing_can_be_computed_with_is_refused_whoever_wrote_it(sealed, tmp_path, place, change, message):
    entry = json.loads(torch_export.read_metadata(sealed))
    del entry["own_checksum"]  # as of an earlier version
    (entry[place] if place else entry).update(change)
    with pytest.raises(UnreadableFile, match=rf"m.pt2: its description is damaged \(\w+: {message}") as caught:
        read("torch_export", with_text(sealed, tmp_path, json.dumps(entry)))
    assert "\n" not in str(caught.value)


def test_a_description_too_deep_to_read_is_refused(sealed, tmp_path):
    with pytest.raises(UnreadableFile, match=r"m.pt2: its description is damaged"):
        read("torch_export", with_text(sealed, tmp_path, "[" * 100_000))


@pytest.mark.parametrize(
    "change",
    [
        {"details": {"num_classes": 3, "label_names": ["cat", "bee", "ant"]}},
        {"task": None},
        {"input_size": [3, 16, 16]},
        {"model": "other"},
        {"extra": 1},
        {"own_checksum": "0" * 64},
    ],
)
def test_a_description_that_was_changed_is_refused(sealed, tmp_path, change):
    entry = json.loads(torch_export.read_metadata(sealed))
    with pytest.raises(UnreadableFile, match=r"m.pt2: its description was changed after export, its own checksum does"):
        read("torch_export", with_text(sealed, tmp_path, json.dumps({**entry, **change})))


def test_a_file_of_an_earlier_version_opens_with_a_word(sealed, tmp_path):
    entry = json.loads(torch_export.read_metadata(sealed))
    del entry["own_checksum"]
    path = with_text(sealed, tmp_path, json.dumps(entry))
    with pytest.warns(UserWarning, match=r"m.pt2: an earlier convattn wrote it, without a checksum of what it says"):
        assert read("torch_export", path) == read("torch_export", sealed)
