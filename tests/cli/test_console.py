"""Outputs that are narrow, closed, full or gone."""

import errno
import io
import os
import sys

import pytest
from rich.table import Column, Table
from torch.utils.data import DataLoader

from convattn.cli import main as front
from convattn.cli.console import console, plain, say, warn
from convattn.cli.main import main


class Command:
    """Stands for any command."""

    def __init__(self, work, status=0):
        self.work, self.status = work, status

    def read(self, args):
        return args

    def command(self, options):
        self.work()
        return self.status


@pytest.fixture
def run(monkeypatch):
    def run(work, status=0):
        monkeypatch.setattr(front.importlib, "import_module", lambda name: Command(work, status))
        return main(["models"])

    return run


def narrow(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


def speak():
    say("café 猫 [red]:smile: two\nlines \x1b[31m caf\udce9")
    warn("café 猫")
    console().print(plain("[bold]猫\n"))


@pytest.mark.parametrize(
    ("encoding", "cafe", "cat"),
    [("ascii", rb"caf\xe9", rb"\u732b"), ("cp1252", b"caf\xe9", rb"\u732b"), ("utf-8", "café".encode(), "猫".encode())],
)
def test_an_output_shows_what_it_can_hold_and_escapes_the_rest(run, monkeypatch, encoding, cafe, cat):
    out, err = narrow(encoding), narrow(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert run(speak) == 0
    rest = rb" [red]:smile: two\nlines \x1b[31m caf\xe9" + b"\n"
    assert out.buffer.getvalue() == cafe + b" " + cat + rest + b"[bold]" + cat + b"\\n\n"
    assert err.buffer.getvalue() == cafe + b" " + cat + b"\n"
    assert (sys.stdout, sys.stderr) == (out, err)


def test_without_a_terminal_no_table_is_wrapped_or_cut(run, monkeypatch):
    def show():
        table = Table(Column("short", no_wrap=True), "long", box=None, pad_edge=False)
        table.add_row("a" * 150, "b " * 200 + "c")
        table.add_row("d", "e")
        console().print(plain("title"), table, sep="\n")

    monkeypatch.setenv("COLUMNS", "40")  # which says nothing of a file
    out = narrow("utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    assert run(show) == 0
    rows = out.buffer.getvalue().decode().splitlines()
    assert rows == ["title", "short" + 147 * " " + "long", "a" * 150 + "  " + "b " * 200 + "c", "d" + 151 * " " + "e"]


def test_without_any_output_a_command_works(run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run(speak) == 0
    assert main(["--help"]) == 0
    assert main(["trian"]) == 2
    assert main(["models", "--no-such-option"]) == 0  # of the stand-in


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("buffering", [1, 4096])
def test_a_full_disk_is_one_line_and_a_failure(run, monkeypatch, capsys, buffering):
    for work in (lambda: run(lambda: say("a result")), lambda: main(["--help"])):
        with open("/dev/full", "w", buffering=buffering) as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert work() == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "convattn models: standard output could not be written: No space left on device",
        "convattn --help: standard output could not be written: No space left on device",
    ]


@pytest.mark.parametrize("buffering", [1, 4096])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(run, monkeypatch, capsys, buffering):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=buffering) as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert run(lambda: say("a result"), status=1) == 0
    assert capsys.readouterr().err == ""


def test_another_pipe_that_breaks_is_an_error(run, capsys):
    def fail():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert run(fail) == 1
    assert capsys.readouterr().err == "convattn models: Broken pipe\n"


def test_notes_are_lost_where_standard_error_has_gone_and_the_work_goes_on(run, monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        assert run(speak) == 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    assert "café" in capsys.readouterr().out


@pytest.mark.filterwarnings("always")
def test_a_warning_is_one_line_without_its_place_in_the_code(run, capsys):
    import warnings

    loaders = [lambda: DataLoader([0], num_workers=9_999)] * 2  # for training and validation
    assert run(lambda: [make() for make in loaders]) == 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    few = f"warning: 9999 workers for {cores} processor cores make loading slower; {cores} are enough"
    assert capsys.readouterr().err.splitlines()[0] == few

    assert run(lambda: warnings.warn("file \x1b[31m.pth:\n  left out", stacklevel=2)) == 0
    assert capsys.readouterr().err == "warning: file \\x1b[31m.pth: left out\n"
