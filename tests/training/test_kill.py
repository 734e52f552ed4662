"""A run that loses a process to SIGKILL, or whose group is stopped, ends as if it had not been, once resumed."""

import io
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from convattn.atomic import unfinished
from convattn.data.workers import worker_options
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.config import ConfigError
from convattn.training.lock import LOCK_NAME
from convattn.training.loop import train
from forked_runs import ForkedRun, Kill, signal_group, train_forked, train_killed
from tiny_runs import EVERYTHING, assert_same_run, tiny_config, write_pictures

BACKWARD = "accelerate:Accelerator.backward"
STEP = "accelerate.optimizer:AcceleratedOptimizer.step"
AVERAGE = "convattn.training.build:ModelEmaV3.update"
VALIDATING = "convattn.training.progress:TrainingDisplay.validating"
VALIDATION = "convattn.classification.task:Classification.meter"
SAVE = "convattn.training.run:Run.save"
PATIENCE = 300.0  # seconds: only what hangs takes so long, whatever else the machine does
SYNC, REPLACE, RENAME, UNLINK = "os:fsync", "os:replace", "os:rename", "os:unlink"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def configured(pictures, folder, *, processes=1, workers=0):
    """Two epochs of three updates on eight images, with a checkpoint after each."""
    parts = {
        **EVERYTHING,
        "data": {"workers": workers, "batch_size": 4 // processes},
        "schedule": dict(epochs=2, warmup_epochs=1),
        "output": dict(checkpoint_updates=1),
    }
    return tiny_config(pictures, folder, **parts)


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory):
    """The uninterrupted run of so many processes."""
    runs: dict[int, Path] = {}

    def of(processes):
        if processes not in runs:
            folder = tmp_path_factory.mktemp("straight") / "run"
            runs[processes] = train_forked(configured(pictures, folder, processes=processes), processes=processes)
        return runs[processes]

    return of


# Of os.replace, the first two calls write config.json and log.jsonl; a checkpoint takes five, an epoch's end seven.
@pytest.mark.parametrize(
    ("kill", "workers", "resumed_from"),
    [
        (Kill(BACKWARD, 2), 0, None),  # between the two batches of the first update
        (Kill(REPLACE, 5), 0, None),  # inside the first save
        (Kill(STEP, 2, after=True), 2, "epoch_00000_image_000000008"),
        # What is lost is in memory alone, as in the row above.
        pytest.param(Kill(AVERAGE, 3), 0, "epoch_00000_image_000000016", marks=pytest.mark.slow),
        (Kill(VALIDATION, 1), 2, "epoch_00000_image_000000016"),
        (Kill(REPLACE, 13), 0, "epoch_00000_image_000000016"),  # the first epoch's best.safetensors, not its last
        (Kill(SYNC, 36), 2, "epoch_00000_image_000000016"),  # inside the first epoch's save
        (Kill(RENAME, 3), 0, "epoch_00000_image_000000016"),  # written whole, and not yet in its place
        (Kill(RENAME, 3, after=True), 0, "epoch_00001_image_000000000"),  # in its place, an old one too many
        (Kill(UNLINK, 3), 0, "epoch_00001_image_000000000"),  # half of the old one is removed
        (Kill(BACKWARD, 11), 2, "epoch_00001_image_000000016"),
    ],
)
def test_killed_and_resumed_is_as_never_killed(pictures, tmp_path, straight, kill, workers, resumed_from):
    config = configured(pictures, tmp_path / "run", workers=workers)
    killed = train_killed(config, kill)
    whole = [folder.name for folder in checkpoint_folders(tmp_path / "run")]
    assert (whole[0] if whole else None) == resumed_from
    resumed = train_forked(config, resume=True)
    assert ("no checkpoint was written yet; starting from the beginning" in killed.said()) is (resumed_from is None)
    assert_same_run(straight(1), resumed)
    assert unfinished(resumed) == []


@pytest.mark.parametrize(
    ("kill", "workers"),
    [
        (Kill(BACKWARD, 4, rank=1), 0),
        pytest.param(Kill(STEP, 3, after=True, rank=0), 2, marks=pytest.mark.slow),  # the main one is lost below, too
        (Kill(RENAME, 3, rank=0), 0),
    ],
)
def test_one_of_two_is_killed_and_both_are_resumed(pictures, tmp_path, straight, kill, workers):
    config = configured(pictures, tmp_path / "run", processes=2, workers=workers)
    train_killed(config, kill, processes=2)
    resumed = train_forked(config, processes=2, resume=True)
    assert_same_run(straight(2), resumed)
    assert unfinished(resumed) == []


def test_killed_twice(pictures, tmp_path, straight):
    config = configured(pictures, tmp_path / "run")
    train_killed(config, Kill(STEP, 4))
    train_killed(config, Kill(RENAME, 1, after=True), resume=True)  # at the very place where the first kill struck
    assert_same_run(straight(1), train_forked(config, resume=True))


def test_killed_before_anything_was_written(pictures, tmp_path, straight):
    config = configured(pictures, tmp_path / "run")
    train_killed(config, Kill(REPLACE, 1))
    assert set((tmp_path / "run").iterdir()) == {*unfinished(tmp_path / "run"), tmp_path / "run" / LOCK_NAME}
    with pytest.raises(ConfigError, match=r"run: no run to resume here; it holds no config.json"):
        train(config, resume=True, console=Console(file=io.StringIO()))
    assert_same_run(straight(1), train_forked(config))  # what was begun is in nobody's way, and goes
    assert unfinished(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("processes", "where", "call", "signals"),
    [
        pytest.param(1, STEP, 2, [signal.SIGTERM], marks=pytest.mark.slow),  # the rows below go the same way
        (1, STEP, 3, [signal.SIGINT]),
        (1, STEP, 4, [signal.SIGTERM, signal.SIGTERM]),  # `timeout` sends two
        (1, VALIDATING, 3, [signal.SIGTERM]),  # the first two look at the images before the first epoch
        (2, STEP, 2, [signal.SIGTERM]),
    ],
)
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(pictures, tmp_path, straight, processes, where, call, signals):
    config = configured(pictures, tmp_path / "run", processes=processes, workers=1)
    run = ForkedRun(config, processes=processes, prepare=signal_group, args=[where, call, *signals])
    assert run.join() == [128 + signals[0]] * processes, run.said()
    assert f"go on with: convattn train --resume {tmp_path / 'run'}" in run.said()
    assert_same_run(straight(processes), train_forked(config, processes=processes, resume=True))


class _Stuck(torch.utils.data.Dataset):
    """Reads an image for ever."""

    def __init__(self, began):
        self.began = began

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.began.touch()
        time.sleep(1000)


def test_a_worker_heeds_only_the_main_process(tmp_path):
    began = tmp_path / "began"
    iterator = iter(torch.utils.data.DataLoader(_Stuck(began), **worker_options(1)))
    (worker,) = iterator._workers
    wait_until(began.exists)
    stranger = os.fork()
    if not stranger:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
        os._exit(0)
    os.waitpid(stranger, 0)
    wait_until(lambda: not is_pending(worker.pid, signal.SIGTERM))  # two at once would be one, from the first of them
    worker.join(0.2)
    assert worker.is_alive()
    worker.terminate()  # as the loader does with one that does not end
    worker.join(PATIENCE)
    assert worker.exitcode == 0


def test_loader_workers_go_when_their_process_was_killed(pictures, tmp_path):
    config = configured(pictures, tmp_path / "run", workers=2)
    run = ForkedRun(config)
    wait_until(lambda: len(children(run.processes[0].pid)) >= 2)
    workers = children(run.processes[0].pid)
    run.kill([0])
    run.join()
    wait_until(lambda: not any(map(is_running, workers)))  # they look every five seconds


def wait_until(holds):
    """Returns once `holds()` is true; fails where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_pending(process, number):
    """Whether a process has been sent a signal that none of its threads has taken yet."""
    status = Path(f"/proc/{process}/status").read_text()
    pending = next(line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd"))
    return bool(int(pending, 16) >> (number - 1) & 1)


def children(process):
    """Process ids of the children of a process."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    try:
        return [int(word) for file in lists for word in file.read_text().split()]
    except FileNotFoundError:  # a thread has ended meanwhile
        return []


def is_running(process):
    """Whether a process is there, and not only its entry in the table."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
