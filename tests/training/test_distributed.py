"""Several processes train as one does, share the work differently after a stop, and recover when one is lost."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from convattn.classification.scores import Scores
from convattn.data.loader import Samples, evaluation_loader
from convattn.data.sources import open_data
from convattn.data.transforms import PictureAlone, transforms_for
from convattn.evaluation import measure
from convattn.model_files import load_model
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.config import ConfigError
from convattn.training.config_json import config_from_json
from convattn.training.loop import train
from forked_runs import ForkedProgram, ForkedRun, Kill, expect_dtensors, train_forked, train_killed
from tiny_archives import write_shards
from tiny_runs import EVERYTHING, assert_same_run, figures, newest_checkpoint, tiny_config, write_pictures

# Nothing random in the network, and one batch's statistics for all: how many share the work must not matter.
PLAIN = dict(
    optimizer=dict(name="sgd", lr=0.1),
    loop=dict(sync_batch_norm=True, ema_decay=0.5, device="cpu"),
    output=dict(checkpoint_updates=1),
)
STEP = "accelerate.optimizer:AcceleratedOptimizer.step"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def quiet():
    return Console(file=io.StringIO())


def plain(pictures, folder, batch_size, **loop):
    return tiny_config(
        pictures, folder, **{**PLAIN, "data": dict(batch_size=batch_size), "loop": {**PLAIN["loop"], **loop}}
    )


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    """One process with batches of eight, uninterrupted."""
    return train_forked(plain(pictures, tmp_path_factory.mktemp("alone") / "run", 8))


def assert_close_run(one: Path, other: Path) -> None:
    """The same to float32 rounding: what is logged, and the weights."""
    for a, b in zip(figures(one), figures(other), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    before, after = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_two_with_half_the_batch_are_as_one_with_all_of_it(pictures, tmp_path, alone):
    assert_close_run(alone, train_forked(plain(pictures, tmp_path / "run", 4), processes=2))


def test_more_processes_take_over(pictures, tmp_path, alone):
    train_killed(plain(pictures, tmp_path / "run", 8), Kill(STEP, 3))
    run = ForkedRun(plain(pictures, tmp_path / "run", 4), processes=2, resume=True)
    assert run.join() == [0, 0], run.said()
    assert "resumed by 2 processes, not 1: the same images, other random numbers" in run.said()
    assert "data.batch_size is now 4, was 8: the order of the images stays" in run.said()
    assert_close_run(alone, tmp_path / "run")


def test_fewer_processes_take_over(pictures, tmp_path, alone):
    train_killed(plain(pictures, tmp_path / "run", 4), Kill(STEP, 2, rank=1), processes=2)
    console = quiet()
    train(plain(pictures, tmp_path / "run", 8), resume=True, console=console)
    assert "resumed by 1 processes, not 2" in console.file.getvalue()
    assert_close_run(alone, tmp_path / "run")


def test_another_batch_size_in_the_middle_of_an_epoch(pictures, tmp_path):
    folder = tmp_path / "run"
    train_killed(plain(pictures, folder, 4), Kill(STEP, 11))  # behind update 4 of the second epoch's 6
    assert [path.name for path in checkpoint_folders(folder)] == [
        "epoch_00001_image_000000016",
        "epoch_00001_image_000000012",
    ]
    with pytest.raises(
        ConfigError,
        match=r"the epoch under way stands at image 16, which is no multiple of an update's 6 \(data.batch_size x "
        r"loop.accumulation x processes\); take a divisor of 4",
    ):
        train(plain(pictures, folder, 6), resume=True, console=quiet())
    train_killed(plain(pictures, folder, 8), Kill("convattn.training.run:Run.result_model", 1), resume=True)
    assert checkpoint_folders(folder)[0].name == "epoch_00001_image_000000016"
    train(plain(pictures, folder, 8), resume=True, console=quiet())
    end = newest_checkpoint(folder)
    assert end.folder.name == "epoch_00002_image_000000000"
    assert end.state["counters"]["step"] == 6  # in updates of eight images


def test_a_pipe_is_resumed_by_as_many_readers(pictures, tmp_path):
    samples = [
        (str(n), path.read_bytes(), ["bright", "dark"].index(path.parent.name))
        for n, path in enumerate(sorted((pictures / "train").rglob("*.png")))
    ]
    write_shards(tmp_path / "shards", samples, shards=2)
    source = f"pipe:cat {tmp_path}/shards/{{0000..0001}}.tar"
    data = dict(validation=str(pictures / "val"), epoch_images=24)

    def config(name, **changed):
        return tiny_config(source, tmp_path / name, data={**data, **changed}, output=dict(checkpoint_updates=1))

    train_killed(config("run"), Kill(STEP, 3))
    with pytest.raises(
        ConfigError,
        match=r"a pipe is resumed by as many processes and data.workers as before: \[1, 1\], not \[1, 2\]",
    ):
        train(config("run", workers=2), resume=True, console=quiet())
    assert_same_run(train_forked(config("straight")), train_forked(config("run"), resume=True))


def test_another_precision(pictures, tmp_path):
    folder = tmp_path / "run"
    train_killed(plain(pictures, folder, 8), Kill(STEP, 5))
    console = quiet()
    train(plain(pictures, folder, 8, precision="bf16"), resume=True, console=console)
    assert "loop.precision is now 'bf16', was 'fp32': weights and optimiser are float32 in every precision" in (
        console.file.getvalue()
    )
    assert len(figures(folder)) == 2
    assert {value.dtype for value in load_file(folder / "last.safetensors").values()} <= {torch.float32, torch.int64}


def test_an_error_in_the_main_process_ends_all(pictures, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine.txt").touch()
    run = ForkedRun(plain(pictures, folder, 4), processes=2)
    assert all(code not in (0, None) for code in run.join())
    assert f"{folder}: the output folder is not empty; go on with --resume" in run.said()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def sharded(pictures, tmp_path_factory):
    """A run of two processes that share weights and optimiser, uninterrupted."""
    config = sharded_config(pictures, tmp_path_factory.mktemp("sharded") / "run")
    run = ForkedRun(config, processes=2, prepare=expect_dtensors)
    assert run.join() == [0, 0], run.said()
    return Path(config.output.folder)


def sharded_config(pictures, folder):
    parts = {**EVERYTHING, "loop": {**EVERYTHING["loop"], "sharding": "fsdp"}, "schedule": dict(epochs=2)}
    parts["data"] = {"batch_size": 2}
    return tiny_config(pictures, folder, **parts, output=dict(checkpoint_updates=2))


def test_sharded_weights_are_saved_in_parts_and_whole(pictures, sharded):
    newest = checkpoint_folders(sharded)[0]
    parts = sorted(path.name for path in (newest / "shards").glob("*.distcp"))
    assert [name.split("_")[2] for name in parts] == ["0", "1"]  # one of each process
    assert not (newest / "model.safetensors").exists()
    model = load_model(sharded)
    loader = evaluation_loader(Samples(open_data(pictures, "val"), PictureAlone(transforms_for(model))), 4)
    scores = Scores()
    measure(model, loader, scores)
    found = scores.result(scores.parts())
    best = max(figures(sharded), key=lambda entry: (entry["top1"], entry["epoch"]))
    assert found["top1"] == best["top1"]
    assert found["val_loss"] == pytest.approx(best["val_loss"], rel=1e-5)


@pytest.mark.parametrize(
    "kill", [Kill(STEP, 5, rank=1), pytest.param(Kill("pathlib:Path.rename", 4, rank=0), marks=pytest.mark.slow)]
)
def test_a_sharded_run_is_resumed(pictures, tmp_path, sharded, kill):
    config = sharded_config(pictures, tmp_path / "run")
    train_killed(config, kill, processes=2)
    resumed = train_forked(config, processes=2, resume=True)
    assert_same_run(sharded, resumed)
    assert list(resumed.rglob("*.writing")) == []


@pytest.mark.slow
def test_more_processes_take_over_a_sharded_run(pictures, tmp_path):
    config = sharded_config(pictures, tmp_path / "run")
    train_killed(config, Kill(STEP, 4), processes=2)
    run = ForkedRun(config, processes=3, resume=True, prepare=expect_dtensors)
    assert run.join() == [0, 0, 0], run.said()
    assert "resumed by 3 processes, not 2" in run.said()
    assert [entry["epoch"] for entry in figures(tmp_path / "run")] == [1, 2]
    newest = checkpoint_folders(tmp_path / "run")[0]
    assert len(list((newest / "shards").glob("*.distcp"))) == 3


def test_a_sharded_run_stays_sharded(pictures, sharded):
    config = sharded_config(pictures, sharded)
    with pytest.raises(ConfigError, match=r"loop.sharding fsdp needs several processes; start them with torchrun"):
        train(config, resume=True, console=quiet())
    whole = tiny_config(pictures, sharded, **{**EVERYTHING, "schedule": dict(epochs=2)})
    with pytest.raises(ConfigError, match=r"was started with .*loop.sharding 'fsdp', not 'none'; resume as it was"):
        train(whole, resume=True, console=quiet())


# What torchrun does, with ranks that are forked instead of started.
TORCHRUN = """
import sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from forked_runs import lose_a_rank
config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, start_method="fork", rdzv_backend="c10d",
    rdzv_endpoint="localhost:0", rdzv_configs={"is_host": True},
)
elastic_launch(config, lose_a_rank)(*sys.argv[1:])
"""


def test_torchrun_recovers_from_the_loss_of_a_rank(pictures, tmp_path):
    small = "--data.image-size 16 --data.batch-size 4 --data.workers 0 --schedule.epochs 2 --schedule.warmup-epochs 1"
    train_it = f"train --data {pictures} --output {tmp_path / 'run'} {small} --output.no-tensorboard --loop.device cpu"
    done = ForkedProgram(TORCHRUN, tmp_path, *train_it.split()).join()
    assert done.returncode == 0, done.stderr
    # One rank was lost, whichever end torchrun noticed first; then both began again, and they alone came to the end.
    begun = [f"attempt_{attempt}_rank_{rank}.began" for attempt in "01" for rank in "01"]
    ends = ["attempt_0_rank_1.killed", "attempt_1_rank_0.done", "attempt_1_rank_1.done"]
    assert sorted(path.name for path in tmp_path.glob("attempt_*")) == sorted(begun + ends)
    config = config_from_json((tmp_path / "run" / "config.json").read_text())
    straight = replace(config, output=replace(config.output, folder=str(tmp_path / "straight")))
    assert_same_run(train_forked(straight, processes=2), tmp_path / "run")
