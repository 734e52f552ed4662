import json
from pathlib import Path

import pytest

from convattn.cli.comparing import shared_recipe
from convattn.cli.main import main
from convattn.cli.options.ablate import key_and_values, options_of, read
from forked_runs import ForkedProgram
from tiny_runs import write_pictures

TINY = [
    *("--base", "timm:resnet18", "--base-options", "channels=(4,8,8,8)", "output_stride=8"),
    *("--epochs", "1", "--batch-size", "8", "--image-size", "16", "--seeds", "2", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(write_pictures(tmp_path_factory.mktemp("pictures"), train=4, val=2))


def test_a_comparison_from_the_words_to_the_page(pictures, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["ablate", *TINY, "--mixers", "none,se", "--data", pictures, "--output", str(output)]
    words += ["--budgets", "epochs", "--controls", "placebo"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "Equal epochs" in captured.out
    assert "equal epochs: no difference found between se and none" in captured.out
    assert captured.out.splitlines()[-1] == str(output / "report.html")
    assert sorted(path.name for path in output.iterdir()) == ["epochs", "plan.json", "report.html", "results.json"]
    assert sorted(path.name for path in (output / "epochs").iterdir()) == ["none", "se", "se-frozen"]
    page = (output / "report.html").read_text()
    assert "https://" not in page
    assert page.count('class="dot"') == 3 * 2 + 2 * 2
    assert main([*words, "--seeds", "3", "--json"]) == 0  # nothing but the third seed is trained
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((output / "results.json").read_text())
    assert [list(row["figures"]) for row in found["budgets"]["epochs"]] == [["0", "1", "2"]] * 3
    assert main([*words, "--epochs", "2"]) == 2
    assert capsys.readouterr().err.endswith("holds another comparison (--epochs 1); choose another --output\n")


@pytest.mark.slow  # two programs beside one another; a run that another has is passed over in test_sweep.py
def test_two_processes_share_the_runs_and_train_none_twice(pictures, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["ablate", *TINY, "--mixers", "none,se,eca", "--data", pictures, "--output", str(output)]
    words += ["--budgets", "epochs", "--controls", "none", "--seeds", "3"]
    begin = "import sys; from convattn.cli.main import main; sys.exit(main(sys.argv[1:]))"
    programs = [ForkedProgram(begin, *words) for _ in range(2)]
    ended = [program.join() for program in programs]
    assert [one.returncode for one in ended] == [0, 0], ended
    logs = sorted((output / "epochs").rglob("log.jsonl"))
    assert len(logs) == 9
    assert [len(log.read_text().splitlines()) for log in logs] == [1] * 9  # one epoch each, trained once
    assert main([*words, "--json"]) == 0  # nothing is left to train
    found = json.loads(capsys.readouterr().out)
    assert [list(row["figures"]) for row in found["budgets"]["epochs"]] == [["0", "1", "2"]] * 3


@pytest.mark.filterwarnings("ignore::convattn.data.dataset.DataWarning")  # which folder is which
@pytest.mark.parametrize("folder", ["val", "Validation", "TEST"])
def test_where_images_are_held_out_the_others_judge_whatever_letters_name_them(folder, tmp_path):
    (write_pictures(tmp_path, train=4, val=2) / "val").rename(tmp_path / folder)
    words = ["--base", "smt_nano", "--mixers", "none,se", "--data", str(tmp_path), "--hold-out", "0.5"]
    config, train = shared_recipe(read(words))
    assert config.data.evaluations == (f"test={tmp_path / folder}",)
    assert {Path(path).relative_to(tmp_path).parts[0] for path in train.paths} == {"train"}


def test_a_dry_run_trains_nothing(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["ablate", *TINY, "--vary", "output_stride=16|(0,)", "--data", pictures, "--dry-run", "--json"]
    assert main([*words, "--controls", "none", "--hold-out", "0.5", "--choose", "best", "--batch-size", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] >= 4
    assert [row["Design"] for row in found["one_seed"]][:2] == ["base", "output_stride=16"]
    assert found["not_built"] == {"output_stride=0": "AssertionError in timm:resnet18"}
    assert not list(tmp_path.iterdir())


def test_presets_are_listed(capsys):
    assert main(["ablate", "--list"]) == 0
    assert "das_rivals" in capsys.readouterr().out
    assert main(["ablate", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cotnet_fusion"]["designs"][0]["published"] == 79.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a preset, or --mixers, or --vary; none of them was given"),
        (["smt_heads", "--mixers", "se", "--data", "x"], "preset and mixers was given"),
        (["smt_heads"], "missing --data, the folder of images"),
        (["smt_heads", "--data", "x", "--seeds", "1"], "--seeds 1: one run says nothing of the spread between runs"),
        (["smt_heads", "--data", "x", "--epochs", "0"], "--epochs 0 must be above 0"),
        (["smt_heads", "--data", "x", "--hold-out", "1"], "--hold-out 1.0 must be above 0 and below 1"),
        (["smt_heads", "--data", "x", "--choose", "best"], "--choose best needs --hold-out"),
        (["smt_heads", "--data", "x", "--budgets", "epochs", "--minutes", "1"], "--minutes has no effect"),
        (["smt_heads", "--data", "x", "--budgets", "hours"], "--budgets 'hours' is unknown; choose of epochs, time"),
        (["smt_heads", "--data", "x", "--budgets", ","], "--budgets ',' names nothing; choose of epochs, time"),
        (["smt_heads", "--data", "x", "--controls", "all"], "--controls 'all' is unknown; choose of parameters"),
        (["smt_heads", "--data", "x", "--tune-decay", "x"], "--tune-decay 'x' must be numbers above 0"),
        (["smt_heads", "--data", "x", "--tune", "1,0"], "--tune '1,0' must be numbers above 0"),
        (["--mixers", "se", "--data", "x", "--base-options", "a"], "--base-options 'a' must be KEY=VALUE"),
        (["--vary", "dims", "--data", "x"], "--vary 'dims' must be KEY=VALUE|VALUE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, message, capsys):
    assert main(["ablate", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convattn ablate: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smt_headz"], "unknown preset 'smt_headz'; nearest: smt_heads"),
        ([*TINY, "--mixers", "see"], "unknown mixer 'see'; nearest: se, ese"),
        ([*TINY, "--mixers", "se,se"], "designs of equal names: se, se; name each once"),
        ([*TINY, "--mixers", "se", "--recipe", "smt"], "unknown recipe 'smt'; "),
        (
            [*TINY, "--mixers", "se", "--controls", "none", "--minutes", "0.000001"],
            "the budget of equal time ends before one epoch of none",
        ),
    ],
)
def test_what_only_the_libraries_know_is_said_in_one_line(words, message, pictures, tmp_path, capsys):
    assert main(["ablate", *words, "--data", pictures, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert not (tmp_path / "out").exists()


def test_values_are_literals_or_words():
    words = ["--data", "x", "--vary", "mixers=('sam','gma')|sam|2"]
    assert key_and_values(read(words)) == ("mixers", [("sam", "gma"), "sam", 2])
    words = ["--data", "x", "--mixers", "se", "--base-options", "dims=(1,2)", "act=relu"]
    assert options_of(read(words)) == {"dims": (1, 2), "act": "relu"}
