"""Names as people and programs give them, through every command that shows some."""

import json
import re
import shutil

import pytest

from convattn.backbones.registry import create_model
from convattn.cli.main import main
from convattn.model_files import label_names, save_model
from convattn.training import unreadable
from convattn.training.config import DataConfig
from html_page import Page
from run_folders import write_run
from tiny_runs import TINY_OPTIONS, write_pictures

# A class by its name, and how it is shown.
NAMES = {
    "[red]cat[bold]": "[red]cat[bold]",
    ":smile: <b>&amp;": ":smile: <b>&amp;",
    "café 猫": "café 猫",
    "two\nlines: forged": r"two\nlines: forged",
    "\x1b[31mred": r"\x1b[31mred",
    "\u202egpj": r"\u202egpj",
    "latin\udce9": r"latin\xe9",
}
WILD = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\ud800-\udfff]")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Class folders of these names, in a folder of such a name, each with a broken image of such a name."""
    root = tmp_path_factory.mktemp("names") / "da[bold]ta\n\udce9"
    plain = write_pictures(root.parent / "plain", train=2, val=2)
    for split in ("train", "val"):
        for name in NAMES:
            shutil.copytree(plain / split / "dark", root / split / name)
            (root / split / name / f"broken{name}.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def model(pictures):
    model = create_model("smt_nano", num_classes=len(NAMES), **TINY_OPTIONS)
    size = {"input_size": (3, 16, 16), "crop_pct": 1.0}
    model.pretrained_cfg = {**model.pretrained_cfg, **size, "label_names": sorted(NAMES)}
    path = pictures.parent / "mo[red]del\x1b[31m.safetensors"  # safetensors opens only what is UTF-8
    save_model(model, path)
    return path


def said(capsys):
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert not WILD.search(text)
        text.encode()
    return captured.out, captured.err


def test_predict_shows_names_and_answers_a_line_an_image(model, pictures, capsys):
    images = [str(path) for path in sorted(pictures.glob("val/*/*.png"))]
    assert main(["predict", str(model), *images, "--top", "7"]) == 1
    out, err = said(capsys)
    assert len(out.splitlines()) == 2 * len(NAMES)
    assert len(err.splitlines()) == len(NAMES)
    for shown in NAMES.values():
        assert all(f"{shown} " in line for line in out.splitlines())
        assert f"broken{shown}.png: not an image" in err
    assert main(["predict", str(model), *images, "--json"]) == 1
    answers = json.loads(said(capsys)[0])
    assert {answer["image"] for answer in answers} | {path for path in images if "broken" in path} == set(images)
    assert {entry["class"] for entry in answers[0]["predictions"]} < set(NAMES)


def test_eval_shows_classes_and_what_it_leaves_out(model, pictures, capsys, monkeypatch):
    monkeypatch.setattr(unreadable, "UNREADABLE_LIMIT", 1.0)
    assert main(["eval", str(model), "--data", str(pictures), "--per-class"]) == 0
    out, err = said(capsys)
    assert len(err.splitlines()) == len(NAMES)
    for shown in NAMES.values():
        assert f"\n{shown} " in out
        assert f"broken{shown}.png: not an image" in err


def test_data_check_shows_names_and_so_does_its_page(pictures, tmp_path, capsys):
    page = tmp_path / "pa[red]ge\udce9.html"
    assert main(["data", "check", str(pictures), "--output", str(page)]) == 1
    out, _ = said(capsys)
    content = page.read_text("utf-8")
    Page(content)
    assert not WILD.search(content.replace("\n", ""))
    for shown in NAMES.values():
        assert f"\n{shown} " in out
        assert f"<h3>{escaped(shown)} <span" in content
    assert main(["data", "check", str(pictures), "--json"]) == 1
    assert set(json.loads(said(capsys)[0])["splits"]["train"]["classes"]) == set(NAMES)


def test_training_notes_what_it_sets_aside_in_one_line(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(unreadable, "UNREADABLE_LIMIT", 1.0)
    folder = tmp_path / "ru[bold]n"
    settings = {
        "data.image-size": 16,
        "data.batch-size": 7,
        "schedule.epochs": 1,
        "schedule.warmup-epochs": 0,
        "loop.device": "cpu",
        "model.name": "smt_nano",
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--data", str(pictures), "--output", str(folder), *words]) == 0
    out, err = said(capsys)
    assert out == f"{folder}\n"
    lines = (folder / "unreadable.txt").read_text("utf-8").splitlines()
    assert len(lines) == len(NAMES)
    for shown in NAMES.values():
        (line,) = [line for line in lines if f"broken{shown}.png: not an image" in line]
        assert f"\nset aside: {line}\n" in err
        assert escaped(line) in (folder / "report.html").read_text("utf-8")
    assert set(label_names(folder / "best.safetensors")) == set(NAMES)


def test_what_safetensors_cannot_open_is_refused_for_its_name(pictures, model, tmp_path, capsys):
    assert (
        main(["train", "--data", str(pictures), "--output", str(tmp_path / "run\udce9"), "--loop.device", "cpu"]) == 2
    )
    assert r"run\xe9: model files and TensorBoard's are read only where names are UTF-8" in said(capsys)[1]
    path = shutil.copy(model, tmp_path / "model\udce9.safetensors")
    assert main(["predict", str(path), "a.png"]) == 1
    assert r"model\xe9.safetensors: its path is not UTF-8, and safetensors opens no other" in said(capsys)[1]


def test_help_of_a_run_shows_its_names(tmp_path, capsys):
    run = write_run(tmp_path / "run", [50.0], data=DataConfig("pic\x1b[31m\n\udce9"))
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(run), "--help-all"])
    assert r"pic\x1b[31m\n\xe9" in said(capsys)[0]


def test_a_line_end_in_the_name_of_our_errors_is_seen(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "none\n")]) == 1
    assert r"none\n: no such folder" in said(capsys)[1]


def test_runs_models_and_usage_errors_show_names(model, tmp_path, capsys):
    write_run(tmp_path / "ru[bold]n\n\udce9", [50.0])
    assert main(["runs", str(tmp_path), "--output", str(tmp_path / "all.html")]) == 0
    assert r"ru[bold]n\n\xe9" in said(capsys)[0]
    assert r"ru[bold]n\n\xe9" in (tmp_path / "all.html").read_text("utf-8")
    assert main(["models", str(model)]) == 0
    assert r"mo[red]del\x1b[31m.safetensors" in said(capsys)[0]
    for words in (
        ["predict", "gone\n\x1b[31m\udce9"],
        ["[red]\x1b[31m\udce9"],
        ["eval", "m", "--batch-size", "[red]\udce9"],
    ):
        assert main([*words, *(["a.png"] if words[0] == "predict" else [])]) in (1, 2)
        _, err = said(capsys)
        assert len(err.splitlines()) == 1
        assert "[31m" in err or "[red]" in err


def escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
