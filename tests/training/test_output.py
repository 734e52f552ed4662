"""The run folder: fresh for a new run, the same run's where one goes on; and folders that cannot be written."""

import errno
import io
import os
import signal

import pytest
from rich.console import Console

from convattn import atomic
from convattn.cli.main import main
from convattn.training.config import ConfigError
from convattn.training.config_json import config_from_json
from convattn.training.loop import Interrupted, train
from convattn.training.output import check_output, holds_run, store_config, stored_config
from convattn.training.progress import TrainingDisplay
from forked_runs import ForkedProgram
from tiny_runs import assert_same_run, tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def quiet():
    return Console(file=io.StringIO())


def test_a_new_run_wants_an_empty_or_new_folder(tmp_path):
    config = tiny_config("data", tmp_path / "run")
    assert check_output(config, resume=False) == []
    (tmp_path / "run").mkdir()
    assert check_output(config, resume=False) == []
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"run: the output folder is not empty; go on with --resume .*run, or choose"):
        check_output(config, resume=False)


def test_the_configuration_is_stored_and_read(tmp_path):
    config = tiny_config("data", tmp_path / "run", loop=dict(seed=3))
    assert not holds_run(tmp_path / "run")
    store_config(config)
    assert holds_run(tmp_path / "run")
    assert stored_config(tmp_path / "run") == config
    with pytest.raises(ConfigError, match=r"nothing: no run to resume here; it holds no config.json"):
        stored_config(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"\xff\xfe", b"[" * 99_999, b'{"data": null}', b'{"optimizer": {"lr": NaN}}'),
        *(b'{"optimizer": {"lr": 1' + b"0" * 400 + b"}}", b'{"schedule": {"epochs": ' + b"9" * 5000 + b"}}"),
        b'{"model": {"options": {"a": ' + b"[" * 900 + b"]" * 900 + b"}}}",
    ],
    ids=range(9),
)
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config.json: .*; the checkpoints have whole copies of it$"):
        stored_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        ({}, []),
        (dict(data=dict(batch_size=8)), ["data.batch_size is now 8, was 4: the order of the images stays"]),
        (dict(data=dict(workers=2), output=dict(keep_checkpoints=5)), []),  # nothing that anybody would notice
        (dict(loop=dict(precision="bf16")), ["loop.precision is now 'bf16', was 'fp32': weights and optimiser"]),
        (dict(data=dict(source="/")), ["data.source is now '/', was '/dev': it must be the same images"]),
    ],
)
def test_what_may_change_is_told(tmp_path, change, notes):
    store_config(tiny_config("/dev", tmp_path / "run"))
    changed = {"data": {}, "loop": {}, "output": {}} | change
    told = check_output(tiny_config("/dev", tmp_path / "run", **changed), resume=True)
    assert [line.startswith(note) for line, note in zip(told, notes, strict=True)] == [True] * len(notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(optimizer=dict(lr=0.5)),
            r"was started with optimizer.lr 0.01, not 0.5; resume as it was, or change only ",
        ),
        (dict(loop=dict(seed=1)), r"was started with loop.seed 0, not 1"),
        (dict(model=dict(name="cotnet_nano")), r"was started with model.name 'smt_nano', not 'cotnet_nano'"),
    ],
)
def test_what_may_not_change_is_refused(tmp_path, change, message):
    store_config(tiny_config("data", tmp_path / "run"))
    with pytest.raises(ConfigError, match=message):
        check_output(tiny_config("data", tmp_path / "run", **change), resume=True)


def test_data_that_has_moved_is_named_anew(tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures")
    folder = train(tiny_config(pictures, tmp_path / "run"), console=quiet())
    pictures.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", "--resume", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{pictures}: no such folder" in line
    assert main(["train", "--resume", str(folder), "--data", str(tmp_path / "moved")]) == 0
    assert stored_config(folder).data.source == str(tmp_path / "moved")


def test_a_change_that_the_checkpoint_refuses_is_not_stored(pictures, tmp_path, monkeypatch):
    config = tiny_config(pictures, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "update", lambda *args, **figures: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted, match="stopped after step 1"):
            train(config, console=quiet())
    larger = tiny_config(pictures, tmp_path / "run", data=dict(batch_size=8))
    with pytest.raises(ConfigError, match=r"stands at image 4, which is no multiple of an update's 8"):
        train(larger, resume=True, console=quiet())
    assert stored_config(tmp_path / "run") == config


def test_every_checkpoint_holds_the_configuration(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "run")
    folder = train(config, console=quiet())
    found = [config_from_json(path.read_text()) for path in (folder / "checkpoints").glob("*/config.json")]
    assert found == [config, config]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(pictures, tmp_path, capsys):
    # A path below a file: root may write into folders that are read-only.
    (tmp_path / "file").touch()
    small = ["--data.image-size", "16", "--data.batch-size", "4", "--loop.device", "cpu"]
    out = ["--output", str(tmp_path / "file" / "run")]
    assert main(["train", "smt_nano_small_images", "--data", str(pictures), *out, *small]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{tmp_path / 'file' / 'run'} could not be written: {tmp_path / 'file'}: Not a directory")


EVENTS = "torch.utils.tensorboard.SummaryWriter.flush"


@pytest.mark.parametrize(
    ("file", "mode", "begun"),  # what cannot be written, how it is opened, and whether the run can be resumed then
    [
        ("config.json", "wb", False),
        ("log.jsonl", "ab", True),
        ("tensorboard", "", True),
        ("last.safetensors", "wb", True),
        ("ema.safetensors", "wb", True),
        ("state.pt", "wb", True),
        ("sha256.json", "wb", True),
    ],
)
def test_a_file_that_cannot_be_written_ends_the_run_in_one_line_and_loses_nothing(
    pictures, tmp_path, monkeypatch, full_run, file, mode, begun
):
    config = full_config(pictures, tmp_path / "run")

    def full(path, opened="r", *args, **keywords):
        if opened != mode or file not in str(path):
            return open(path, opened, *args, **keywords)
        return open("/dev/full", opened, buffering=0)  # a disk without room

    def no_room(writer):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(EVENTS, no_room) if file == "tensorboard" else patch.setattr(atomic, "open", full, raising=False)
        with pytest.raises(OSError, match=rf"{file} could not be written: (No space left|Invalid)") as caught:
            train(config, console=quiet())
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "run").rglob("*.writing")) == []
    assert_same_run(full_run, train(config, resume=begun, console=quiet()))


def full_config(pictures, folder):
    """One epoch that writes all there is."""
    return tiny_config(
        pictures,
        folder,
        data=dict(batch_size=8),
        schedule=dict(epochs=1, warmup_epochs=0),
        loop=dict(ema_decay=0.9),
        output=dict(tensorboard=True),
    )


@pytest.fixture(scope="module")
def full_run(pictures, tmp_path_factory):
    return train(full_config(pictures, tmp_path_factory.mktemp("full") / "run"), console=quiet())


@pytest.mark.parametrize(("room", "file"), [(500, "config.json"), (10_000, "best.safetensors")])
def test_a_full_disk_is_told_in_one_line_and_leaves_no_half_file(pictures, tmp_path, room, file):
    # A real limit on the size of files, in a process of its own; the configuration has some 3,000 bytes.
    code = f"""
import resource, signal, sys
from convattn.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
sys.exit(main(sys.argv[1:]))
"""
    small = "--data.image-size 16 --data.batch-size 4 --schedule.epochs 1 --schedule.warmup-epochs 0 --loop.device cpu"
    args = f"train --data {pictures} --output {tmp_path / 'run'} --output.no-tensorboard {small}".split()
    done = ForkedProgram(code, *args).join()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"{tmp_path / 'run' / file} could not be written: File too large")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*.writing")) == []
