import json
import struct

import pytest
import torch
from torch import nn

import convattn
from convattn.deploy.load import ExportedModel
from convattn.saved import load_model, open_classifier, open_model, read_metadata, save_model
from convattn.weights.read import CheckpointError
from tiny_exports import write_sealed
from tiny_runs import TINY_OPTIONS
from toys import build_toy


@pytest.fixture
def model():
    model = convattn.create_model("smt_nano", num_classes=3, drop_path_rate=0.1, **TINY_OPTIONS)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, 16, 16),
        "crop_pct": 1.0,
        "label_names": ("a", "b", "c"),
    }
    model.stem.norm1.running_mean.normal_()
    return model


@pytest.fixture
def file(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors", metrics={"top1": 99.0})
    return tmp_path / "model.safetensors"


def rewrite(file, change):
    """Change the description inside a model file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    described = json.loads(header["__metadata__"]["convattn"])
    change(described)
    header["__metadata__"]["convattn"] = json.dumps(described)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_a_model_survives_its_file(model, file):
    loaded = load_model(file)
    assert not loaded.training
    assert loaded.built_as == model.built_as
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    for key in ("input_size", "crop_pct", "label_names", "mean", "std", "interpolation"):
        assert loaded.pretrained_cfg[key] == model.pretrained_cfg[key]
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model.eval()(images))


def test_channels_last_weights_are_saved_as_they_are(model, file, tmp_path):
    save_model(model.to(memory_format=torch.channels_last), tmp_path / "last.safetensors", metrics={"top1": 99.0})
    assert (tmp_path / "last.safetensors").read_bytes() == file.read_bytes()


def test_the_description_has_what_rebuilds_the_model(file):
    described = read_metadata(file)
    assert (described["format"], described["name"], described["num_classes"]) == (1, "smt_nano", 3)
    assert described["surgery"] == []
    assert described["metrics"] == {"top1": 99.0}


def test_a_run_folder_stands_for_its_best_model(model, tmp_path):
    save_model(model, tmp_path / "best.safetensors")
    assert load_model(tmp_path).num_classes == 3
    with pytest.raises(CheckpointError, match=r"no best.safetensors in this folder; give a run folder or a model file"):
        load_model(tmp_path.parent)


def test_a_model_changed_by_surgery_survives_its_file(tmp_path):
    model = convattn.create_model("timm:test_resnet", num_classes=3)
    model = convattn.attach(model, "das", where=["layer3", "layer4"], alpha=0.5)
    model = convattn.replace(
        model, "group_aggregator", match=lambda name, conv: name == "layer2.0.conv2", kernels=(3, 3, 5)
    )
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.surgery == model.surgery
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.eval()(images))
    with pytest.raises(ValueError, match=r"layer2.0.conv2 was replaced and its convolution is not in the model's file"):
        convattn.detach(loaded)
    gated = convattn.attach(convattn.create_model("timm:test_resnet", num_classes=3), "das")
    save_model(gated, tmp_path / "gated.safetensors")
    with torch.no_grad():
        restored = convattn.detach(load_model(tmp_path / "gated.safetensors"))
        assert torch.equal(restored(images), convattn.detach(gated).eval()(images))


def test_an_option_of_surgery_that_no_file_holds_is_refused(tmp_path):
    model = convattn.attach(convattn.create_model("timm:test_resnet"), "se", where=["layer1"], act_layer=nn.SiLU)
    with pytest.raises(CheckpointError, match=r"options .*SiLU'>} of se at layer1.0 cannot be written to a model file"):
        save_model(model, tmp_path / "a.safetensors")


def test_a_model_of_timm_survives_its_file(tmp_path):
    model = convattn.create_model("timm:test_byobnet", num_classes=3)
    save_model(model, tmp_path / "m.safetensors")
    assert all(
        torch.equal(value, model.state_dict()[name])
        for name, value in load_model(tmp_path / "m.safetensors").state_dict().items()
    )


def test_open_model_takes_exported_files_as_they_are(tmp_path):
    path = write_sealed(tmp_path, "torch_export")
    assert isinstance(open_model(path), ExportedModel)
    assert open_model(path, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=r".pt2: an exported file keeps its 3 classes and cannot take 5; take the"):
        open_model(path, num_classes=5)
    with pytest.raises(ValueError, match=r"gone.onnx: no such file"):
        open_model("gone.onnx")


def test_open_classifier_wants_classes(file, tmp_path):
    assert open_classifier(file).num_classes == 3
    save_model(build_toy("smt_nano", num_classes=0), tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match=r"backbone.safetensors: outputs no classes; take a model with a classifier"):
        open_classifier(tmp_path / "backbone.safetensors")


def test_open_model_takes_files_folders_and_names(file, tmp_path):
    assert open_model(file).num_classes == 3
    assert open_model("smt_nano", num_classes=5, pretrained=False).num_classes == 5
    assert open_model("timm:test_byobnet", num_classes=4, pretrained=False).num_classes == 4
    with pytest.raises(ValueError, match=r"unknown model 'smt_nan'; nearest: smt_nano"):
        open_model("smt_nan", pretrained=False)
    with pytest.raises(CheckpointError, match=r"gone.safetensors: no such file"):
        open_model("gone.safetensors")
    with pytest.raises(CheckpointError, match=r"runs/gone: no such file"):
        open_model("runs/gone")


def test_another_number_of_classes_gives_a_fresh_head_that_can_be_saved(file, tmp_path):
    model = open_model(file, num_classes=7)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 7)
    assert "label_names" not in model.pretrained_cfg
    save_model(model, tmp_path / "seven.safetensors")
    assert load_model(tmp_path / "seven.safetensors").num_classes == 7


def test_a_cut_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: not a safetensors file, or damaged or cut short"
    ) as error:
        load_model(file)
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_refused(file, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth: not a safetensors file"):
        load_model(tmp_path / "weights.pth")
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(
        CheckpointError, match=r"bare.safetensors: weights without a description .*pretrained_path=FILE"
    ):
        load_model(tmp_path / "bare.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(format=2), r"format 2 is unknown; this version reads format 1; update convattn"),
        (dict(surgery=[{"kind": "attach"}]), r"model 'smt_nano' cannot be built: entry .* of the surgery is damaged"),
        (
            dict(surgery=[{"kind": "graft", "place": "stem", "mixer": "se", "options": {}}]),
            r"model 'smt_nano' cannot be built: operation 'graft' is unknown; known are attach and replace",
        ),
        (dict(name="smt_nani"), r"its model 'smt_nani' cannot be built: unknown model 'smt_nani'; nearest: smt_nano"),
        (dict(options={"num_classes": 4}), r"the weights do not fit smt_nano: \S+"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(file, change, message):
    rewrite(file, lambda described: described.update(change))
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(file)
    assert "\n" not in str(error.value)


def test_a_description_that_lacks_a_part_names_it(file):
    rewrite(file, lambda described: described.pop("options"))
    with pytest.raises(CheckpointError, match=r"the description of the model lacks options"):
        load_model(file)


def test_what_no_file_can_rebuild_is_not_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"Linear was not built by convattn.create_model"):
        save_model(nn.Linear(2, 2), tmp_path / "a.safetensors")
    model = convattn.create_model("timm:test_byobnet", act_layer=nn.ReLU)
    with pytest.raises(
        CheckpointError, match=r"option act_layer=<class .*ReLU'> of timm:test_byobnet cannot be written"
    ):
        save_model(model, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a.pt: a model file ends in .safetensors; write to .*a.safetensors"):
        save_model(model, tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pool", [None, "max"])
def test_a_head_that_was_changed_is_saved_as_it_is(model, tmp_path, pool):
    model.reset_classifier(5, pool)
    save_model(model, tmp_path / "m.safetensors")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_model(tmp_path / "m.safetensors")(images), model.eval()(images))


def test_a_features_only_model_survives_its_file(tmp_path):
    model = convattn.create_model("smt_nano", features_only=True, out_indices=(1, 2), **TINY_OPTIONS)
    save_model(model, tmp_path / "m.safetensors")
    images = torch.randn(2, 3, 16, 16)
    loaded = load_model(tmp_path / "m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(loaded(images), model.eval()(images), strict=True))


def test_a_fused_model_is_not_saved_to_a_file_that_nobody_can_read(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"a fused smt_nano cannot be rebuilt from a file; save the model that"):
        save_model(convattn.fuse(model), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
