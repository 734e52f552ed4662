"""`convattn bench`: what it prints and writes, and what it refuses. Nothing here asks how fast something is."""

import json
import os
import sys

import pytest

from convattn.bench.allocator import SETTINGS
from convattn.bench.latency import Interrupted, Latency
from convattn.bench.runtimes import Setting
from convattn.bench.table import BenchmarkRow, BenchmarkTable
from convattn.cli import bench
from convattn.cli.main import main
from convattn.cli.options.bench import read
from html_page import Page

QUICK = ["--size", "32", "--repeats", "2", "--no-memory", "--reference", "timm:test_resnet"]


def test_prints_figures_and_ratios_and_writes_a_page(capsys, tmp_path):
    page = tmp_path / "new" / "page.html"
    words = ["smt_nano", "--against", "timm:test_vit", "--runtime", "eager,fused", *QUICK, "--html", str(page)]
    assert main(["bench", *words]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert ["model", "eager", "fused"] in lines
    (ratios,) = (line for line in lines if line[:1] == ["timm:test_resnet"] and len(line) == 3)
    assert ratios[1] == "1.00"
    assert any(line[:2] == ["smt_nano", "fused"] for line in lines)
    assert "not measured: timm:test_vit, fused, batch 1, 32 px, fp32, cpu: nothing to fuse" in printed.out
    assert "preparing smt_nano, eager (1 of 6)" in printed.err
    assert "Benchmark of 3 models" in Page(page.read_text()).words


def test_json_with_growth_and_profile(capsys, monkeypatch):
    monkeypatch.setattr("convattn.bench.limits._SHAPES", ((16, 16, 16),))
    monkeypatch.setattr("convattn.bench.limits._COPIED", 2**16)
    words = ["smt_nano", "--runtime", "fused", *QUICK, "--size", "32,48,64", "--batch", "1", "--growth", "--profile"]
    assert main(["bench", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["image_size"]) for row in found["rows"] if row["runtime"] == "fused"] == [
        (model, size) for size in (32, 48, 64) for model in ("smt_nano", "timm:test_resnet")
    ]
    of_smt = found["growth"][0]
    assert (of_smt["model"], of_smt["over"], of_smt["at"]) == ("smt_nano", "pixels", [32, 48, 64])
    assert 0.9 < of_smt["macs"]["value"] < 1.2  # its attention, which grows faster, is a small part
    (profile,) = found["profiles"]
    assert profile["of"] == "smt_nano, fused, batch 1, 32 px, fp32, cpu"
    assert profile["limits"]["macs_per_second"] > 0
    assert any(operation["module"].startswith("stages.") for operation in profile["operations"])


def test_several_precisions_and_batches(capsys):
    words = [
        "smt_nano",
        "--runtime",
        "fused",
        "--precision",
        "fp32,int8",
        "--batch",
        "1,2",
        *QUICK,
        "--reference",
        "None",
    ]
    assert main(["bench", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["precision"], row["batch_size"], row["per_mac"]) for row in found["rows"]] == [
        ("fp32", 1, None),
        ("fp32", 2, None),
    ]
    assert {gap["why"] for gap in found["not_measured"]} == {"PyTorch runs fp32 and bf16 on cpu, not int8"}


def test_when_nothing_could_be_measured_the_status_says_so(capsys):
    assert main(["bench", "smt_nano", "--precision", "int8", *QUICK]) == 1
    assert "PyTorch runs fp32 and bf16 on cpu, not int8" in capsys.readouterr().out


def test_ctrl_c_shows_and_writes_what_there_is(monkeypatch, capsys, tmp_path):
    latency = Latency("x", 20.0, 19.0, 21.0, 22.0, 3, 0.0)
    row = BenchmarkRow("smt_nano", "fused", Setting(), "channels_last", 10**6, 10**9, latency)

    def interrupted(*args, **options):
        raise Interrupted(BenchmarkTable((row,), {"torch": "2.x"}, interrupted=True))

    monkeypatch.setattr(bench, "measure_settings", interrupted)
    page = tmp_path / "page.html"
    assert main(["bench", "smt_nano", "--runtime", "fused", "--profile", "--html", str(page)]) == 130
    printed = capsys.readouterr()
    assert "smt_nano" in printed.out and "20.0" in printed.out
    assert printed.err.endswith("convattn bench: interrupted; rows measured until then: 1\n")
    assert "Interrupted: what was measured until then." in Page(page.read_text()).words


def test_it_starts_again_with_a_steady_allocator_if_the_process_is_its_own(monkeypatch):
    class Replaced(Exception):
        pass

    def execve(program, words, environment):
        raise Replaced(words, environment)

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    args = ["smt_nano", "--runtime", "fused", *QUICK]
    words = ["bench", *args, "--debug"]
    monkeypatch.setattr(sys, "argv", ["convattn/__main__.py", *words])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "convattn", *words])
    with pytest.raises(Replaced) as replaced:
        bench.command(read(args))
    words, environment = replaced.value.args
    assert words == sys.orig_argv
    assert SETTINGS.items() <= environment.items()

    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert bench.command(read(args)) == 0  # called by somebody else: goes on as it is


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["smt_nono"], 2, "unknown model 'smt_nono'; nearest: smt_nano"),
        (["smt_nano", "--runtime", "fussed"], 2, "runtime 'fussed' is unknown; nearest: fused"),
        (["smt_nano", "--precision", "fp8"], 2, "precision 'fp8' is unknown; choose among fp32, bf16, fp16, int8"),
        (["smt_nano", "--batch", "1;8"], 2, "batch '1;8' must be whole numbers with commas between them, such as 1,8"),
        (["smt_nano", "--batch", "1,0"], 2, "batch 0 must be 1 or more"),
        (["smt_nano", "--batch", ""], 2, "batch '' names nothing; give one value, or several with commas between them"),
        (["smt_nano", "--runtime", ","], 2, "runtime ',' names nothing"),
        (["smt_nano", "--threads", "all"], 2, "--threads takes INT, not 'all'"),
        (["smt_nano", "--threads", "99999"], 2, "threads 99999 must be 1 to "),
        (["smt_nono", "--html", "new/page.html"], 2, "unknown model 'smt_nono'"),
        (
            ["smt_nano", "--html", "/dev/null/page.html"],
            1,
            "/dev/null/page.html: could not be written: /dev/null is no",
        ),
        (["smt_nano", "--repeats", "0"], 2, "repeats 0 must be 1 or more"),
        (
            ["smt_nano", "--growth", "--size", "32,64", "--batch", "1"],
            2,
            "growth needs three different sizes or batches",
        ),
        (["smt_nano", "--growth", "--size", "32,32,32", "--batch", "1"], 2, "growth needs three different sizes"),
        (["smt_nano", "--profile", "--runtime", "onnxruntime"], 2, "--profile watches eager, fused or prepacked"),
        (["smt_nano", "--html", "."], 2, ".: is a folder; name a file"),
        ([], 2, "missing NAME"),
    ],
)
def test_bad_requests_are_one_line_and_leave_nothing(words, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *words]) == status
    error = capsys.readouterr().err
    assert message in error and error.count("convattn bench: ") == 1
    assert list(tmp_path.iterdir()) == []
