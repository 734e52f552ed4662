"""One run in a folder at a time."""

import errno
import io
import os
import signal
import time

import pytest
from rich.console import Console

from convattn.training import lock
from convattn.training.config import ConfigError
from convattn.training.lock import LOCK_NAME, FolderLock
from convattn.training.loop import train
from convattn.training.progress import TrainingDisplay
from forked_runs import ForkedProgram
from tiny_runs import tiny_config, write_pictures

IN_USE = r"run: another run is writing into this folder; wait for its end, stop it, or choose another --output"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def quiet():
    return Console(file=io.StringIO())


def test_a_folder_is_created_and_goes_again_if_nothing_was_written(tmp_path):
    run = tmp_path / "runs" / "run"
    with FolderLock(run):
        assert [path.name for path in run.iterdir()] == [LOCK_NAME]
    assert list(tmp_path.iterdir()) == []
    with FolderLock(run):
        (run / "config.json").touch()
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_this_process_cannot_take_it_twice(tmp_path):
    with FolderLock(tmp_path / "run"):
        with pytest.raises(ConfigError, match=IN_USE), FolderLock(tmp_path / "other" / ".." / "run"):
            pass
        with pytest.raises(ConfigError, match=IN_USE), FolderLock(tmp_path / "run"):
            pass
    with FolderLock(tmp_path / "run"):
        pass


HOLD = """
import os, sys, time
from pathlib import Path
from convattn.training.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    if not os.fork():  # a worker, which outlives it
        time.sleep(3)
        os._exit(0)
    print("held", flush=True)
    Path(sys.argv[1], "held").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_until_the_first_was_killed(pictures, tmp_path, resume):
    run = tmp_path / "run"
    config = tiny_config(pictures, run)
    holder = ForkedProgram(HOLD, run)
    while not (run / "held").exists():
        assert holder.is_alive()
        time.sleep(0.01)
    with pytest.raises(ConfigError, match=IN_USE):
        train(config, resume=resume, console=quiet())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert sorted(path.name for path in run.iterdir()) == [LOCK_NAME, "held"]
    (run / "held").unlink()
    train(config, console=quiet())
    assert not (run / LOCK_NAME).exists()


def refuse(*args):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_where_nothing_can_be_locked_the_run_goes_on_and_says_so(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    console = quiet()
    folder = train(tiny_config(pictures, tmp_path / "run", schedule=dict(epochs=1, warmup_epochs=0)), console=console)
    assert f"warning: {folder}: cannot be locked (No locks available); let no other run write there" in (
        console.file.getvalue()
    )
    assert (folder / "best.safetensors").exists()


@pytest.mark.parametrize("locks", [False, True])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_gone_is_seen_with_a_lock_and_without(tmp_path, monkeypatch, locks, replaced):
    if not locks:
        monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    run = tmp_path / "run"
    with FolderLock(run) as held:
        held.check()
        (run / "config.json").touch()
        held.check()
        run.rename(tmp_path / "moved")
        if replaced:
            run.mkdir()
        with pytest.raises(FileNotFoundError, match=r"removed or replaced while the run wrote into it"):
            held.check()
    assert run.exists() is replaced


def test_two_runs_without_locks_do_not_take_each_other_for_a_removed_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with FolderLock(tmp_path / "run") as first:
        with FolderLock(tmp_path / "run") as second:
            second.check()
        first.check()
        assert second.problem is not None


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_moved_away_ends_the_run_in_one_line_and_loses_nothing(
    pictures, tmp_path, monkeypatch, replaced
):
    config = tiny_config(pictures, tmp_path / "run")
    update = TrainingDisplay.update

    def moving(self, counters, **figures):
        update(self, counters, **figures)
        if counters.step == 8:  # in the second epoch
            (tmp_path / "run").rename(tmp_path / "moved")
            if replaced:
                (tmp_path / "run").mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "update", moving)
        with pytest.raises(FileNotFoundError) as caught:
            train(config, console=quiet())
    assert caught.value.filename == str(tmp_path / "run")
    assert caught.value.strerror == "the output folder was removed or replaced while the run wrote into it"
    assert not replaced or list((tmp_path / "run").iterdir()) == []
    moved = tiny_config(pictures, tmp_path / "moved")
    assert (train(moved, resume=True, console=quiet()) / "best.safetensors").exists()
