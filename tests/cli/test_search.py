import json
import sys

import pytest

import convattn
from convattn.ablation import widening
from convattn.ablation.search import finals
from convattn.cli.main import main
from convattn.cli.options.search import limit_ms_of, read
from tiny_masks import write_masked
from tiny_runs import write_pictures

pytest.importorskip("optuna")

TINY = [
    *("--latency", "10s", "--networks", "3", "--rungs", "1,2", "--epochs", "1", "--seeds", "2", "--mixers", "sam,cot"),
    *("--batch-size", "8", "--image-size", "16", "--device", "cpu", "--hold-out", "0.25"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(write_pictures(tmp_path_factory.mktemp("pictures"), train=8, val=2, held_out="test"))


@pytest.mark.slow
def test_a_search_from_the_words_to_a_model(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(widening, "_WIDEST", 1.0)  # the others stay as they are
    monkeypatch.setattr(finals, "FAMILIES", ("smt_nano",))
    output = tmp_path / "out"
    words = ["search", *TINY, "--data", pictures, "--output", str(output)]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "found 1" in captured.out
    assert captured.out.splitlines()[-1] == str(output / "report.html")
    found = json.loads((output / "results.json").read_text())
    kept = next(r for r in found["retrained"]["budgets"]["epochs"] if r["design"] == found["chosen"])
    runs = {path: path.stat().st_mtime_ns for path in output.rglob("last.safetensors")}
    names = [row["design"] for row in found["retrained"]["budgets"]["epochs"]]
    assert names[:4] == ["hand-made", "found 1", "found 2", "found 3"]
    assert sum("retrained" in path.parts for path in runs) == 2 * len(names)
    model = convattn.open_model(output / "model.safetensors")
    same = convattn.create_model(str(output / "model.json"), num_classes=2)
    assert model.built_as["options"]["dims"] == same.built_as["options"]["dims"] == tuple(kept["options"]["dims"])
    assert sum(parameter.numel() for parameter in same.parameters()) == kept["parameters"]
    assert main(["models", str(output / "model.safetensors")]) == 0
    capsys.readouterr()
    assert main([*words, "--seeds", "3", "--json"]) == 0  # nothing but the third seed is trained
    again = json.loads(capsys.readouterr().out)
    assert [list(row["figures"]) for row in again["retrained"]["budgets"]["epochs"]] == [["0", "1", "2"]] * len(names)
    assert again["networks"] == found["networks"]
    assert {path: path.stat().st_mtime_ns for path in runs} == runs
    assert main([*words, "--networks", "4"]) == 2
    assert capsys.readouterr().err.endswith("holds another search (networks 3); choose another --output\n")


def test_nothing_is_trained_for_a_latency_that_nothing_meets(pictures, tmp_path, capsys):
    words = ["search", *TINY, "--data", pictures, "--output", str(tmp_path / "out"), "--latency", "1us"]
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("convattn search: nothing meets 0.001 ms in fused here; the fastest found takes ")
    assert line.endswith(" in every stage, one block each); raise --latency")
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.journal").write_text("a letter\n")
    assert main(words) == 2
    assert "study.journal: no study of convattn search" in capsys.readouterr().err


def test_a_dry_run_trains_nothing(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["search", *TINY, "--data", pictures, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epochs"] == {"successive halving": 5, "random search": 5, "training again": 20}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing --data, the folder of images"),
        (["--data", "x"], "missing --latency, such as 5ms"),
        (["--data", "x", "--latency", "5"], "--latency '5' must be a time above 0 with its unit, such as 5ms, 800us"),
        (["--data", "x", "--latency", "0ms"], "--latency '0ms' must be a time above 0"),
        (["--data", "x", "--latency", "5ms", "--seeds", "1"], "--seeds 1: one run says nothing of the spread"),
        (["--data", "x", "--latency", "5ms", "--hold-out", "0"], "--hold-out 0.0 must be above 0 and below 1"),
        (["--data", "x", "--latency", "5ms", "--epochs", "0"], "--epochs 0 must be above 0"),
        (["--data", "x", "--latency", "5ms", "--rungs", "1,a"], "--rungs '1,a' must be whole numbers"),
        (["--data", "x", "--latency", "5ms", "--rungs", "0,3"], "rungs 0,3: the budget ends before one epoch"),
        (["--data", "x", "--latency", "5ms", "--networks", "8"], "networks 8: 3 rungs need 9 or more"),
        (["--data", "x", "--latency", "5ms", "--mixers", ","], "--mixers ',' names nothing"),
        (["--data", "x", "--latency", "5ms", "--mixers", "cot,see"], "unknown mixer 'see'; nearest: se, ese"),
        (["--data", "x", "--latency", "5ms", "--runtime", "onnx"], "runtime 'onnx' is unknown; nearest: onnxruntime"),
        (["--data", "x", "--latency", "5ms", "--threads", "999"], "threads 999 must be 1 to "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, message, capsys):
    assert main(["search", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convattn search: ")
    assert message in error
    assert error.count("\n") == 1


def test_images_of_another_task_are_refused(tmp_path, capsys):
    assert main(["search", "--data", str(write_masked(tmp_path)), "--latency", "5ms"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(
        "the search composes networks for classification, and these images are for segmentation; "
        "compare designs for it with convattn ablate"
    )


def test_without_optuna_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["search", "--data", "x", "--latency", "5ms"]) == 1
    assert capsys.readouterr().err == 'convattn search: optuna is not installed; run: pip install "convattn[search]"\n'


@pytest.mark.parametrize(("text", "limit"), [("5ms", 5.0), ("800us", 0.8), ("0.1s", 100.0), (".5 ms", 0.5)])
def test_latencies_with_units(text, limit):
    assert limit_ms_of(read(["--data", "x", "--latency", text])) == pytest.approx(limit)
