"""The front door: exit statuses, one-line errors, help."""

import pytest

from convattn.cli import main as front
from convattn.cli.arguments import UsageError
from convattn.cli.main import COMMANDS, main
from convattn.config_errors import ConfigError, RunFolderError
from convattn.nearest import UnknownName


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: convattn {name}" in shown
    assert "Examples:" in shown


def test_no_command_is_bad_usage(capsys):
    assert main([]) == 2
    assert "usage: convattn COMMAND" in capsys.readouterr().out


def test_unknown_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "convattn: unknown command 'trian'; nearest: train\n"


def test_that_more_names_are_known_than_are_listed_is_said(capsys):
    assert main(["qqq"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f", search and {len(COMMANDS) - 12} more")


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_option_is_bad_usage(name, capsys):
    assert main([name, "--no-such-option"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"convattn {name}: ")
    assert line.endswith(f"; see convattn {name} --help")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export", "smt_nano"], "missing PATH"),
        (["predict"], "missing MODEL"),
        (["models", "a", "b"], "unrecognized options: b"),
        (["train", "--optimizer.lrr", "3"], "unrecognized options: --optimizer.lrr, 3; nearest: --optimizer.lr"),
        (["train", "--optimizer.lr", "-1"], "optimizer.lr -1.0 must be above 0"),
        (["train", "--loop.precision", "fp8"], "invalid choice 'fp8' for argument '--loop.precision'"),
        (["demo", "--epochs", "many"], "--epochs takes INT, not 'many'"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_bad_usage_is_told_in_one_line_however_wide_the_terminal(monkeypatch, capsys, args, message, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


def test_errors_are_one_line_and_debug_shows_more(capsys):
    assert main(["models", "smt_tyny"]) == 2
    assert (
        capsys.readouterr().err == "convattn models: unknown model 'smt_tyny'; nearest: smt_tiny, smt_nano, smt_base\n"
    )
    assert main(["models", "smt_tyny", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("two\n  lines"), 1, "two lines"),
        (FileNotFoundError(2, "No such file or directory", "photos"), 1, "photos: No such file or directory"),
        (OSError(28, "a.xml could not be written: No space left"), 1, "a.xml could not be written: No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt("resume with X"), 130, "resume with X"),
        (UsageError("--top 0 must be 1 or more"), 2, "--top 0 must be 1 or more"),
        (AssertionError("Input height (100)\n does not match"), 1, "Input height (100) does not match"),
        (UnknownName("unknown model 'a'"), 2, "unknown model 'a'"),
        (ConfigError("loop.precision fp16 needs a GPU"), 2, "loop.precision fp16 needs a GPU"),
        (RunFolderError("run: no run to resume here"), 1, "run: no run to resume here"),
        (KeyError("model"), 1, "KeyError: 'model'"),
        (MemoryError(), 1, "MemoryError"),
    ],
)
def test_exit_status_of_each_kind_of_error(monkeypatch, capsys, error, status, line):
    class Command:
        @staticmethod
        def read(args):
            raise error

    monkeypatch.setattr(front.importlib, "import_module", lambda name: Command)
    assert main(["models"]) == status
    assert capsys.readouterr().err == f"convattn models: {line}\n"


def test_a_working_folder_that_is_gone_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert main(["models"]) == 1
    assert capsys.readouterr().err == "convattn models: the folder in which it was started is gone; change to another\n"
