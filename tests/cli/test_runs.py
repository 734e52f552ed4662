import json

import pytest

from convattn.cli.main import main
from convattn.cli.runs import _fitting
from convattn.task import Table
from convattn.training.config import DataConfig, LoopConfig
from convattn.training.loop import train
from run_folders import write_run
from tiny_runs import tiny_config, write_pictures


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two real runs that differ in their seed, and a folder that was one."""
    folder = tmp_path_factory.mktemp("runs")
    pictures = write_pictures(tmp_path_factory.mktemp("pictures"))
    train(tiny_config(pictures, folder / "first"))
    train(tiny_config(pictures, folder / "second", loop=dict(seed=7)))
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    (folder / "broken" / "log.jsonl").write_text("")
    return folder


def test_runs_are_compared_on_the_terminal(runs, capsys):
    assert main(["runs", str(runs)]) == 0
    captured = capsys.readouterr()
    figures, settings = ([line.split() for line in part.splitlines()] for part in captured.out.split("\n\n"))
    assert figures[0] == ["Figures"]
    assert figures[1][:5] == ["Run", "Model", "Epochs", "Best", "top-1"]
    assert [row[:5] for row in figures[2:]] == [[name, "smt_nano", "2", "/", "2"] for name in ("first", "second")]
    assert settings == [["Settings", "that", "differ"], ["Setting", "first", "second"], ["loop.seed", "0", "7"]]
    assert captured.err.startswith(f"passed over: {runs / 'broken' / 'config.json'}: damaged (")


def test_runs_as_json_and_as_a_page(runs, tmp_path, capsys):
    page = tmp_path / "comparison.html"
    assert main(["runs", str(runs), "--json", "--output", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["run"], row["epochs"], row["settings"]) for row in found["runs"]] == [
        ("first", 2, {"loop.seed": 0}),
        ("second", 2, {"loop.seed": 7}),
    ]
    log = [json.loads(line) for line in (runs / "second" / "log.jsonl").read_text().splitlines()]
    assert found["runs"][1]["best_top1"] == max(entry["top1"] for entry in log)
    assert found["runs"][1]["hours"] == pytest.approx(sum(entry["seconds"] for entry in log) / 3600)
    assert len(found["passed_over"]) == 1
    assert f"Runs in {runs}" in page.read_text()


def test_a_single_run_has_no_settings_that_differ(runs, capsys):
    assert main(["runs", str(runs / "first")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_runs_are_grouped_by_data_and_told_in_parts_that_fit_the_terminal(tmp_path, capsys):
    for name, data, seed in (("Aa", "cats", 1), ("b", "dogs", 2), ("c", "cats", 3), ("d", "cats", 4)):
        write_run(tmp_path / name, [1.0], data=DataConfig(data), loop=LoopConfig(seed=seed))
    assert main(["runs", str(tmp_path)]) == 0
    figures, settings, others = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [figures[0], *(line.split()[0] for line in figures[1:])] == ["Figures on cats", "Run", "Aa", "c", "d"]
    assert [others[0], *(line.split()[0] for line in others[1:])] == ["Figures on dogs", "Run", "b"]
    assert settings[0] == "Settings that differ on cats"
    assert [line.split() for line in settings[1:]] == [["Setting", "Aa", "c", "d"], ["loop.seed", "1", "3", "4"]]
    table = Table("t", ("Setting", "one", "other"), (("a", "1", "22222"),), frozenset({2}))
    narrow = list(_fitting(table, 15))
    assert [(part.columns, part.rows, part.numbers) for part in narrow] == [
        (("Setting", "one"), (("a", "1"),), frozenset()),
        (("Setting", "other"), (("a", "22222"),), frozenset({1})),
    ]
    assert list(_fitting(table, 100)) == [table]


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (1, ["gone"], "gone: no such folder"),
        (1, ["{empty}"], "no run here or below"),
        (1, ["{runs}/broken"], "broken: no whole run here or below"),
        (2, ["{runs}", "--output", "page.txt"], "--output page.txt must end in .html"),
    ],
)
def test_bad_requests_are_refused_in_one_line(runs, tmp_path, capsys, status, words, message):
    assert main(["runs", *(word.format(runs=runs, empty=tmp_path) for word in words)]) == status
    assert message in capsys.readouterr().err.splitlines()[-1]
