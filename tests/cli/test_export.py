"""`convattn export` from a model file to a proven file."""

import json

from convattn.cli.main import main
from convattn.saved import save_model
from toys import build_toy


def test_exports_a_saved_model(tmp_path, capsys):
    save_model(build_toy("smt_nano"), tmp_path / "toy.safetensors")
    args = ["export", str(tmp_path / "toy.safetensors"), str(tmp_path / "toy.pt2"), "--dynamic", "none"]
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "toy.pt2: torch_export," in shown
    assert "input 2 x 3 x 32 x 32: relative error" in shown
    assert main([*args, "--json", "--image-size", "40", "48"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checks"][0]["input_shape"] == [2, 3, 40, 48]


def test_bad_requests_are_refused_in_one_line(tmp_path, capsys):
    assert main(["export", "smt_nano", str(tmp_path / "model.bin")]) == 1
    assert "no format has the suffix '.bin'; known: .onnx (onnx), .pt2 (torch_export)" in capsys.readouterr().err
    assert main(["export", "smt_nano", str(tmp_path / "model.onnx"), "--pretrained"]) == 1
    assert "smt_nano has no published weights" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nothing.safetensors"), str(tmp_path / "model.onnx")]) == 1
    assert "nothing.safetensors: no such file" in capsys.readouterr().err
