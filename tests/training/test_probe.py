"""What a dry run says of a run, and what it leaves behind: nothing."""

import json
import signal

import pytest

from convattn.training.loop import train
from convattn.training.probe import probe
from convattn.training.update import OutOfMemory
from forked_runs import ForkedProgram, signalled
from tiny_runs import tiny_config, write_pictures

COMMAND = "import sys; from convattn.cli.main import main; sys.exit(main(['train', *sys.argv[1:]]))"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def in_a_process(*args, **environment):
    """`convattn train` in a process of its own, whose peak of memory is its own too."""
    return ForkedProgram(COMMAND, *args, **environment).join()


@pytest.mark.slow
def test_memory_and_disk_are_those_of_the_run(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", train=32, size=64)
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    size = ("--data.image-size", 64, "--data.batch-size", 32, "--loop.device", "cpu", "--schedule.epochs", 2)
    args = ("smt_nano_small_images", "--data", pictures, "--output", run, *size)
    dry = in_a_process(*args, "--dry-run", "--json", TMPDIR=str(temporary))
    assert dry.returncode == 0, dry.stderr
    assert not run.exists()
    assert list(temporary.iterdir()) == []
    said = json.loads(dry.stdout)
    real = in_a_process(*args)
    assert real.returncode == 0, real.stderr
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert said["memory"] / 2**30 == pytest.approx(last["memory_gib"], rel=0.2)
    assert said["config"]["data"]["source"] == str(pictures)
    assert (said["images"], said["updates_per_epoch"], said["updates"], said["problems"]) == (64, 2, 4, 0)
    assert said["hours"] == pytest.approx(64 * 2 / said["images_per_second"] / 3600)
    # Two checkpoints stay of the three that there are while one is written; the rest is small.
    stored = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    checkpoint = sum(path.stat().st_size for path in next((run / "checkpoints").iterdir()).iterdir())
    assert said["disk"] == pytest.approx(stored + checkpoint, rel=0.05)


def test_layers_that_are_frozen_at_first_count(pictures, tmp_path):
    all_learn = probe(tiny_config(pictures, tmp_path / "run"))
    frozen = probe(tiny_config(pictures, tmp_path / "run", loop=dict(freeze_epochs=1)))
    assert frozen.disk == pytest.approx(all_learn.disk, rel=0.01)  # the optimiser's moments are in it


def test_it_tells_of_updates_that_are_not_finite(pictures, tmp_path):
    parts = dict(optimizer=dict(name="sgd", lr=1e30), schedule=dict(warmup_epochs=0))
    assert probe(tiny_config(pictures, tmp_path / "run", **parts)).problems == 4  # all but the first


def test_a_failure_leaves_nothing_behind(pictures, tmp_path, monkeypatch):
    def fail(*args):
        raise OutOfMemory("out of memory")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("convattn.training.probe.update", fail)
    with pytest.raises(OutOfMemory):
        probe(tiny_config(pictures, tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(pictures, tmp_path, number):
    args = ("--dry-run", "--data", str(pictures), "--data.batch-size", "8", "--data.image-size", "16")
    words = [*args, "--output", str(tmp_path / "run")]
    done = ForkedProgram(signalled("convattn.training.probe:update", 2, number), *words, TMPDIR=str(tmp_path)).join()
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_foretells_the_run_and_leaves_its_random_state_alone(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "one", schedule=dict(epochs=1, warmup_epochs=0))
    train(config)
    again = tiny_config(pictures, tmp_path / "two", schedule=dict(epochs=1, warmup_epochs=0))
    found = probe(again)
    assert (found.images, found.updates_per_epoch, found.updates, found.problems) == (24, 6, 6, 0)
    assert found.hours == pytest.approx(24 / found.images_per_second / 3600)
    train(again)
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    checkpoint = sum(path.stat().st_size for path in next((tmp_path / "one" / "checkpoints").iterdir()).iterdir())
    # Two that are kept and one being written, the best and the last weights.
    assert found.disk == pytest.approx(3 * checkpoint + 2 * len(weights[0]), rel=0.02)
