"""What a configuration names means the same from every working directory, and a stored one runs nothing."""

import dataclasses
import json
import os
import typing

import pytest

from convattn.classification.options import ClassificationOptions
from convattn.cli.main import main
from convattn.task import TaskOptions
from convattn.training.config import ConfigError, RunConfig
from convattn.training.config_json import config_to_json
from convattn.training.loop import train
from convattn.training.output import stored_config
from convattn.training.places import check_stored_options, field_of, places, with_absolute_paths, with_field
from tiny_runs import tiny_config, write_pictures

# Fields of text that are no paths.
_WORDS = {"model.name", "optimizer.name", "task.augmentation.auto_augment", "recipe"}


def test_every_field_that_may_name_a_file_is_known():
    assert set(_texts(RunConfig)) - _WORDS == set(places(RunConfig()))


def _texts(kind, prefix=""):
    """The dotted names of all fields that may hold any text."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        if inner is TaskOptions:
            inner = ClassificationOptions
        if dataclasses.is_dataclass(inner):
            yield from _texts(inner, f"{prefix}{field.name}.")
        elif inner in (str, str | None):
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("data.source", "photos", "{cwd}/photos"),
        ("data.source", "./photos/", "{cwd}/photos"),
        ("data.source", "../photos", "{cwd}/../photos"),
        ("data.source", "/photos", "/photos"),
        ("data.source", "digits", "digits"),
        ("data.source", "digits.csv", "{cwd}/digits.csv"),
        ("data.source", "shards/{0000..0146}.tar", "{cwd}/shards/{0000..0146}.tar"),
        ("data.source", "{a,b}/0.tar", "{cwd}/{a,b}/0.tar"),
        ("data.source", "{/a,/b}/0.tar", "{/a,/b}/0.tar"),
        ("data.source", "pipe:cat shards/{0..9}.tar", "pipe:cat shards/{0..9}.tar"),
        ("data.validation", "val", "{cwd}/val"),
        ("data.validation", "digits", "digits"),
        ("task.validation_labels", "labels.txt", "{cwd}/labels.txt"),
        ("task.distillation.teacher", "runs/teacher", "{cwd}/runs/teacher"),
        ("task.distillation.teacher", "teacher.safetensors", "{cwd}/teacher.safetensors"),
        ("task.distillation.teacher", "here", "{cwd}/here"),  # a run folder of one word
        ("task.distillation.teacher", "smt_tiny", "smt_tiny"),
        ("task.distillation.teacher", "timm:resnet50", "timm:resnet50"),
        ("task.distillation.unlabelled", "more", "{cwd}/more"),
        ("model.pretrained_path", "weights.pth", "{cwd}/weights.pth"),
        ("model.head_rows", "rows.txt", "{cwd}/rows.txt"),
        ("model.head_rows", "fresh", "fresh"),
        ("model.head_rows", "imagenet-22k", "imagenet-22k"),
        ("output.folder", "run", "{cwd}/run"),
    ],
)
def test_paths_are_stored_from_the_root(tmp_path, monkeypatch, name, value, stored):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    config = RunConfig()
    if name == "task.distillation.unlabelled":
        config = with_field(config, "task.distillation.teacher", "smt_tiny")
    if name == "model.head_rows":
        config = with_field(config, "model.pretrained_path", "/weights.pth")
    found = with_absolute_paths(with_field(config, name, value))
    assert field_of(found, name) == stored.replace("{cwd}", str(tmp_path))
    assert with_absolute_paths(found) == found


@pytest.mark.parametrize("name", ["data.source", "data.validation", "output.folder"])
def test_an_empty_path_is_not_the_working_directory(name):
    with pytest.raises(ConfigError, match=f"{name} is empty; name a place, or leave the option out"):
        with_absolute_paths(with_field(RunConfig(), name, ""))


@pytest.fixture(scope="module")
def moved_run(tmp_path_factory):
    """A run that was started by relative names, its working directory, and another data set of that name elsewhere."""
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("elsewhere")
    write_pictures(home / "photos")
    write_pictures(elsewhere / "photos", train=8, val=3)
    before = os.getcwd()
    os.chdir(home)
    try:
        train(tiny_config("photos", "run", schedule=dict(epochs=1, warmup_epochs=0)))
    finally:
        os.chdir(before)
    return home, elsewhere


def test_a_run_is_evaluated_and_resumed_from_anywhere(moved_run, monkeypatch, capsys):
    home, elsewhere = moved_run
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert main(["eval", str(home / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 8
    assert main(["train", "--resume", str(home / "run")]) == 0
    assert stored_config(home / "run").data.source == str(home / "photos")


def test_what_an_older_version_stored_is_taken_from_here_and_told(moved_run, monkeypatch, capsys):
    home, _ = moved_run
    kept = (home / "run" / "config.json").read_text()
    monkeypatch.chdir(home)
    try:
        (home / "run" / "config.json").write_text(kept.replace(str(home / "photos"), "photos"))
        assert main(["eval", str(home / "run"), "--json"]) == 0
        assert f"its images are taken from {home}" in capsys.readouterr().err
        assert main(["train", "--resume", "run"]) == 0
        told = f"data.source 'photos', stored without its folder, is taken from here: {home}/photos"
        assert told in capsys.readouterr().err
    finally:
        (home / "run" / "config.json").write_text(kept)


@pytest.mark.parametrize("words", [["train", "--resume"], ["eval"]])
def test_what_was_moved_is_said(moved_run, capsys, words):
    home, _ = moved_run
    (home / "photos").rename(home / "away")
    try:
        assert main([*words, str(home / "run")]) == 1
    finally:
        (home / "away").rename(home / "photos")
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{home}/photos: no such folder or file any more, the run's data.source; give its new place: --data" in line


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.source", "pipe:touch {mark}; cat /dev/null"),
        ("data.validation", "pipe:touch {mark}"),
        ("task.distillation.teacher", "https://host.invalid/teacher.safetensors"),
        ("task.distillation.teacher", "timm:hf-hub:somebody/model"),
        ("model.pretrained_path", "https://host.invalid/weights.pth"),
        ("model.name", "timm:hf-hub:somebody/model"),
    ],
)
def test_a_stored_call_is_made_only_if_given_again(tmp_path, capsys, name, value, extra):
    mark, run = tmp_path / "mark", tmp_path / "run"
    value = value.replace("{mark}", str(mark))
    run.mkdir()
    config = tiny_config("digits", run, data=dict(validation="/", epoch_images=8))
    (run / "config.json").write_text(config_to_json(with_field(config, name, value)))
    assert main(["train", "--resume", str(run), *extra]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"its {name} would run or fetch {value!r}; if you trust it, give it again: --{name.replace('_', '-')}" in line
    )
    for word in (["eval", str(run)], ["runs", str(tmp_path)]):
        assert main(word) == 1
    assert not mark.exists()


def test_a_command_that_is_given_again_runs(tmp_path):
    mark, run = tmp_path / "mark", tmp_path / "run"
    command = f"pipe:touch {mark}; cat /dev/null"
    run.mkdir()
    pictures = write_pictures(tmp_path / "pictures", train=1, val=1)
    config = tiny_config(command, run, data=dict(validation=str(pictures / "val"), epoch_images=8))
    (run / "config.json").write_text(config_to_json(config))
    assert main(["train", "--resume", str(run), "--data", command]) == 1  # it prints no shard
    assert mark.exists()


@pytest.mark.parametrize("option", ["pretrained_cfg_overlay", "pretrained_cfg", "checkpoint_path", "cache_dir"])
def test_stored_options_load_no_weights_from_elsewhere(option):
    config = tiny_config("digits", "run", model=dict(options={option: {"url": "https://host.invalid"}}))
    with pytest.raises(ConfigError, match=rf"run: model.options {option} would load weights from wherever"):
        check_stored_options(config, "run")
