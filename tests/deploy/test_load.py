"""An exported file is a model like any other, as far as it can be."""

import os
import zipfile
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.classification.options import DistillationConfig
from convattn.data.class_names import class_names
from convattn.deploy.formats import formats
from convattn.deploy.load import ExportedModel, load_exported
from convattn.deploy.metadata import describe, seal
from convattn.deploy.runtimes import pt2_archive
from convattn.deploy.runtimes.runtime import UnreadableFile
from convattn.training.loop import train
from in_threads import worst_in_threads
from tiny_exports import SIZE, tiny_net, write, write_sealed
from tiny_runs import tiny_config, write_pictures
from toys import relative_error, shallow_toy

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytest.importorskip("openvino", reason="needs the extra deploy")


LOGITS = torch.zeros(1, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def model(folder):
    return load_exported(write_sealed(folder, "onnx"))


@pytest.fixture(scope="module")
def foreign(folder):
    return load_exported(write(folder, "torch_export"))


def test_it_runs_and_says_what_it_is(model):
    images = torch.randn(3, *SIZE)
    assert relative_error(model(images), tiny_net()(images)) < 1e-5
    assert not model.training
    assert (model.num_classes, model.in_chans, model.task_kind) == (3, 3, "classification")
    assert model.label_names == model.pretrained_cfg["label_names"] == ("ant", "bee", "cat")
    assert (model.metadata.model, model.format) == ("tiny", "onnx")
    assert "onnx, tiny" in repr(model)
    assert len(model.feature_info) == 0


def test_layout_precision_and_gradient_of_the_images_do_not_matter(model):
    images = torch.randn(2, *SIZE, dtype=torch.float64, requires_grad=True)
    output = model(images.to(memory_format=torch.channels_last))
    assert output.dtype is torch.float32
    assert relative_error(output, tiny_net()(images.float())) < 1e-5


def test_it_is_fed_and_read_like_the_model_it_was_made_from(model):
    original = tiny_net()
    original.pretrained_cfg["input_size"] = SIZE
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    prepared = convattn.transforms_for(model)(image)
    assert prepared.shape == SIZE
    assert torch.equal(prepared, convattn.transforms_for(original)(image))
    assert class_names(model) == ["ant", "bee", "cat"]


@pytest.fixture(scope="module", params=["onnx", "openvino", "torch_export"])
def of_one_batch_size(folder, request):
    return load_exported(write_sealed(folder, request.param, "none"))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6])
def test_a_file_of_one_batch_size_takes_any_number_of_images(of_one_batch_size, count):
    images = torch.randn(count, *SIZE)
    output = of_one_batch_size(images)
    assert output.shape == (count, 3)
    assert not count or relative_error(output, tiny_net()(images)) < 1e-5


def test_four_threads_get_what_one_gets(of_one_batch_size):
    assert worst_in_threads(of_one_batch_size, [torch.randn(3, *SIZE) for _ in range(4)]) < 1e-5


def test_autocast_does_not_reach_into_a_file(of_one_batch_size):
    images = torch.randn(2, *SIZE)
    with torch.no_grad(), torch.autocast("cpu"):
        got = of_one_batch_size(images)
    assert got.dtype is torch.float32
    assert relative_error(got, tiny_net()(images)) < 1e-5


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 20, 24), r"onnx: takes images of 16 x 12, not 20 x 24; resize them, or export with dynamic='all'"),
        ((1, 1, 16, 12), "onnx: takes images of 3 channels, not 1"),
        ((3, 16, 12), r"onnx: images of shape \(3, 16, 12\) are not \(B, C, H, W\)"),
    ],
)
def test_images_of_another_shape_are_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.randn(shape))


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_head_behind_a_file_learns(folder, model, foreign, name):
    head = nn.Linear(3, 2)
    head({"onnx": model, "torch_export": foreign}[name](torch.randn(2, *SIZE))).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_a_file_of_free_size_takes_any_that_the_model_takes(folder):
    loaded = load_exported(write_sealed(folder, "torch_export", "all"))
    images = torch.randn(1, 3, 31, 40)
    assert relative_error(loaded(images), tiny_net()(images)) < 1e-5
    with pytest.raises(ValueError, match=r"does not run on images of shape \(1, 3, 2, 2\) \(.+\)$") as caught:
        loaded(torch.randn(1, 3, 2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("indices", [(0, 2), (1,)])
def test_a_pyramid_gives_its_levels(tmp_path, indices):
    model = shallow_toy("smt_nano", features_only=True, out_indices=indices)
    images = torch.randn(2, 3, 32, 32)
    loaded = load_exported(write_sealed(tmp_path, "torch_export", "none", model=model, size=(3, 32, 32)))
    levels, wanted = loaded(images), model(images)
    assert isinstance(levels, list)
    assert len(levels) == len(indices)
    assert all(relative_error(got, want) < 1e-5 for got, want in zip(levels, wanted, strict=True))
    assert loaded.feature_info.channels() == model.feature_info.channels()
    assert loaded.feature_info.reduction() == model.feature_info.reduction()
    assert loaded.task_kind is None and not hasattr(loaded, "num_classes")


def test_a_file_of_another_origin_runs_and_knows_nothing(foreign):
    images = torch.randn(2, *SIZE)
    assert foreign.metadata is None
    assert relative_error(foreign(images), tiny_net()(images)) < 1e-5
    for ask in (convattn.transforms_for, class_names, lambda model: model.task_kind, lambda model: model.in_chans):
        with pytest.raises(ValueError, match=r"was not written by convattn, so its preprocessing and its task are"):
            ask(foreign)


def test_a_model_that_did_not_say_how_it_is_fed_does_not_say_it_exported(tmp_path):
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.randn(2, 3, 8, 8)
    loaded = load_exported(write_sealed(tmp_path, "torch_export", model=model, size=(3, 8, 8)))
    assert relative_error(loaded(images), model(images)) < 1e-5
    with pytest.raises(ValueError, match=r"the model that was exported did not say how its images are prepared"):
        convattn.transforms_for(loaded)


def test_it_can_only_run(model, tmp_path):
    for use in (deepcopy, convattn.fuse, convattn.count, lambda model: convattn.export(model, tmp_path / "again.onnx")):
        with pytest.raises(ValueError, match=r"onnx: an exported file runs only; to fuse, count or export, take"):
            use(model)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_refused_before_it_is_run(folder, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    proto = onnx.load(write_sealed(tmp_path, "onnx"))
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    onnx.save(proto, tmp_path / "changed.onnx")
    monkeypatch.setattr(formats()["onnx"], "open_file", lambda path: pytest.fail("it was run"))
    with pytest.raises(UnreadableFile, match=r"changed.onnx: its contents were changed after export"):
        load_exported(tmp_path / "changed.onnx")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.onnx", "gone.onnx: no such file"),
        ("model.bin", r"model.bin: no exported file ends in '.bin'; known: .onnx, .pt2"),
        ("model.pt2", "model.pt2: is no .pt2 file, or damaged or cut short"),
    ],
)
def test_what_is_no_exported_file_is_refused(tmp_path, name, message):
    if not name.startswith("gone"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UnreadableFile, match=message):
        load_exported(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".xml", ".pte", ".engine"])
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, suffix):
    (tmp_path / f"model{suffix}").mkdir()
    with pytest.raises(UnreadableFile, match=r"model\.\w+: .*Is a directory"):
        load_exported(tmp_path / f"model{suffix}")


def test_a_description_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/models/model.json", "{}")
        archive.writestr("archive/extra/convattn.json", bytes(2**24 + 1))
    assert path.stat().st_size < 2**16
    with pytest.raises(UnreadableFile, match=r"model.pt2: its description is damaged: it has more than 16777216 bytes"):
        load_exported(path)


@pytest.mark.parametrize("suffix", [".pte", ".engine"])
@pytest.mark.parametrize("text", [b"\xff\xfe", b"{", b""])
def test_a_damaged_description_behind_a_file_is_refused_whatever_is_installed(tmp_path, suffix, text):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"program" + text + len(text).to_bytes(8, "little") + b"convattn")
    with pytest.raises(UnreadableFile, match=f"model{suffix}: its description is damaged"):
        load_exported(path)


@pytest.mark.parametrize("suffix", [".pte", ".engine"])
def test_a_file_larger_than_memory_is_not_read_whole(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    with path.open("wb") as file:
        file.truncate(2**36)  # with holes, on the disk it has none
    assert formats()[{".pte": "executorch", ".engine": "tensor_rt"}[suffix]].read_metadata(path) is None
    with path.open("ab") as file:
        file.write((2**40).to_bytes(8, "little") + b"convattn")
    with pytest.raises(UnreadableFile, match=f"model{suffix}: its description is damaged: it has more than 16777216"):
        load_exported(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_of_any_packing_is_refused_in_words(tmp_path, method):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/models/model.json", os.urandom(500))
        archive.writestr("archive/extra/convattn.json", "{}")
    data = bytearray(path.read_bytes())
    data[100:140] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match=r"model.pt2: is no .pt2 file, or damaged or cut short \(.+\)$"):
        pt2_archive.digest(path)


@pytest.mark.parametrize("suffix", [".pte", ".engine"])
def test_a_changed_program_is_refused_whatever_is_installed(tmp_path, suffix):
    path, format = tmp_path / f"model{suffix}", {".pte": "executorch", ".engine": "tensor_rt"}[suffix]
    path.write_bytes(b"program")
    net = tiny_net()
    seal(format, path, describe(net, LOGITS, input_size=SIZE, precision="fp32", dynamic="none", format=format, batch=1))
    path.write_bytes(b"P" + path.read_bytes()[1:])
    with pytest.raises(UnreadableFile, match=f"model{suffix}: its contents were changed after export"):
        load_exported(path)


def test_a_run_takes_an_exported_teacher(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    teacher = tiny_net()
    teacher[-1], teacher.num_classes = nn.Linear(32, 2), 2
    teacher.pretrained_cfg["label_names"] = ("bright", "dark")
    path = write_sealed(tmp_path, "torch_export", model=teacher, size=(3, 16, 16))
    config = tiny_config(pictures, tmp_path / "run", task=dict(distillation=DistillationConfig(teacher=str(path))))
    assert (train(config) / "best.safetensors").is_file()


def test_it_is_a_module(model):
    assert isinstance(model, ExportedModel)
    assert list(model.parameters()) == []
    assert model.to("cpu").eval() is model


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".xml", ".pte", ".engine"])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zeros{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(UnreadableFile, match=rf"{name}{suffix}: is no regular file$"):
            load_exported(tmp_path / f"{name}{suffix}")
