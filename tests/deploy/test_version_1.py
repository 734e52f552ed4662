"""Files that convattn wrote before there were other tasks than classification, as `version_1/` keeps them."""

import json
from pathlib import Path

import pytest
import torch

import convattn
from convattn.data.class_names import class_names
from convattn.deploy.load import load_exported
from convattn.deploy.version_1 import in_version_2
from tiny_exports import SIZE

FOLDER = Path(__file__).parent / "version_1"  # tiny_exports.tiny_net(), exported with a free batch
LOGITS = [
    [-0.10791770368814468, -0.0113707035779953, 0.03955550864338875],
    [-0.13659504055976868, -0.017828546464443207, 0.06652972847223282],
]


@pytest.mark.parametrize(("name", "package"), [("tiny.onnx", "onnxruntime"), ("tiny.xml", "openvino")])
def test_an_old_file_opens_and_says_the_same(name, package):
    pytest.importorskip(package, reason="needs the extra deploy")
    model = load_exported(FOLDER / name)
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 12).view(2, *SIZE)
    assert torch.allclose(model(images), torch.tensor(LOGITS), rtol=1e-5, atol=1e-6)
    assert (model.task_kind, model.num_classes) == ("classification", 3)
    assert class_names(model) == ["ant", "bee", "cat"]
    cfg = model.pretrained_cfg
    assert (cfg["label_names"], cfg["num_classes"], cfg["input_size"]) == (("ant", "bee", "cat"), 3, SIZE)
    assert convattn.transforms_for(model) is not None
    assert (model.metadata.outputs, model.metadata.returns) == (("output",), "tensor")


def described(**changes):
    entry = {"outputs": "logits", "channels": [], "num_classes": 3, "label_names": [], "class_names": []}
    return in_version_2({**entry, **changes})


def test_every_kind_of_output_has_its_counterpart():
    assert described()["details"] == {"num_classes": 3, "label_names": [], "class_names": []}
    for found, names, returns in (
        (described(outputs="features", num_classes=0), ["output"], "tensor"),
        (described(outputs="pyramid", channels=[4, 8]), ["level_0", "level_1"], "list"),
        (described(outputs="tensors"), [], None),
    ):
        assert (found["outputs"], found["returns"], found["task"], found["details"]) == (names, returns, None, {})
    for wrong in (dict(outputs="odd"), dict(outputs=["output"]), dict(outputs="pyramid"), dict(channels=[4])):
        with pytest.raises(ValueError, match="with channels"):
            described(**wrong)


def test_the_files_are_of_version_1():
    text = (FOLDER / "tiny.onnx").read_bytes()
    begin = text.index(b'{"version"')
    assert json.JSONDecoder().raw_decode(text[begin:].decode(errors="replace"))[0]["version"] == 1
