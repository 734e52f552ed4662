"""What a command imports: no torch where none is needed."""

import importlib.util
import json
import subprocess
import sys

import pytest

import convattn
from convattn import starting
from convattn.cli.main import COMMANDS
from run_folders import write_run
from tiny_masks import write_masked
from tiny_runs import write_pictures

# Runs commands in one process that has no torch; prints the status and what each said.
WITHOUT_TORCH = """
import contextlib, io, json, sys

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "timm"}:
            raise ImportError(f"{name} is not needed")

sys.meta_path.insert(0, Refusal())
from convattn_command import main

answers = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
    answers.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


def test_what_needs_no_torch_imports_none(tmp_path):
    pictures = str(write_pictures(tmp_path / "pictures", train=1, val=1))
    masks = str(write_masked(tmp_path / "masked"))
    write_run(tmp_path / "runs" / "a", [50.0])
    runs, page = str(tmp_path / "runs"), str(tmp_path / "page.html")
    calls = {
        "usage: convattn COMMAND": ["--help"],
        f"{convattn.__version__}\n": ["--version"],
        "recipe": ["train", "--list"],
        "{": ["train", "--list", "--json"],
        "Figures": ["runs", runs, "--output", page],
        '{\n  "runs"': ["runs", runs, "--json"],
        "split": ["data", "check", pictures, "--output", page],
        '{\n  "splits"': ["data", "check", pictures, "--json"],
        "split ": ["data", "check", masks, "--output", page],
        "usage: convattn train [RECIPE]": ["train", "--help"],
        "usage: convattn train [RECIPE] ": ["train", "cotnet_50_imagenet", "--help-all"],
    }
    # What `bench` can run is known to the libraries alone.
    calls |= {f"usage: convattn {name}": [name, "--help"] for name in COMMANDS if name not in ("bench", "train")}
    wrong = [["trian"], ["predict"], ["eval", "a", "--batch-size", "0"], ["train", "--optimizer.lrr", "1"], ["bench"]]
    words = json.dumps([*calls.values(), *wrong])
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, words], capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout)
    for begin, (status, out, err) in zip(calls, answers, strict=False):
        assert (status, err) == (0, ""), begin
        assert out.lstrip().startswith(begin)
    for status, out, err in answers[len(calls) :]:
        assert (status, out) == (2, "")
        assert err.count("\n") == 1


def test_as_a_module_it_imports_no_more():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "convattn", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{convattn.__version__}\n"
    assert "convattn.cli.main" in done.stderr
    assert "torch" not in done.stderr


@pytest.mark.parametrize(
    ("words", "program", "is_command"),
    [
        (["python", "-m", "convattn", "runs"], "-m", True),
        (["python", "-X", "dev", "-m", "convattn"], "-m", True),
        (["python", "-m", "convattn.timm", "train.py"], "-m", False),
        (["python", "-m", "mine", "-m", "convattn"], "-m", False),
        (["python", "script.py", "-m", "convattn"], "script.py", False),
        (["python"], "", False),
    ],
)
def test_only_our_own_program_is_a_command(monkeypatch, words, program, is_command):
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", [program])
    assert starting.runs_command() is is_command
    monkeypatch.setitem(sys.modules, starting.SCRIPT, sys)
    assert starting.runs_command()


def test_in_a_command_the_public_names_come_with_the_first_use(monkeypatch):
    monkeypatch.setattr(starting, "runs_command", lambda: True)
    spec = importlib.util.spec_from_file_location("again", convattn.__file__)
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    assert "create_model" not in vars(package)
    assert package.create_model is convattn.create_model
    assert package.__version__ == convattn.__version__
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018
    with pytest.raises(AttributeError):
        package.__no_such_name__  # noqa: B018
