import re
from dataclasses import fields

import pytest

import convattn.report.run as run_report
from convattn.cli.main import main
from convattn.training.config import RunConfig
from convattn.training.config_json import config_from_json
from convattn.training.loop import train
from tiny_runs import tiny_config, write_pictures

SMALL = [
    *("--data.image-size", "16", "--data.batch-size", "4", "--schedule.epochs", "1", "--schedule.warmup-epochs", "0"),
    *("--output.no-tensorboard", "--loop.device", "cpu"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_trains_on_a_folder_with_fields_overridden(pictures, tmp_path, capsys):
    args = ["train", "--data", str(pictures), "--output", str(tmp_path / "run"), *SMALL]
    assert main([*args, "--optimizer.lr", "0.005", "--task.augmentation.rotation", "7"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'run'}\n"
    assert "epoch 1/1" in captured.err
    config = config_from_json((tmp_path / "run" / "config.json").read_text())
    assert config.data.source == str(pictures)
    assert (config.optimizer.lr, config.task.augmentation.rotation) == (0.005, 7.0)
    assert config.optimizer.clip_grad == 5.0  # of the recipe


@pytest.mark.parametrize("place", [1, 3])
def test_a_recipe_is_taken_wherever_its_name_stands(tmp_path, capsys, place):
    args = ["train", "--output", str(tmp_path / "run"), *SMALL, "--data.batch-size", "400"]
    args.insert(place, "smt_nano_digits")
    args[args.index("--data.image-size") + 1] = "8"
    assert main(args) == 0
    config = config_from_json((tmp_path / "run" / "config.json").read_text())
    assert (config.data.source, config.task.augmentation.horizontal_flip) == ("digits", 0.0)


def test_a_run_is_resumed_from_its_folder_alone_even_when_moved(pictures, tmp_path, capsys):
    train(tiny_config(pictures, tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "moved")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'moved'}\n"


def test_recipes_are_listed_with_what_they_are(capsys):
    assert main(["train", "--list"]) == 0
    out = capsys.readouterr().out
    assert "smt_nano_digits" in out
    assert "scikit-learn's handwritten digits" in out


@pytest.mark.parametrize(
    ("status", "args", "message"),
    [
        (2, ["smt_nano_digit"], r"unknown recipe 'smt_nano_digit'; nearest: smt_nano_digits"),
        (1, ["--resume", "nowhere"], r"nowhere: no run to resume here; it holds no config.json"),
        (1, ["--resume", "nowhere", "--optimizer.lr", "1"], r"nowhere: no run to resume here"),
        (
            2,
            ["smt_nano_digits", "--loop.precision", "fp16", "--loop.device", "cpu", "--output", "{tmp}/run"],
            r"loop.precision fp16 needs a GPU; use bf16 or fp32 on the CPU",
        ),
        (
            2,
            ["smt_nano_digits", "--output", "{tmp}/run", "--optimizer.no-decay", "zzz", *SMALL[:2]],
            r"optimizer.no_decay 'zzz' matches no parameter of smt_nano",
        ),
        (2, ["--json"], r"--json goes with --list or --dry-run; log.jsonl in the run folder has every epoch as JSON"),
        (2, ["--optimizer.lr", "fast"], r"--optimizer.lr takes FLOAT, not 'fast'; see"),
        (2, ["--data.batch-size", "1.5"], r"--data.batch-size takes INT, not '1.5'; see"),
        (2, ["--data", "{pictures}/train", "--data.validation", "1.5"], r"data.validation 1.5: a share of the images"),
        (1, ["--replay", "nowhere.pt"], r"nowhere.pt: No such file or directory"),
        (2, ["--data", "a", "--data.source", "b"], r"--data.source b and --data a are the same option; give one"),
        (2, ["--output", "a", "--output.folder", "b"], r"--output.folder b and --output a are the same option"),
        (1, ["--dry-run", "--data", "nowhere", "--output", "{tmp}/run"], r"nowhere: no such folder"),
        (1, ["--data", "nowhere", "--output", "{tmp}/run"], r"nowhere: no such folder; expected DIR/train/CLASS/IMAGE"),
        (
            2,
            ["finetune", "--model.name", "smt_nan", "--data", "{pictures}", "--output", "{tmp}/run", *SMALL],
            r"nearest: smt_nano",
        ),
    ],
)
def test_bad_requests_are_refused_in_one_line(pictures, tmp_path, capsys, status, args, message):
    words = [word.format(tmp=tmp_path, pictures=pictures) for word in args]
    assert main(["train", *words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_value_out_of_range_says_so(capsys):
    assert main(["train", "--schedule.epochs", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convattn train: schedule.epochs 0 must be 1 or more")
    assert main(["train", "detect_finetune", "--task.variation.flip", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("convattn train: task.variation.flip 3.0 must be between 0 and 1")


def test_a_dry_run_prints_what_the_run_takes_and_the_configuration_behind_it(pictures, tmp_path, capsys):
    assert main(["train", "--data", str(pictures), "--output", str(tmp_path / "run"), *SMALL, "--dry-run"]) == 0
    out = capsys.readouterr().out
    figures, begin, config = out.partition("{\n")
    assert config_from_json(begin + config).data.batch_size == 4
    shown = [line[:19].strip() for line in figures.splitlines()]
    assert shown == ["parameters", "images an epoch", "speed", "memory", "disk"]
    assert "24, 6 updates" in figures
    assert list(tmp_path.iterdir()) == []


def test_a_run_writes_its_report_after_every_epoch(pictures, tmp_path, monkeypatch):
    told = []
    write = run_report.write_run_report
    monkeypatch.setattr(run_report, "write_run_report", lambda *given: told.append(write(*given)))
    args = ["train", "--data", str(pictures), "--output", str(tmp_path / "run"), *SMALL]
    args[args.index("--schedule.epochs") + 1] = "2"
    assert main(args) == 0
    assert len(told) == 3  # and once more with what the best model says of each image
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_help_has_every_field_with_its_text(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    hidden = {("model", "options"), ("model", "plug_ins"), ("task", "augmentation"), ("task", "distillation")}
    for part in fields(RunConfig):
        if part.name == "recipe":
            continue
        for field in fields(getattr(RunConfig(), part.name)):
            if (part.name, field.name) in hidden:
                continue
            flag = f"--{part.name}.{field.name}".replace("_", "-")
            off = f"--{part.name}.no-{field.name}".replace("_", "-")  # of what is on by default
            (at,) = [index for index, line in enumerate(lines) if line.split(" ")[0] in (flag, off)]
            assert len(re.split("  +", lines[at])[1:] or lines[at + 1]) > 0, flag
