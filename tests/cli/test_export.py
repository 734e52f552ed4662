"""`convattn export` from a model file to a proven file."""

import json

import pytest
from PIL import Image

from convattn.cli.main import main
from convattn.deploy.load import load_exported
from convattn.deploy.runtimes import torch_export
from convattn.deploy.runtimes.runtime import CannotRunHere
from convattn.model_files import save_model
from toys import build_toy


@pytest.fixture
def saved(tmp_path):
    save_model(build_toy("smt_nano", num_classes=10), tmp_path / "toy.safetensors")
    return str(tmp_path / "toy.safetensors")


def test_exports_a_saved_model(saved, tmp_path, capsys):
    args = ["export", saved, str(tmp_path / "toy.pt2"), "--dynamic", "none", "--image-size", "40", "48"]
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "toy.pt2: torch_export, fp32" in shown
    assert "1 x 3 x 40 x 48; free: nothing" in shown
    assert "compared on" in shown and "photographs" in shown and "random" in shown
    assert "aten.conv2d.default" in shown
    assert "allowed 1e-04" in shown
    assert load_exported(tmp_path / "toy.pt2").pretrained_cfg["input_size"] == (3, 40, 48)


def test_accuracy_before_and_after(saved, tmp_path, capsys):
    args = ["export", saved, str(tmp_path / "toy.pt2"), "--dynamic", "none", "--evaluate", "digits"]
    assert main([*args, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    metric = report["metric"]
    assert report["checks"][0]["input_shape"] == [1, 3, 32, 32]  # what the model takes
    assert metric["before"] == metric["after"]
    assert metric["max_drop"] == 0.5


def test_a_file_that_loses_accuracy_is_not_kept_and_the_report_is_printed(saved, tmp_path, capsys, monkeypatch):
    honest = torch_export.open_file

    def open_file(path):
        run = honest(path)
        return lambda images: [-output for output in run(images)]

    monkeypatch.setattr(torch_export, "open_file", open_file)
    path = tmp_path / "toy.pt2"
    args = ["export", saved, str(path), "--dynamic", "none", "--tolerance", "10", "--json"]
    assert main([*args, "--evaluate", "digits", "--max-drop", "0.25"]) == 1
    shown = capsys.readouterr()
    assert "Top-1 falls from" in shown.err and "by more than 0.25; the file was not kept" in shown.err
    report = json.loads(shown.out)
    assert report["kept"] is False and report["metric"]["after"] < report["metric"]["before"]
    assert not path.exists()


def test_what_was_set_aside_and_what_could_not_be_checked_is_said(saved, tmp_path, capsys, monkeypatch):
    def open_file(path):
        raise CannotRunHere("it runs on another planet")

    monkeypatch.setattr(torch_export, "open_file", open_file)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (40, 40)).save(photographs / "whole.png")
    (photographs / "half.png").write_bytes(b"no image")
    args = ["export", saved, str(tmp_path / "toy.pt2"), "--dynamic", "none", "--photographs", str(photographs)]
    assert main(args) == 0
    shown = capsys.readouterr()
    assert "NOT CHECKED" in shown.out and "allowed" not in shown.out
    assert f"left out: {photographs}/half.png: not an image of a known format" in shown.err
    assert "not checked: it runs on another planet" in shown.err
    assert (tmp_path / "toy.pt2").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["model.bin"], "no format has the suffix '.bin'; known: .onnx (onnx)"),
        (["model.pt2", "--format", "caffe"], "format 'caffe' is unknown; choose one of onnx,"),
        (["model.pt2", "--precision", "fp8"], "--precision"),
        (["model.pt2", "--precision", "fp16"], "torch_export cannot be in fp16, only in fp32"),
        (
            ["model.pt2", "--image-size", "0", "32"],
            "--image-size: '0 32' must be a side, (height, width) or (channels, height",
        ),
        (
            ["model.pt2", "--image-size", "1", "3", "32", "32"],
            "--image-size: '1 3 32 32' must be a side, (height, width",
        ),
        (["model.pt2", "--tolerance", "0"], "tolerance 0.0 must be above 0"),
        (["model.pt2", "--calibration", "photos"], "calibration has no effect in fp32"),
        (["model.pt2", "--max-drop", "1"], "--max-drop has no effect without --evaluate DIR"),
        (["model.pt2", "--evaluate", "digits", "--max-drop", "-1"], "--max-drop -1 must be 0 or more"),
        ([], "missing"),
    ],
)
def test_bad_usage_is_refused_in_one_line(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "smt_nano", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["smt_nano", "model.onnx", "--pretrained"], "smt_nano has no published weights"),
        (["nothing.safetensors", "model.onnx"], "nothing.safetensors: no such file"),
        (["smt_nano", "model.pt2", "--photographs", "nowhere"], "nowhere: no such folder; give a folder of images, a"),
        (["smt_nano", "model.pt2", "--evaluate", "nowhere"], "nowhere: no such folder"),
        (["smt_nano", "model.pt2", "--image-size", "2", "32"], "2 x 32 pixels is too small"),
        (["smt_nano", "/dev/null/model.pt2"], "/dev/null/model.pt2: could not be written: /dev/null is no folder"),
        (["smt_nano", "/proc/nothing/model.pt2"], "/proc/nothing/model.pt2: could not be written: No such file"),
    ],
)
def test_what_fails_is_told_in_one_line(args, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *args]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
