import json
import socket
import struct

import pytest
import safetensors.torch
import torch
from torch import nn

import convattn
from convattn.deploy.load import ExportedModel
from convattn.model_files import load_model, open_model, read_metadata, save_model
from convattn.rooms import room_of
from convattn.weights.read import CheckpointError
from golden_file import FOLDER
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


def test_open_model_takes_exported_files_as_they_are(tmp_path):
    path = write_sealed(tmp_path, "torch_export")
    assert isinstance(open_model(path), ExportedModel)
    assert open_model(path, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=r".pt2: an exported file keeps its 3 classes and cannot take 5; take the"):
        open_model(path, num_classes=5)
    with pytest.raises(ValueError, match=r"gone.onnx: no such file"):
        open_model("gone.onnx")


def test_a_backbone_alone_has_no_task(file, tmp_path):
    assert room_of(open_model(file), file).kind == "classification"
    save_model(build_toy("smt_nano", num_classes=0), tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match=r"backbone.safetensors: outputs no classes; take a model with a head"):
        room_of(open_model(tmp_path / "backbone.safetensors"), tmp_path / "backbone.safetensors")


def test_open_model_takes_files_folders_and_names(file, tmp_path):
    assert open_model(file).num_classes == 3
    assert open_model("smt_nano", num_classes=5, pretrained=False).num_classes == 5
    assert open_model("timm:test_byobnet", num_classes=4, pretrained=False).num_classes == 4
    with pytest.raises(ValueError, match=r"unknown model 'smt_nan'; nearest: smt_nano"):
        open_model("smt_nan", pretrained=False)
    with pytest.raises(ValueError, match=r"unknown timm model 'resnet/18'; nearest: resnet18"):
        open_model("timm:resnet/18", pretrained=False)
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


HOSTILE = {
    "options": [
        ({"pretrained": True}, r"option pretrained says where weights come from or lie, not what the network is"),
        ({"pretrained_path": "/etc/secret"}, r"option pretrained_path says where weights come from or lie, not what"),
        ({"pretrained_cfg_overlay": {"url": "http://127.0.0.1:1/a.pth"}}, r"option pretrained_cfg_overlay says where"),
        ({"pretrained_cfg": {"file": "/etc/secret"}}, r"option pretrained_cfg says where weights come from"),
        ({"checkpoint_path": "/etc/secret"}, r"option checkpoint_path says where weights come from"),
        ({"cache_dir": "/tmp"}, r"option cache_dir says where weights come from"),
        ({"scriptable": True}, r"option scriptable says where weights come from or lie"),
        ({"device": "cuda:7"}, r"option device says where weights come from or lie"),
        ({"num_classes": 10**12}, r"option num_classes has 10{12}, more than a network of the size of this file's"),
        ({"num_classes": 10**400}, r"option num_classes has 10+\.\.\., more than a network of the size of this file's"),
        ({"depths": [1, 1, 10**6, 1]}, r"option depths has 1000000, more than a network of the size of this file"),
        ({"depths": [1, 1, 60000, 1]}, r"it describes a far larger network than the \d+ tensors of the file fill"),
        ({"dims": [60000, 60000, 60000, 60000]}, r"the weights do not fit smt_nano: size mismatch"),
        ({"depths": eval("[" * 40 + "]" * 40)}, r"option depths is nested more than 16 times"),
        ({"attention_heads": "many"}, r"its model 'smt_nano' cannot be built: "),
        ([1], r"options is a list, not a dict"),
    ],
    "name": [
        ("hf-hub:timm/resnet18.a1_in1k", r"cannot be built: unknown model 'hf-hub:timm/resnet18'"),
        ("timm:hf-hub:timm/resnet18", r"cannot be built: unknown timm model 'hf-hub:timm/resnet18'"),
        ("timm:local-dir:/etc", r"cannot be built: unknown timm model 'local-dir:/etc'"),
        ("local-dir:/etc", r"cannot be built: unknown model 'local-dir:/etc'"),
        ("timm:resnet18.no_such_tag", r"cannot be built: Invalid pretrained tag \(no_such_tag\)"),
        (7, r"name 7 must be a text"),
    ],
    "pretrained_cfg": [
        ({"url": "http://127.0.0.1:1/a.pth"}, r"pretrained_cfg has 'url'; known are input_size, mean"),
        ({"input_size": [3, 10**6, 10**6]}, r"input_size \[3, 1000000, 1000000\] must be \(channels, height, width\)"),
        ({"input_size": 224}, r"input_size 224 must be"),
        ({"mean": [0.5], "std": [0.2, 0.2, 0.2]}, r"mean has 1 values and std 3; give one a channel"),
        ({"mean": [float("nan")] * 3}, r"mean \[nan, nan, nan\] must be a finite number for each channel"),
        ({"std": [0.2, 0.0, 0.2]}, r"std \[0.2, 0.0, 0.2\] must be above 0"),
        ({"std": ["a"]}, r"std \['a'\] must be a finite number"),
        ({"crop_pct": 0}, r"crop_pct 0 must be above 0, at most 1.25"),
        ({"crop_pct": 1.5}, r"crop_pct 1.5 must be above 0"),
        ({"crop_pct": True}, r"crop_pct True must be above 0"),
        ({"crop_mode": "star"}, r"crop_mode 'star' is unknown; known are center, squash, border"),
        ({"interpolation": "magic"}, r"interpolation 'magic' is unknown to timm"),
        ({"interpolation": ["bicubic"]}, r"interpolation \['bicubic'\] is unknown to timm"),
        ({"label_names": ["a", 1, "c"]}, r"label_names must be texts"),
    ],
    "surgery": [
        (
            [
                dict(
                    kind="attach",
                    place="stem",
                    mixer="se",
                    options={"device": "cuda"},
                    channels=8,
                    layout="NCHW",
                    init="paper",
                )
            ],
            r"unknown option 'device' of mixer se",
        ),
        (
            [dict(kind="attach", place="stem", mixer="se", options={}, channels=10**12)],
            r"entry 0 of the surgery has 10{12} chann",
        ),
        (
            [dict(kind="attach", place="stem", mixer="se", options={"rd_channels": 10**12})],
            r"options of entry 0 of the surgery has 10",
        ),
        (
            [dict(kind="attach", place="stem", mixer="se", options={}, init="magic")],
            r"has init 'magic'; known are identity",
        ),
        (
            [dict(kind="attach", place=["stem"], mixer="se", options={})],
            r"entry 0 of the surgery has place=\['stem'\], not",
        ),
        ([dict(kind="set", place="stem", name="forward", value=1)], r"stem.forward is no number or text of a Stem"),
        ([dict(kind="set", place="stem", name="_modules", value={})], r"stem._modules is no number or text of a Stem"),
        (
            [dict(kind="set", place="stem.norm1", name="weight", value=1)],
            r"stem.norm1.weight is no number or text of a",
        ),
        (
            [dict(kind="set", place="stem.conv1", name="padding", value=[10**9, 10**9])],
            r"value of entry 0 of the surgery has 1000000000, more than",
        ),
        ([dict(kind="set", place="", name="__class__", value="x")], r".__class__ is no number or text of a SMT"),
        (
            [dict(kind="set", place="stem.norm1", name="eps", value={"a": [{}]})],
            r"stem.norm1.eps is no number or text of a BatchNorm2d that this value could be set for",
        ),
        (
            [dict(kind="tie", names=["stem.norm1.weight", "head.fc.weight"])],
            r"head.fc.weight cannot be tied to stem.norm1",
        ),
        ([dict(kind="tie", names=[])], r"cannot be built: "),
        ([dict(kind="buffers", names=["stem.norm1.running_mean"])], r"the weights do not fit smt_nano: Missing key"),
        ("all", r"surgery is a str, not a list"),
    ],
    "metrics": [
        ({"top1": "99"}, r"metric top1='99' must be a number"),
        ({"top1": -(10**400)}, r"metric top1=-10+\.\.\. must be a number"),
        ([1], r"metrics is a list, not a dict"),
    ],
    "num_classes": [(-1, r"num_classes -1 must be 0 \(no head\) or more"), ("3", r"num_classes '3' must be 0")],
}


@pytest.mark.parametrize("part", HOSTILE)
def test_only_what_describes_a_network_is_taken_from_a_file(file, part, monkeypatch):
    """No file but the model's is opened, no address asked, no memory filled that the weights do not fill."""
    described = read_metadata(file)[part]
    monkeypatch.setattr(socket, "socket", lambda *args, **kwargs: pytest.fail("it opens a connection"))
    for value, message in HOSTILE[part]:
        merged = {**described, **value} if isinstance(value, dict) else value
        rewrite(file, lambda description, value=merged: description.update({part: value}))
        with pytest.raises(CheckpointError, match=message) as error:
            load_model(file)
        assert "\n" not in str(error.value) and str(file) in str(error.value) and "secret" not in str(error.value)


def test_tables_that_fill_the_memory_are_refused(tmp_path):
    options = dict(num_classes=3, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 1))
    save_model(
        convattn.create_model("timm:swin_tiny_patch4_window7_224", img_size=32, **options), tmp_path / "m.safetensors"
    )
    rewrite(tmp_path / "m.safetensors", lambda described: described["options"].update(img_size=60_000))
    with pytest.raises(CheckpointError, match=r"cannot be built: it wants [\d,.]+ GiB of tables beside its weights"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, '{"format": 1', '{"format": [[]]}', "x" * (2**24 + 1)])
def test_a_description_that_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors.torch.save({"a": torch.zeros(1)}, {"convattn": text}))
    with pytest.raises(CheckpointError, match=r"m.safetensors: .*(damaged|unknown|characters)") as error:
        load_model(path)
    assert len(str(error.value)) < 300


def test_names_of_another_number_of_classes_are_left_out(file):
    rewrite(file, lambda described: described["pretrained_cfg"].update(label_names=["a", "b"]))
    with pytest.warns(UserWarning, match=r"model.safetensors: 2 names of 3 classes are left out"):
        assert "label_names" not in (load_model(file).pretrained_cfg or {})


def test_what_a_file_could_not_be_read_with_is_not_written(model, tmp_path):
    model.pretrained_cfg["std"] = (0.0, 1.0, 1.0)
    with pytest.raises(
        CheckpointError, match=r"smt_nano is not saved: no file says of a model that std \(0.0|std \[0.0"
    ):
        save_model(model, tmp_path / "m.safetensors")


def test_options_of_timms_factory_do_not_reach_a_file(tmp_path):
    """They say where weights come from; a model built with them is saved without."""
    model = convattn.create_model("timm:test_byobnet", num_classes=3, cache_dir=str(tmp_path), exportable=True)
    assert model.built_as == {"name": "timm:test_byobnet", "options": {"num_classes": 3}}


def test_a_file_of_the_first_format_opens():
    """Written on 2026-11-27, before descriptions were checked: with a gate attached and another pooling."""
    model = load_model(FOLDER / "model_file_format_1.safetensors")
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model(images), torch.tensor([[1.1197816, -0.6715953, 0.4804407]]), rtol=1e-4, atol=1e-4
        )
    assert model.pretrained_cfg["label_names"] == ("a", "b", "c")
    assert [entry["place"] for entry in model.surgery] == ["stages.1"]


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


def test_a_fused_model_is_not_saved_to_a_file_that_nobody_can_read(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"a fused smt_nano cannot be rebuilt from a file; save the model that"):
        save_model(convattn.fuse(model), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
