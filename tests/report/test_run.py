import json

import pytest

from convattn.report.run import RunError, as_text, duration, read_run, write_run_report
from convattn.training.config import LoopConfig, ModelConfig
from html_page import Page
from run_folders import write_run


def words_of(page):
    return Page(page.read_text()).words


def test_a_run_is_read_from_its_folder(tmp_path):
    run = read_run(write_run(tmp_path / "run", [10.0, 30.0, 30.0, 20.0]))
    assert (run.model, run.planned, len(run.epochs), run.best.epoch, run.seconds) == ("smt_nano", 4, 4, 3, 2400)
    assert run.config["task.augmentation.horizontal_flip"] == 0.5
    assert run.is_over


def test_a_run_is_over_when_it_was_stopped_early(tmp_path):
    patient, late = LoopConfig(early_stopping=2), [50.0, 40.0, 45.0]
    assert read_run(write_run(tmp_path / "a", late, loop=patient)).is_over
    assert not read_run(write_run(tmp_path / "b", late)).is_over
    assert not read_run(write_run(tmp_path / "c", late[:2], loop=patient)).is_over
    assert not read_run(write_run(tmp_path / "d", [], loop=patient)).is_over


def test_the_report_says_how_far_and_how_good_and_with_what(tmp_path):
    model = ModelConfig("nextvit_nano", drop_path_rate=0.25)
    folder = write_run(tmp_path / "run", [10.0, 30.5, 20.0], model=model)
    page = write_run_report(folder)
    assert page == folder / "report.html"
    words = words_of(page)
    for text in (
        "nextvit_nano on digits",
        "3 of 4 epochs",
        "Best Top-1 30.50 % epoch 2",
        "Last loss 0.333 validation, 0.667 training",
        "Epochs 3 / 4 about 10 min to go",
        "Images/s 1.23 k",
        "Time 30 min 10 min an epoch",
        "model.name nextvit_nano smt_nano",
        "model.drop_path_rate 0.25 0.0",
        "schedule.epochs 4 30",
        "Learning rate",
        "torch",
    ):
        assert text in words, text
    for text in ("Skipped", "Unreadable", "output.folder", "loop.seed"):
        assert text not in words, text


def test_the_report_lists_what_went_wrong(tmp_path):
    folder = write_run(tmp_path / "run", [10.0])
    (folder / "unreadable.txt").write_text("a/b.png: the file is empty\nc.png: damaged or cut short (no: end)\n")
    updates = [
        {"step": step, "reason": "loss is nan", "paths": [f"{at}.png" for at in range(6)]} for step in range(150)
    ]
    (folder / "skipped.jsonl").write_text("".join(json.dumps(one) + "\n" for one in updates))
    words = words_of(write_run_report(folder))
    for text in (
        "Skipped updates 150 listed below",
        "Unreadable images 2 listed below",
        "a/b.png: the file is empty",
        "c.png: damaged or cut short (no: end)",
        "The first 100 of 150; all are in skipped.jsonl.",
        "99 loss is nan 0.png, 1.png, 2.png, 3.png and 2 more",
    ):
        assert text in words, text
    assert "100 loss is nan" not in words


def test_a_run_without_an_epoch_and_one_that_is_done_have_reports(tmp_path):
    new = words_of(write_run_report(write_run(tmp_path / "new", [])))
    assert "Epochs 0 / 4" in new
    assert "to go" not in new
    done = words_of(write_run_report(write_run(tmp_path / "done", [1.0] * 4)))
    assert "Epochs 4 / 4 done" in done
    stopped = write_run(tmp_path / "early", [50.0, 40.0], loop=LoopConfig(early_stopping=1))
    assert "over: no better result in 1 validations" in words_of(write_run_report(stopped))


def test_a_field_that_no_longer_exists_is_shown(tmp_path):
    folder = write_run(tmp_path / "run", [1.0])
    config = json.loads((folder / "config.json").read_text())
    config["model"]["flavour"] = ["sweet", None]
    (folder / "config.json").write_text(json.dumps(config))
    assert 'model.flavour ["sweet", null] –' in words_of(write_run_report(folder))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"run: no run; it holds no config.json"),
        ("log.jsonl", None, r"run: no run; it holds no log.jsonl"),
        ("config.json", "{", r"config.json: damaged \("),
        ("config.json", "[]", r"config.json: damaged \("),
        (
            "config.json",
            '{"model": {}}',
            r"config.json: no configuration of a run; it lacks model.name and schedule.epochs",
        ),
        ("config.json", "[" * 99_999, r"config.json: damaged \(nested too deep\)"),
        (
            "config.json",
            '{"model": {"name": "a"}, "schedule": {"epochs": 1' + "0" * 99 + "}}",
            r"it lacks schedule.epochs",
        ),
        (
            "config.json",
            '{"model": {"name": "a"}, "schedule": {"epochs": 3}, "loop": {"early_stopping": "x"}}',
            r"it lacks loop.early_stopping",
        ),
        ("log.jsonl", '{"epoch": 1, "seconds": [1]}\n', r"log.jsonl: damaged \(.*line 1: 'seconds' is no figure"),
        ("log.jsonl", "{\n", r"log.jsonl: damaged \("),
        ("log.jsonl", "7\n", r"log.jsonl: damaged \("),
        ("log.jsonl", "{}\n", r"log.jsonl: damaged \("),
    ],
)
def test_what_is_no_run_is_named(tmp_path, file, content, message):
    folder = write_run(tmp_path / "run", [1.0])
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(RunError, match=message):
        read_run(folder)


@pytest.mark.parametrize("line", ["7", "{", '{"step": 1}', '{"step": "x", "reason": "", "paths": []}', "[" * 99_999])
def test_a_damaged_list_of_skipped_updates_is_named(tmp_path, line):
    folder = write_run(tmp_path / "run", [1.0])
    (folder / "skipped.jsonl").write_text(f"{line}\n")
    with pytest.raises(RunError, match=r"skipped.jsonl, line 1: not a skipped update; remove the line"):
        write_run_report(folder)


def test_unreadable_files_of_any_name_are_shown(tmp_path):
    folder = write_run(tmp_path / "run", [1.0])
    (folder / "unreadable.txt").write_bytes(b"a/caf\xe9.png: the file is empty\n")
    assert "Unreadable images 1" in words_of(write_run_report(folder))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3500, "58 min"),
        (3590, "1.0 h"),
        (36e3, "10.0 h"),
        (2e5, "2.3 days"),
    ],
)
def test_durations_have_the_unit_that_suits(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "none"), ("a b", "a b"), (True, "true"), (0.5, "0.5"), ([1, 2], "[1, 2]"), ({}, "{}")]
)
def test_values_are_shown_for_people(value, text):
    assert as_text(value) == text
