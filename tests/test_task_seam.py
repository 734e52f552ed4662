"""A task that the package has never seen goes through every door, without a change in `src`."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

import convattn
import map_task
from convattn import rooms
from convattn.cli.main import main
from convattn.recipes import RECIPES
from convattn.training.config import LoopConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from convattn.training.skipped import replay_skipped
from map_task import MapNet, MapOptions, MapRoom
from test_import_arrows import TASKS
from tiny_runs import assert_same_run, write_pictures


@pytest.fixture(scope="module", autouse=True)
def map_room():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rooms.KINDS, "map", MapRoom())
        patch.setitem(RECIPES, "map_recipe", recipe)
        yield


def recipe():
    """Maps of small pictures."""
    return RunConfig(
        model=ModelConfig("map_net", options={"width": 6}),
        optimizer=OptimizerConfig(lr=3e-2, lr_batch_size=None),
        schedule=ScheduleConfig(updates=30),
        task=MapOptions(weight=0.5),
        loop=LoopConfig(device="cpu", validation_updates=8, ema_decay=0.9),
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def train(pictures, folder, *more):
    words = ["train", "map_recipe", "--data", str(pictures), "--output", str(folder), "--data.batch-size", "4"]
    return main([*words, "--output.no-tensorboard", *more])


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("map") / "run"
    assert train(pictures, folder) == 0
    return folder


def test_it_learns_and_every_loss_is_logged(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [8, 16, 24, 30]
    assert log[-1]["mae"] < 0.7 * log[0]["mae"]
    for entry in log:
        assert entry["train_loss"] == pytest.approx(entry["train_loss_squared"] + entry["train_loss_absolute"])


def test_the_least_error_is_the_best(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = convattn.open_model(run)
    assert isinstance(found, MapNet)
    assert found.body[0].out_channels == 6
    best = min(log, key=lambda entry: entry["mae"])
    from convattn.model_files import read_metadata

    assert read_metadata(run / "best.safetensors")["metrics"] == {"mae": best["mae"]}


def test_a_stopped_run_ends_like_one_that_was_not(pictures, run, tmp_path, monkeypatch):
    from convattn.training import loop

    real, seen = loop.update, []

    def stopping(whole, group, *, stop):
        seen.append(1)
        return real(whole, group, stop=stop or len(seen) == 13)  # in the middle of an epoch and between validations

    monkeypatch.setattr(loop, "update", stopping)
    assert train(pictures, tmp_path / "run") == 128 + 15
    monkeypatch.setattr(loop, "update", real)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_run(tmp_path / "run", run)


def test_it_is_evaluated_and_predicted(pictures, run, tmp_path, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert found["mae"] == pytest.approx(min(entry["mae"] for entry in log), rel=1e-5)
    assert main(["predict", str(run), str(pictures / "val"), "--output", str(tmp_path / "maps")]) == 0
    assert len(list((tmp_path / "maps").glob("*.jpg"))) == 8
    (said,) = convattn.predict(convattn.open_model(run), pictures / "val" / "dark" / "000.png")
    assert said.map.shape == (16, 16)


def test_it_is_reported_and_compared(run, tmp_path, capsys):
    page = (run / "report.html").read_text()
    for words in ("Best Mean error", "over updates", "Mean error", "30 / 30"):
        assert words in page
    assert main(["runs", str(run.parent), "--output", str(tmp_path / "runs.html")]) == 0
    assert "Best mean error (update)" in capsys.readouterr().out


def test_it_is_exported_with_proof_and_benchmarked(pictures, run, tmp_path, capsys):
    path = tmp_path / "map.onnx"
    assert main(["export", str(run), str(path), "--evaluate", str(pictures), "--max-drop", "0.001"]) == 0
    assert "within 0.01" in capsys.readouterr().out
    exported, images = convattn.load_exported(path), torch.rand(2, 3, 16, 16)
    assert exported.task_kind == "map"
    with torch.no_grad():
        assert torch.allclose(exported(images), convattn.open_model(run)(images), atol=1e-5)
    assert main(["eval", str(path), "--data", str(pictures)]) == 0
    assert main(["bench", str(run), str(path), "--repeats", "2", "--json"]) == 0


def test_a_skipped_update_is_replayed(pictures, tmp_path, monkeypatch):
    from map_task import MapTask

    whole = MapTask.losses
    monkeypatch.setattr(
        MapTask, "losses", lambda self, *given: {k: v * float("nan") for k, v in whole(self, *given).items()}
    )
    assert train(pictures, tmp_path / "run", "--loop.max-skipped", "2") == 1
    monkeypatch.setattr(MapTask, "losses", whole)
    (line, *_) = replay_skipped(sorted(Path(tmp_path / "run" / "skipped").glob("*.pt"))[0])
    assert line.startswith("loss ")
    assert "squared" in line


# Where what is done to models of any task stands.
NO_TASK = (
    *("training/build.py", "training/config.py", "training/run.py", "training/skipped.py", "training/update.py"),
    *("data/loader.py", "page.py", "report/run.py", "report/charts.py", "report/comparison.py"),
    *("cli/eval.py", "cli/predict.py", "cli/export.py", "data/dataset.py", "data/transforms.py"),
    *("deploy/metadata.py", "deploy/gate.py", "deploy/runtimes/runtime.py", "evaluation.py"),
)


@pytest.mark.parametrize("module", NO_TASK)
def test_what_serves_every_task_names_none(module):
    text = (Path(convattn.__file__).parent / module).read_text()
    tree = ast.parse(text)
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in imported if name.startswith(tuple(f"convattn.{task}" for task in TASKS))]
    assert not [
        word
        for word in ("top1", "top5", "label_names", "labelled", "segmenter", "detector", *TASKS)
        if re.search(rf"\b{word}\b", text)
    ]
    # A table of what is taken for what has classes, whatever the task.
    assert module == "page.py" or not re.search(r"\bclass_names\b", text)


def test_a_second_task_is_small():
    lines = Path(map_task.__file__).read_text().splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 120
