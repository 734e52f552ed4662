"""A run that was stopped ends as if it had not been: every weight, every random state, every figure."""

import copy
import io
import shutil
import signal

import pytest
import torch
from rich.console import Console
from torch import nn

from convattn.classification.task import Classification
from convattn.ops.linear import Linear2d
from convattn.training import sharded
from convattn.training.checkpoint import checkpoint_folders, reshape_moments
from convattn.training.config import ConfigError
from convattn.training.loop import Interrupted, train
from convattn.training.processes import Processes
from convattn.training.progress import TrainingDisplay
from convattn.training.run import Run
from convattn.weights.read import CheckpointError
from tiny_runs import EVERYTHING, assert_same_run, figures, newest_checkpoint, tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def straight(pictures, tmp_path_factory):
    """The uninterrupted run with everything that is random or has state."""
    return train(tiny_config(pictures, tmp_path_factory.mktemp("straight") / "run", **EVERYTHING), console=quiet())


def stop_at(monkeypatch, step):
    """A real SIGINT after update `step`."""
    update = TrainingDisplay.update

    def stopping(self, counters, **figures):
        update(self, counters, **figures)
        if counters.step == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingDisplay, "update", stopping)


# Three updates an epoch: 24 images in batches of 4, two batches an update. So 4 is within an epoch and 3 at its end.
@pytest.mark.parametrize(("step", "workers"), [(4, 0), (3, 0), (5, 2)])
def test_a_resumed_run_equals_the_uninterrupted_one(pictures, tmp_path, monkeypatch, straight, step, workers):
    parts = {**EVERYTHING, "data": {"workers": workers}}  # of which nothing may depend
    config = tiny_config(pictures, tmp_path / "stopped", **parts)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(
            Interrupted, match=rf"stopped after step {step}; go on with: convattn train --resume .*stopped"
        ):
            train(config, console=quiet())
    torch.manual_seed(99)  # what another process starts from must not matter
    resumed = train(config, resume=True, console=quiet())

    assert newest_checkpoint(straight).state["counters"]["step"] == 9
    assert_same_run(straight, resumed)


def rates(monkeypatch, config, *, stop=None, resume=False):
    """Train, and return the learning rate behind each update: {updates done: of the fastest layer}."""
    found = {}
    update = TrainingDisplay.update

    def record(self, counters, **figures):
        update(self, counters, **figures)
        found[counters.step] = figures["lr"]
        if counters.step == stop:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "update", record)
        try:
            train(config, resume=resume, console=quiet())
        except Interrupted:
            assert stop is not None
    return found


@pytest.mark.parametrize("batch_size", [4, 8])  # as before, and another one: updates and rates are then others
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rates_behind_a_resume_are_those_of_the_uninterrupted_run(
    pictures, tmp_path, monkeypatch, batch_size, schedule
):
    def config(name, size):
        return tiny_config(
            pictures,
            tmp_path / name,
            data=dict(batch_size=size),
            optimizer=dict(lr_batch_size=16, layer_decay=0.8),
            schedule=dict(name=schedule, epochs=2, warmup_epochs=0.5),
        )

    straight = rates(monkeypatch, config("straight", batch_size))
    rates(monkeypatch, config("run", 4), stop=8)  # 2 of the second epoch's 6 updates
    behind = rates(monkeypatch, config("run", batch_size), resume=True)
    assert sorted(behind) == list(range(8 * 4 // batch_size + 1, len(straight) + 1))
    assert behind == {step: straight[step] for step in behind}


def test_a_stop_during_validation_is_resumed_there(pictures, tmp_path, monkeypatch, straight):
    config = tiny_config(pictures, tmp_path / "stopped", **EVERYTHING)
    with monkeypatch.context() as patch:
        meter = Classification.meter  # not the look at the images before the first epoch

        def stopped(*args, **keywords):
            patch.setattr(TrainingDisplay, "validating", lambda *args: signal.raise_signal(signal.SIGTERM))
            return meter(*args, **keywords)

        patch.setattr(Classification, "meter", stopped)
        with pytest.raises(Interrupted, match="stopped after step 3"):
            train(config, console=quiet())
    assert not (tmp_path / "stopped" / "best.safetensors").exists()
    resumed = train(config, resume=True, console=quiet())
    assert (straight / "last.safetensors").read_bytes() == (resumed / "last.safetensors").read_bytes()
    assert figures(straight) == figures(resumed)


def test_at_an_epochs_end_any_batch_size_goes_on(tmp_path, monkeypatch):
    pictures = write_pictures(tmp_path / "pictures", train=13)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)  # of 26 images in batches of 4: two fill none
        with pytest.raises(Interrupted):
            train(tiny_config(pictures, tmp_path / "run"), console=quiet())
    run = train(tiny_config(pictures, tmp_path / "run", data=dict(batch_size=5)), resume=True, console=quiet())
    assert [(entry["epoch"], entry["step"]) for entry in figures(run)] == [(1, 5), (2, 10)]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(pictures, tmp_path, straight):
    straight = shutil.copytree(straight, tmp_path / "run")
    weights = (straight / "last.safetensors").read_bytes()
    newest, before = checkpoint_folders(straight)
    state = bytearray((newest / "state.pt").read_bytes())
    state[len(state) // 2] ^= 1
    (newest / "state.pt").write_bytes(state)

    console = quiet()
    train(tiny_config(pictures, straight, **EVERYTHING), resume=True, console=console)
    warning = f"warning: {newest}: damaged: state.pt is not as it was written; going on from {before.name}"
    assert warning in console.file.getvalue()
    assert (straight / "last.safetensors").read_bytes() == weights
    assert [entry["epoch"] for entry in figures(straight)] == [1, 2, 3]


def test_without_a_whole_checkpoint_all_are_named(pictures, straight, tmp_path):
    folder = shutil.copytree(straight, tmp_path / "run")
    config = tiny_config(pictures, folder, **EVERYTHING)
    for checkpoint in checkpoint_folders(folder):
        (checkpoint / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from \(.*00003.*damaged.*; .*00002.*damaged"):
        train(config, resume=True, console=quiet())


def test_a_finished_run_stays_as_it_is(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "run")
    folder = train(config, console=quiet())
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    train(config, resume=True, console=quiet())
    assert before == {path: path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_resume_refuses_another_run(pictures, tmp_path):
    folder = train(tiny_config(pictures, tmp_path / "run"), console=quiet())
    with pytest.raises(ConfigError, match=r"started with schedule.epochs 2, not 5; resume as it was"):
        train(tiny_config(pictures, folder, schedule=dict(epochs=5)), resume=True, console=quiet())
    with pytest.raises(ConfigError, match=r"nothing: no run to resume here; it holds no config.json"):
        train(tiny_config(pictures, tmp_path / "nothing"), resume=True, console=quiet())


def test_an_epoch_is_not_taken_up_in_another_order(pictures, tmp_path, monkeypatch):
    # Checkpoints of earlier versions do not say which order they go by.
    config = tiny_config(pictures, tmp_path)
    run, again = (Run(config, tmp_path, Processes(config.loop)) for _ in range(2))
    run.counters.updates = 2
    with monkeypatch.context() as patch:
        patch.setattr("convattn.training.run._ORDER", None)
        run.save()
    with pytest.raises(ConfigError, match=r"image_000000008: an earlier version of convattn stopped within this epoch"):
        again.restore(print)
    run.counters.epoch, run.counters.updates = 1, 0
    with monkeypatch.context() as patch:
        patch.setattr("convattn.training.run._ORDER", None)
        run.save()
    notes = []
    again.restore(notes.append)
    assert again.counters.epoch == 1
    assert notes == [
        "begun by an earlier version of convattn: from here on the images come in another order than there"
    ]


def test_resume_refuses_other_data(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    folder = train(tiny_config(pictures, tmp_path / "run"), console=quiet())
    (pictures / "train" / "dark" / "000.png").unlink()
    with pytest.raises(ConfigError, match=r"23 training images, but 24 when the run was stopped"):
        train(tiny_config(pictures, folder), resume=True, console=quiet())


def test_resume_refuses_classes_of_other_names(tmp_path):
    """As many images and outputs as before, and each output another class."""
    pictures = write_pictures(tmp_path / "pictures")
    folder = train(tiny_config(pictures, tmp_path / "run"), console=quiet())
    for split in ("train", "val"):
        (pictures / split / "bright").rename(pictures / split / "white")
    with pytest.raises(ConfigError, match=r"pictures: class 0 is dark, but bright when the run was stopped; restore"):
        train(tiny_config(pictures, folder), resume=True, console=quiet())
    for split in ("train", "val"):
        (pictures / split / "white").rename(pictures / split / "bright")
    train(tiny_config(pictures, folder), resume=True, console=quiet())
    (pictures / "train" / "zebra").mkdir()
    (pictures / "train" / "dark" / "000.png").rename(pictures / "train" / "zebra" / "000.png")
    with pytest.raises(ConfigError, match=r"pictures: 3 classes, but 2 when the run was stopped"):
        train(tiny_config(pictures, folder), resume=True, console=quiet())


def test_a_second_run_does_not_overwrite_the_first(pictures, tmp_path):
    folder = train(tiny_config(pictures, tmp_path / "run"), console=quiet())
    with pytest.raises(
        ConfigError, match=r"run: the output folder is not empty; go on with --resume .*, or choose another"
    ):
        train(tiny_config(pictures, folder), console=quiet())


def test_the_weights_that_a_run_began_with_may_be_gone_when_it_goes_on(pictures, tmp_path):
    begun = train(tiny_config(pictures, tmp_path / "begun"), console=quiet()) / "last.safetensors"
    config = tiny_config(pictures, tmp_path / "run", model=dict(pretrained_path=str(begun)))
    folder = train(config, console=quiet())
    weights = (folder / "last.safetensors").read_bytes()
    shutil.rmtree(checkpoint_folders(folder)[0])
    begun.unlink()
    train(config, resume=True, console=quiet())
    assert (folder / "last.safetensors").read_bytes() == weights
    with pytest.raises(CheckpointError, match=r"last.safetensors: no such file"):
        train(tiny_config(pictures, tmp_path / "new", model=dict(pretrained_path=str(begun))), console=quiet())


def stepped(layer):
    """The layer and its optimiser after an update."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer.weight.grad, layer.bias.grad = (torch.full_like(p, 0.5) for p in (layer.weight, layer.bias))
    optimizer.step()
    return layer, optimizer


def test_moments_of_checkpoints_from_when_linear_layers_over_maps_had_matrices():
    torch.manual_seed(0)
    before, old = stepped(nn.Linear(6, 4))
    torch.manual_seed(1)
    layer, optimizer = stepped(Linear2d(6, 4))
    layer.load_state_dict(before.state_dict())
    optimizer.load_state_dict(copy.deepcopy(old.state_dict()))
    reshape_moments(optimizer, [layer.weight])
    assert optimizer.state[layer.weight]["exp_avg"].shape == layer.weight.shape
    old.step(), optimizer.step()
    assert torch.equal(layer.weight.flatten(1), before.weight) and torch.equal(layer.bias, before.bias)


def test_means_of_rows_from_then_fit_no_convolution_and_are_refused():
    layer, _ = stepped(Linear2d(6, 4))
    optimizer = torch.optim.Adafactor(layer.parameters())
    old = torch.optim.Adafactor((matrix := nn.Linear(6, 4)).parameters())
    matrix.weight.grad, matrix.bias.grad = torch.ones(4, 6), torch.ones(4)
    old.step()
    optimizer.load_state_dict(old.state_dict())
    with pytest.raises(
        ConfigError,
        match=r"Adafactor: an earlier version .* kept row_var of \(4, 1\) for a weight that is \(4, 6, 1, 1\) now",
    ):
        reshape_moments(optimizer, [layer.weight])


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_shards_that_do_not_fit_are_refused_in_one_line(tmp_path):
    before, old = stepped(nn.Linear(6, 4))
    sharded.save_shards(tmp_path, before, None, old)
    layer, optimizer = stepped(Linear2d(6, 4))
    with pytest.raises(ValueError, match=r"could not be read: Size mismatch .* for model.weight"):
        sharded.load_shards(tmp_path, layer, None, optimizer)
