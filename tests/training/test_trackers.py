import io
import json

import pytest
from accelerate import tracking
from rich.console import Console

from convattn.cli.main import main
from convattn.config_errors import ConfigError
from convattn.extras import MissingExtra
from convattn.training.loop import train
from convattn.training.trackers import Trackers, check_trackers
from tiny_runs import tiny_config, write_pictures


class Notebook:
    """A tracker that writes down what it is told."""

    requires_logging_directory = False
    told: list = []  # noqa: RUF012, of the class, which the run makes an object of

    def __init__(self, run_name):
        self.told.append(("made", run_name))

    def start(self):
        self.told.append(("started",))

    def store_init_configuration(self, values):
        self.told.append(("settings", values))

    def log(self, values, step=None):
        self.told.append(("log", step, values))

    def finish(self):
        self.told.append(("finished",))


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Notebook)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr(Notebook, "told", [])
    return Notebook


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_a_tracker_and_a_function_get_what_the_log_has(pictures, tmp_path, notebook):
    entries = []
    config = tiny_config(pictures, tmp_path / "run", output=dict(trackers=("wandb",)))
    train(config, console=Console(file=io.StringIO()), on_log=entries.append)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert entries == log
    made, started, (_, settings), *logged, finished = notebook.told
    assert (made, started, finished) == (("made", "convattn"), ("started",), ("finished",))
    assert (settings["optimizer.lr"], settings["folder"]) == (0.01, str(tmp_path / "run"))
    assert [(word, step) for word, step, _ in logged] == [("log", 6), ("log", 12)]
    assert logged[-1][2]["top1"] == log[-1]["top1"]


def test_a_tracker_that_fails_is_named_and_the_others_go_on(tmp_path, notebook, monkeypatch):
    notes = []
    trackers = Trackers(("wandb",), tmp_path, {"a": None, "b": 1}, notes.append)
    assert notebook.told[2][1] == {"folder": str(tmp_path), "a": "None", "b": 1}

    def fail(self, values, step=None):
        raise ConnectionError("no network")

    monkeypatch.setattr(Notebook, "log", fail)
    for step in (1, 2):
        trackers.write({"epoch": 1, "step": step, "train_loss": 1.0})
    assert notes == ["warning: tracker wandb gets no more figures: no network"]
    trackers.close()  # nothing is open any more


def test_a_tracker_that_cannot_finish_is_named(tmp_path, notebook, monkeypatch):
    def fail(self):
        raise ConnectionError("no network")

    notes = []
    monkeypatch.setattr(Notebook, "finish", fail)
    Trackers(("wandb",), tmp_path, {}, notes.append).close()
    assert notes == ["warning: tracker wandb gets no more figures: no network"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("wandby", "output.trackers 'wandby' is unknown; nearest: wandb"), ("mlflow", "mlflow: its package is not ins")],
)
def test_a_tracker_that_cannot_be_had_is_refused(notebook, name, reason):
    with pytest.raises(MissingExtra if name == "mlflow" else ConfigError, match=reason):
        check_trackers((name,))


def test_trackers_are_words_of_the_command(pictures, tmp_path, capsys, notebook):
    words = f"train --data {pictures} --output {tmp_path / 'run'} --data.batch-size 4 --data.image-size 16"
    assert main([*words.split(), "--output.trackers", "wandby"]) == 2
    assert "output.trackers 'wandby' is unknown; nearest: wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()  # it is told before the work
