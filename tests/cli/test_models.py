"""`convattn models` shows what is registered, counted and published."""

import json

import pytest

import convattn
from convattn.cli.main import main
from convattn.saved import save_model
from toys import build_toy


def test_lists_every_model(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in convattn.list_models())
    assert "11,506,536" in shown
    assert "82.2" in shown
    assert "README of github.com/AFeng-x/SMT" in shown


def test_a_pattern_selects(capsys):
    assert main(["models", "smt_tin*", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "smt_tiny"
    assert row["parameters"] == 11_506_536
    assert [weights["tag"] for weights in row["weights"]] == ["in1k"]


def test_shows_one(capsys):
    assert main(["models", "smt_large.in22k_ft_in1k_384"]) == 0
    shown = capsys.readouterr().out
    assert "input 3 x 384 x 384, bicubic interpolation, crop ratio 1.0 (squash)" in shown
    assert "level at stride 16: 384 channels (stages.2)" in shown
    assert "top-1 88.1 %, top-5 98.4 % (published: README of github.com/AFeng-x/SMT), licence MIT" in shown


def test_says_what_is_left_out_where_a_copy_lies_and_no_accuracy_that_is_unknown(capsys):
    assert main(["models", "nextvit_small.in1k_384"]) == 0
    shown = capsys.readouterr().out
    assert "the last positions of a map that fill no run are left out of them" in shown
    assert "top-1 83.6 % (published: README of github.com/bytedance/Next-ViT), licence Apache-2.0" in shown
    assert "copy: https://huggingface.co/timm/nextvit_small.bd_in1k_384/resolve/main/model.safetensors" in shown
    assert "None" not in shown


def test_accuracies_without_a_file(capsys):
    assert main(["models", "resnet18_das"]) == 0
    shown = capsys.readouterr().out
    assert "no published weights\nwithout a file: top-1 72.03 %, top-5 90.7 % at 224 pixels" in shown
    assert "(published: arXiv 2311.12091)" in shown
    assert main(["models", "groupmixformer_small"]) == 0
    assert "without a file: top-1 85.0 % at 384 pixels (published: arXiv 2311.15157)" in capsys.readouterr().out

    assert main(["models", "resnet*_das"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("resnet50_das "))
    assert line.split()[1:4] == ["none", "published", "224"] and "78.04" in line and "arXiv 2311.12091" in line


def test_says_how_a_file_that_no_program_can_fetch_comes_here(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVATTN_WEIGHTS", str(tmp_path))
    assert main(["models", "se_cotnetd_152"]) == 0
    shown = capsys.readouterr().out
    assert "84.6 %, top-5 97.1 % (published: README of github.com/JDAI-CV/CoTNet), licence not recorded here" in shown
    assert "by hand from https://drive.google.com/file/d/1E43T2jS37gR07p_FVWnjJNkMWeYMXgX9/view" in shown
    assert f"into {tmp_path} as se_cotnetd_152_320.pth" in shown

    assert main(["models", "groupmixformer_tiny"]) == 0
    shown = capsys.readouterr().out
    assert "licence MIT" in shown and f"into {tmp_path} as groupmixformer_tiny.pth" in shown


def test_shows_a_saved_model_and_another_size(tmp_path, capsys):
    model = build_toy("smt_nano")
    save_model(model, tmp_path / "toy.safetensors")
    assert main(["models", str(tmp_path / "toy.safetensors"), "--image-size", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] == convattn.count(model, (3, 64, 64)).macs
    assert [level["reduction"] for level in found["levels"]] == [2, 4, 8, 16]


def test_shows_what_was_inserted_into_a_saved_model(tmp_path, capsys):
    model = convattn.create_model("timm:test_resnet", num_classes=3)
    model = convattn.attach(model, "das", where=["layer3", "layer4"], alpha=0.5)
    save_model(
        convattn.replace(model, "cot", match=lambda name, conv: name == "layer1.0.conv2"), tmp_path / "m.safetensors"
    )
    assert main(["models", str(tmp_path / "m.safetensors")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["surgery", "place", "mixer", "options", "start", "channels", "parameters"] in rows
    attached = model.surgery[1]
    assert ["attach", "layer4.0", "das", "alpha=0.5", "identity", "96", f"{attached['parameters']:,}"] in rows
    assert any(row[:5] == ["replace", "layer1.0.conv2", "cot", "-", "-"] for row in rows)
    assert main(["models", str(tmp_path / "m.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["surgery"][:2] == model.surgery


def test_shows_timms(capsys):
    assert main(["models", "timm:resnet18"]) == 0
    shown = capsys.readouterr().out
    assert "parameters 11,689,512" in shown
    assert "no published weights" not in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["zzz_*"], "no model matches 'zzz_*'; known: "),
        (["timm:resnet19"], "unknown timm model 'resnet19'; nearest: resnet"),
        (["resnet18"], "unknown model 'resnet18'"),
        (["smt_tiny.in21k"], "smt_tiny has no weights 'in21k'; it has in1k"),
        (["smt_tiny", "--image-size", "0"], "image-size 0 must be 1 or more"),
        (["smt_tiny", "--image-size", "2"], "2 x 2 pixels is too small; the nearest size that works is 4 x 4"),
    ],
)
def test_bad_requests_are_refused_in_one_line(args, message, capsys):
    assert main(["models", *args]) == (1 if "2" in args else 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
