"""Updates that are not finite: nothing moves, they are counted and named, and can be looked into."""

import io
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from convattn.classification.task import Classification
from convattn.cli.main import main
from convattn.seeding import random_state
from convattn.training.checkpoint import checkpoint_folders
from convattn.training.config_json import config_to_json
from convattn.training.loop import TrainingError, train
from convattn.training.processes import Processes
from convattn.training.run import Run
from convattn.training.skipped import record_skipped, replay_skipped
from convattn.training.update import update
from convattn.weights.read import CheckpointError
from forked_runs import ForkedProgram, meeting_point, ranks
from tiny_runs import newest_checkpoint, tiny_config, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def quiet():
    return Console(file=io.StringIO())


def start(config, folder):
    """A run before its first update, and its batches."""
    run = Run(config, folder, Processes(config.loop))
    run.start_epoch()
    return run, run.data.train_loader.batches(0)


def everything(run):
    """Copies of all that an update may move."""
    moments = run.optimizer.state_dict()["state"]
    tensors = {
        **{f"model.{name}": value for name, value in run.bare_model.state_dict().items()},
        **{f"ema.{name}": value for name, value in run.ema.module.state_dict().items()},
        **{f"optimizer.{at}.{name}": value for at, entry in moments.items() for name, value in entry.items()},
    }
    return {name: value.clone() for name, value in tensors.items()}


def poison_images(value):
    def poison(run, batch):
        return replace(batch, images=batch.images * value)

    return poison


def poison_gradient(run, batch):
    run.bare_model.stem.conv1.weight.register_hook(lambda gradient: gradient * math.nan)
    return batch


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (poison_images(math.nan), "the loss is nan"),
        (poison_gradient, "the gradient's norm is nan"),
        # Images so bright that the variance overflows: it divides them to zero, and the loss is finite.
        (poison_images(1e25), "the largest of batch norm's statistics is inf"),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_update_moves_nothing(pictures, tmp_path, poison, reason, accumulation):
    run, batches = start(tiny_config(pictures, tmp_path, loop=dict(ema_decay=0.9, accumulation=accumulation)), tmp_path)
    update(run, list(itertools.islice(batches, accumulation)))
    before = everything(run)
    *good, last = itertools.islice(batches, accumulation)
    done = update(run, [*good, poison(run, last)])
    assert (done.skipped, done.problem) == (True, reason)
    after = everything(run)
    assert before.keys() == after.keys()
    assert any(name.startswith("optimizer.") for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in run.bare_model.parameters())
    assert (run.counters.step, run.counters.skipped, run.counters.skipped_in_a_row) == (2, 1, 1)
    assert run.counters.images == 4 * accumulation  # of the first


def nan_at(monkeypatch, steps):
    """The loss of these updates, counted from 1, is not a number."""
    losses, count = Classification.losses, itertools.count(1)

    def spoilt(self, model, batch):
        factor = math.nan if next(count) in steps else 1.0
        return {name: factor * loss for name, loss in losses(self, model, batch).items()}

    monkeypatch.setattr(Classification, "losses", spoilt)


def test_skipped_updates_are_counted_and_named_and_the_run_goes_on(pictures, tmp_path, monkeypatch):
    nan_at(monkeypatch, {2, 3, 9})
    console = quiet()
    folder = train(tiny_config(pictures, tmp_path / "run", loop=dict(max_skipped=3)), console=console)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["skipped"]) for entry in log] == [(6, 2), (12, 3)]
    lines = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reason"]) for line in lines] == [(step, "the loss is nan") for step in (2, 3, 9)]
    _, batches = start(tiny_config(pictures, tmp_path), tmp_path)
    assert lines[0]["paths"] == list(batches)[1].paths
    file = folder / "skipped" / "step_00000002.rank0.pt"
    assert file.is_file()
    said = console.file.getvalue()
    assert f"skipped update 2: the loss is nan; look into it with: convattn train --replay {file}\n" in said
    assert " · 2 updates skipped\n" in said
    assert newest_checkpoint(folder).state["counters"]["skipped_in_a_row"] == 0


def test_an_epoch_of_skipped_updates_stops_the_run(pictures, tmp_path, monkeypatch):
    nan_at(monkeypatch, range(1, 100))
    with pytest.raises(TrainingError, match=r"every update since step 0 was skipped; no checkpoint was written yet"):
        train(tiny_config(pictures, tmp_path / "run", loop=dict(max_skipped=50)), console=quiet())
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_so_many_in_a_row_stop_the_run(pictures, tmp_path, monkeypatch):
    nan_at(monkeypatch, {1, *range(3, 100)})
    with pytest.raises(TrainingError) as error:
        train(tiny_config(pictures, tmp_path / "run", loop=dict(max_skipped=5)), console=quiet())
    file = tmp_path / "run" / "skipped" / "step_00000007.rank0.pt"
    newest = checkpoint_folders(tmp_path / "run")[0]
    last = json.loads((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()[-1])
    assert str(error.value) == (
        "5 updates in a row were skipped (loop.max_skipped), the last is 7: the loss is nan; last good checkpoint: "
        f"{newest}; lower optimizer.lr, or set optimizer.clip_grad; "
        f"replay it from {file}; its images: {', '.join(last['paths'])}"
    )
    kept = sorted(path.name for path in (tmp_path / "run" / "skipped").iterdir())
    assert kept == [f"step_{step:08d}.rank0.pt" for step in (5, 6, 7)]


def recorded(run, group):
    """The file of an update that is skipped."""
    random = random_state()
    done = update(run, group)
    assert done.skipped
    return done, record_skipped(run, group, random, done.problem).file


def test_a_replay_names_the_first_module_that_is_not_finite(pictures, tmp_path, capsys):
    run, batches = start(tiny_config(pictures, tmp_path), tmp_path)
    with torch.no_grad():
        run.bare_model.stages[1].downsample.conv.weight[0, 0, 0, 0] = math.nan
    batch = next(batches)
    _, file = recorded(run, [batch])
    assert main(["train", "--replay", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"loss nan on {', '.join(batch.paths)}"
    assert lines[1] == "first output that is not finite: stages.1.downsample.conv (Conv2d)"
    assert lines[2].startswith("gradients that are not finite: ")


def test_a_replay_names_images_and_buffers_that_are_not_finite(pictures, tmp_path):
    run, batches = start(tiny_config(pictures, tmp_path), tmp_path)
    _, file = recorded(run, [poison_images(math.inf)(run, next(batches))])
    assert any(line.startswith("the images themselves are not finite: ") for line in replay_skipped(file))
    _, file = recorded(run, [poison_images(1e25)(run, next(batches))])
    assert any(line.startswith("buffers that are not finite: ") for line in replay_skipped(file))


def test_a_replay_is_the_same_update_with_all_that_is_random(pictures, tmp_path):
    parts = dict(
        model=dict(drop_path_rate=0.3, drop_rate=0.3),
        task=dict(mixup=0.5, cutmix=1.0, class_weights="balanced", label_smoothing=0.1),
        loop=dict(channels_last=False),
    )
    run, batches = start(tiny_config(pictures, tmp_path, **parts), tmp_path)
    update(run, [next(batches)])
    run.task.class_weights[0] *= 3  # the classes of these pictures are balanced
    done, file = recorded(run, [poison_gradient(run, next(batches))])
    first, last = replay_skipped(file)
    assert float(first.split()[1]) == pytest.approx(done.loss, rel=1e-4)
    assert last == "everything is finite in float32 on the CPU; the precision or the device made the difference"


def test_a_replay_needs_neither_weights_to_start_from_nor_data(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    finished = train(tiny_config(pictures, tmp_path / "first"), console=quiet())
    best = finished / "best.safetensors"
    config = tiny_config(pictures, tmp_path / "run", model=dict(pretrained_path=str(best)))
    run, batches = start(config, tmp_path / "run")
    _, file = recorded(run, [poison_images(math.nan)(run, next(batches))])
    best.unlink()
    (pictures / "train").rename(tmp_path / "elsewhere")
    assert any(line.startswith("loss nan on") for line in replay_skipped(file))


def test_a_file_of_another_kind_is_refused(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"nothing.pt: No such file or directory"):
        list(replay_skipped(tmp_path / "nothing.pt"))
    torch.save({"config": ""}, tmp_path / "other.pt")
    assert main(["train", "--replay", str(tmp_path / "other.pt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'other.pt'}: not a skipped update: it lacks batches, built_as" in line


@pytest.fixture(scope="module")
def skipped(pictures, tmp_path_factory):
    """What the file of a skipped update holds."""
    folder = tmp_path_factory.mktemp("skipped")
    run, batches = start(tiny_config(pictures, folder), folder)
    return torch.load(recorded(run, [poison_images(math.nan)(run, next(batches))])[1])


@pytest.mark.parametrize(
    ("part", "fields", "reason"),
    [
        (
            "built_as",
            {"options": {"pretrained_cfg_overlay": {"url": "x"}}},
            r"option pretrained_cfg_overlay says where",
        ),
        (
            "built_as",
            {"options": {"in_chans": 10**9}},
            r"option in_chans has 1000000000, more than a network of the size",
        ),
        ("built_as", {"options": {"depths": [[2, 10**9]]}}, r"option depths has 1000000000, more than"),
        (
            "built_as",
            {"options": {"depths": [2, 60_000, 2, 2]}},
            r"it describes a far larger network than the \d+ tensors",
        ),
        ("built_as", {"name": "nextvit_nano", "options": {}}, r"Missing key"),
        ("model", {"name": "timm:hf-hub:somebody/net"}, r"its model.name would fetch 'timm:hf-hub:somebody/net'"),
        (
            "task",
            {"distillation": {"teacher": "timm:hf-hub:some/net"}},
            r"its task.distillation.teacher would fetch 'timm:hf-hub:some",
        ),
        ("task", {"mixup": "all"}, r"task.mixup 'all' must be"),
    ],
)
def test_a_replay_builds_only_what_its_weights_fill(skipped, tmp_path, part, fields, reason):
    file, stored = tmp_path / "step.rank0.pt", "built_as" if part == "built_as" else "config"
    content = json.loads(skipped[stored])
    (content if part == "built_as" else content[part]).update(fields)
    torch.save({**skipped, stored: json.dumps(content)}, file)
    with pytest.raises(CheckpointError, match=rf"rank0.pt: cannot be replayed: .*{reason}"):
        list(replay_skipped(file))


def test_what_is_not_finite_in_one_process_is_skipped_by_all(pictures, tmp_path):
    config = tiny_config(pictures, tmp_path / "run", schedule=dict(epochs=1, warmup_epochs=0))
    (tmp_path / "config.json").write_text(config_to_json(config))
    code = f"""
import itertools, math, os
from pathlib import Path
import torch
from convattn.classification.task import Classification
from convattn.training.config_json import config_from_json
from convattn.training.loop import train
losses, count = Classification.losses, itertools.count(1)
def spoilt(self, model, batch):
    factor = math.nan if os.environ["RANK"] == "1" and next(count) == 2 else 1.0
    return {{name: factor * loss for name, loss in losses(self, model, batch).items()}}
Classification.losses = spoilt
train(config_from_json(Path({str(tmp_path / "config.json")!r}).read_text()))
torch.distributed.destroy_process_group()
"""
    store = meeting_point()
    processes = [ForkedProgram(code, **rank) for rank in ranks(2, store.port)]
    said = ""
    for process in processes:
        done = process.join()
        assert done.returncode == 0, done.stderr
        said += done.stderr
    (entry,) = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert (entry["step"], entry["reason"], entry["ranks"], len(entry["paths"])) == (2, "the loss is nan", [1], 4)
    file = tmp_path / "run" / "skipped" / "step_00000002.rank1.pt"
    assert f"skipped update 2: the loss is nan; look into it with: convattn train --replay {file}" in said
    assert ", ".join(entry["paths"]) in next(replay_skipped(file))
    log = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert (log["step"], log["skipped"]) == (3, 1)
    assert math.isfinite(log["train_loss"])
