import json
import re

import pytest
import torch

import convattn
from convattn.classification.evaluate import Evaluation
from convattn.cli.arguments import UsageError
from convattn.cli.demo import PLAIN_CNN, _compare, _replacing, command
from convattn.cli.options.demo import read
from convattn.recipes.smt import smt_nano_digits


def test_a_new_folder_is_made_and_marked(tmp_path):
    with _replacing(tmp_path / "demo") as folder:
        assert [path.name for path in folder.iterdir()] == [".convattn-demo"]
    assert folder.is_dir()


def write_demo(folder, text):
    with _replacing(folder):
        (folder / "report.html").write_text(text)


def test_an_earlier_demo_is_replaced_whole(tmp_path):
    write_demo(tmp_path / "demo", "first")
    (tmp_path / "demo" / "run").mkdir()
    write_demo(tmp_path / "demo", "second")
    assert (tmp_path / "demo" / "report.html").read_text() == "second"
    assert not (tmp_path / "demo" / "run").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def fail_halfway(folder, error):
    (folder / "half").write_text("")
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_work_that_fails_leaves_the_earlier_demo(tmp_path, error):
    write_demo(tmp_path / "demo", "first")
    with pytest.raises(error), _replacing(tmp_path / "demo") as folder:
        fail_halfway(folder, error)
    assert sorted(path.name for path in folder.iterdir()) == [".convattn-demo", "report.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_work_that_fails_leaves_nothing_where_nothing_was(tmp_path):
    with pytest.raises(OSError, match="disk"), _replacing(tmp_path / "demo"):
        raise OSError("disk")
    assert list(tmp_path.iterdir()) == []


def test_after_a_kill_the_last_whole_demo_is_found_again(tmp_path):
    write_demo(tmp_path / "demo", "whole")
    (tmp_path / "demo").rename(tmp_path / ".demo.previous")  # what a killed demo leaves
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / ".convattn-demo").touch()
    with pytest.raises(OSError, match="disk"), _replacing(tmp_path / "demo"):
        raise OSError("disk")
    assert (tmp_path / "demo" / "report.html").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_folders_of_others_are_not_touched(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex', which the demo did not write; move it or choose"):
        command(read(["--output", str(mine)]))
    write_demo(tmp_path / "demo", "first")
    (tmp_path / "demo" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds 'notes\.txt', which the demo did not write"):
        command(read(["--output", str(tmp_path / "demo")]))
    (tmp_path / "link").symlink_to(tmp_path / "demo")
    with pytest.raises(ValueError, match=r"link is not a folder of its own; choose another --output"):
        command(read(["--output", str(tmp_path / "link")]))
    assert (mine / "thesis.tex").exists()
    assert (tmp_path / "demo" / "report.html").read_text() == "first"


def test_bad_usage_and_help(capsys, tmp_path):
    with pytest.raises(UsageError, match="unrecognized options: --epoch, 1"):
        read(["--epoch", "1"])
    with pytest.raises(SystemExit) as stop:
        read(["--help"])
    assert stop.value.code == 0
    assert "convattn demo --output /tmp/demo --epochs 3" in capsys.readouterr().out


def test_no_epochs_is_an_error_that_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="--epochs 0 must be 1 or more"):
        command(read(["--output", str(tmp_path / "demo"), "--epochs", "0"]))
    assert list(tmp_path.iterdir()) == []


def test_the_plain_cnn_costs_what_the_hybrid_does():
    recipe = smt_nano_digits()
    hybrid, plain = (
        convattn.count(convattn.create_model(model.name, num_classes=10, **model.options), recipe.data.image_size)
        for model in (recipe.model, PLAIN_CNN)
    )
    assert plain.macs == pytest.approx(hybrid.macs, rel=0.02)
    assert plain.parameters == pytest.approx(hybrid.parameters, rel=0.05)


def evaluation(right):
    """Of images of class 0, each right or not."""
    predictions = torch.tensor([[0 if one else 1] for one in right])
    return Evaluation(0, 0, 1, 0, 0, 2, torch.zeros(len(right)), predictions, torch.ones(len(right), 1), [])


@pytest.mark.parametrize(
    ("hybrid", "plain", "said"),
    [
        ("111", "111", r"hybrid alone is right on 0, the plain CNN alone on 0: no difference .* p = 1\.00"),
        ("1110", "1001", r"hybrid alone is right on 2, the plain CNN alone on 1: no difference .* p = 1\.00"),
        ("1" * 8, "0" * 8, r"right on 8, the plain CNN alone on 0: the hybrid is better by more .* p = 0\.008"),
        ("0" * 9, "1" * 8 + "0", r"right on 0, the plain CNN alone on 8: the plain CNN is better .* p = 0\.008"),
    ],
)
def test_the_verdict_is_that_of_a_sign_test(hybrid, plain, said):
    duel = _compare(*(evaluation([digit == "1" for digit in text]) for text in (hybrid, plain)))
    assert re.search(said, duel.verdict)


@pytest.mark.slow  # trains two networks for an epoch and exports to ONNX: about thirty seconds
def test_the_whole_demo(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert command(read(["--output", str(folder), "--epochs", "1", "--json"])) == 0
    results = json.loads(capsys.readouterr().out)
    assert {path.name for path in folder.iterdir()} == {
        ".convattn-demo",
        "report.html",
        "model.onnx",
        "run",
        "plain-cnn",
    }
    assert results["top1"] > 30  # of ten classes, after one epoch
    assert results["is_target_reached"] is (results["top1"] >= 98.5)
    assert results["test_images"] == 360
    assert results["max_relative_error"] < 1e-4
    assert set(results["latency_ms"]) == {"eager", "fused", "ONNX Runtime"}
    plain = results["plain_cnn"]
    assert plain["top1"] != results["top1"]
    alone = plain["hybrid_right_alone"] - plain["right_alone"]
    assert round((results["top1"] - plain["top1"]) * 3.6) == alone  # of 360 images
    assert plain["macs"] == pytest.approx(results["macs"], rel=0.02)
    page = (folder / "report.html").read_text()
    for heading in ("How it learned", "How they learned", "Beside a plain CNN of equal cost"):
        assert heading in page
    for heading in ("What it confuses", "Where it looks", "The model", "How fast it runs", "Export"):
        assert heading in page
    assert page.count("<img ") >= 2 * 3
    assert f"{results['top1']:.2f} %" in page
    assert f"{plain['top1']:.2f} %" in page
