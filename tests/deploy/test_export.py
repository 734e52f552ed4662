"""An exported file is kept only when it gives the model's numbers."""

import json

import pytest
import torch

import convattn
from convattn.deploy.export import ExportError
from convattn.deploy.runtimes import onnx, torch_export
from toys import build_toy, relative_error


@pytest.mark.parametrize("dynamic", ["none", "batch", "all"])
@pytest.mark.parametrize(("suffix", "room"), [(".onnx", onnx), (".pt2", torch_export)])
def test_a_file_agrees_at_every_size_it_promises(tmp_path, suffix, room, dynamic):
    model = build_toy("smt_nano").train()
    path = tmp_path / f"model{suffix}"
    report = convattn.export(model, path, input_size=(33, 47), dynamic=dynamic)
    assert model.training
    assert report.max_relative_error < 1e-5
    assert report.fused_parts > 0
    assert report.file_mib == path.stat().st_size / 2**20
    batches = {check.input_shape[0] for check in report.checks}
    sizes = {check.input_shape[2:] for check in report.checks}
    assert batches == ({2} if dynamic == "none" else {1, 2, 3})
    assert len(sizes) == (3 if dynamic == "all" else 1)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    images = torch.randn(2, 3, 33, 47)
    with torch.inference_mode():
        assert relative_error(room.open_file(path)(images)[0], model.eval()(images)) < 1e-5


def test_levels_of_a_features_only_model(tmp_path):
    model = build_toy("smt_nano", features_only=True, out_indices=(1, 3))
    report = convattn.export(model, tmp_path / "levels.onnx", input_size=(32, 32))
    assert report.max_relative_error < 1e-5
    levels = onnx.open_file(tmp_path / "levels.onnx")(torch.randn(2, 3, 32, 32))
    assert [level.shape[1] for level in levels] == [16, 24]


def test_a_file_that_disagrees_is_not_kept_and_the_older_one_survives(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"older")
    honest = torch_export.open_file

    def off_by_a_little(file):
        run = honest(file)
        return lambda images: [output * 1.001 for output in run(images)]

    monkeypatch.setattr(torch_export, "open_file", off_by_a_little)
    with pytest.raises(ExportError, match=r"differs from the eager one by 1.00e-03 \(relative\) at input .*not kept"):
        convattn.export(build_toy("smt_nano"), path, input_size=(32, 32), dynamic="none")
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_not_a_number_never_agrees(tmp_path, monkeypatch):
    honest = torch_export.open_file
    monkeypatch.setattr(
        torch_export,
        "open_file",
        lambda file: lambda images: [output * float("nan") for output in honest(file)(images)],
    )
    with pytest.raises(ExportError, match="inf"):
        convattn.export(build_toy("smt_nano"), tmp_path / "model.pt2", input_size=(32, 32), dynamic="none")


def test_the_report_is_json(tmp_path):
    report = convattn.export(build_toy("smt_nano"), tmp_path / "m.pt2", input_size=(32, 32), dynamic="none")
    found = json.loads(report.to_json())
    assert found["format"] == "torch_export"
    assert found["max_relative_error"] == max(check["relative_error"] for check in found["checks"])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, r"no format has the suffix '.bin'; known: .onnx \(onnx\), .pt2 \(torch_export\)"),
        ("model.bin", {"format": "caffe"}, "format 'caffe' is unknown; choose one of onnx, torch_export"),
        ("model.pt2", {"dynamic": "width"}, "dynamic 'width' is unknown; choose none, batch or all"),
        ("model.pt2", {"tolerance": 0}, "tolerance 0 must be above 0"),
        ("model.pt2", {"input_size": (2, 32)}, "2 x 32 pixels is too small"),
    ],
)
def test_bad_requests_are_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        convattn.export(build_toy("smt_nano"), tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_any_module_of_images_is_exported_when_its_size_is_given(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    report = convattn.export(model, tmp_path / "m.pt2", input_size=(8, 8), dynamic="none")
    assert report.checks[0].input_shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"Sequential does not say what input it expects; give input_size="):
        convattn.export(model, tmp_path / "n.pt2")


def test_another_precision_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is torch.bfloat16; export takes a float32 model: export\(model.float\(\)"):
        convattn.export(build_toy("smt_nano").bfloat16(), tmp_path / "m.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ValueError, match=r"folder.pt2: is a folder; name a file"):
        convattn.export(build_toy("smt_nano"), tmp_path / "folder.pt2")
