"""`convattn predict --output`: a table, lines of JSON, or the pictures with what was found."""

import csv
import json

import pytest
import torch
from PIL import Image

from convattn.cli.main import main
from convattn.model_files import save_model
from tiny_runs import write_pictures
from toys import build_toy


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=1, val=1) / "val"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    toy = build_toy("smt_nano", num_classes=2)
    toy.pretrained_cfg = {**toy.pretrained_cfg, "input_size": (3, 32, 32), "label_names": ("crane", "crane")}
    save_model(toy, path := tmp_path_factory.mktemp("model") / "m.safetensors")
    return str(path)


def test_a_model_that_is_not_there_is_named_before_its_options(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "gone"), "photo.jpg", "--score", "0.3"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"convattn predict: {tmp_path / 'gone'}: no such file or folder; of a model by that name: ")
    assert "--score" in told


def test_tables_say_what_the_json_says_and_classes_of_one_name_are_told_apart(model, pictures, tmp_path, capsys):
    assert main(["predict", model, str(pictures), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == [str(pictures / name / "000.png") for name in ("bright", "dark")]
    assert {row["class"] for row in found[0]["predictions"]} == {"crane (0)", "crane (1)"}
    for name in ("found.jsonl", "found.csv"):
        assert main(["predict", model, str(pictures), "--output", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}\n"
    assert [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()] == found
    with open(tmp_path / "found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["class"], float(row["probability"])) for row in rows] == [
        (entry["image"], row["class"], row["probability"]) for entry in found for row in entry["predictions"]
    ]


def test_pictures_of_one_name_are_all_drawn(model, pictures, tmp_path, capsys):
    assert main(["predict", model, str(pictures), "--output", str(tmp_path / "drawn")]) == 0
    written = sorted(file.name for file in (tmp_path / "drawn").iterdir())
    assert written == ["000-2.jpg", "000.jpg", "predictions.json"]
    found = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert [(entry["image"], entry["files"]) for entry in found] == [
        (str(pictures / "bright" / "000.png"), ["000.jpg"]),
        (str(pictures / "dark" / "000.png"), ["000-2.jpg"]),
    ]
    assert {row["index"] for row in found[0]["predictions"]} == {0, 1}
    with Image.open(tmp_path / "drawn" / "000.jpg") as drawn:
        assert drawn.size == (16, 16)


def test_an_image_that_cannot_be_read_is_left_out_of_the_table(model, pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    words = ["predict", model, str(tmp_path / "broken.png"), str(pictures / "dark"), "--output"]
    assert main([*words, str(tmp_path / "found.csv")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'broken.png'}: the file is empty\n"
    assert "broken" not in (tmp_path / "found.csv").read_text()


@pytest.mark.parametrize(
    ("status", "words", "message"),
    [
        (2, ["a.png", "--output", "found.xlsx"], "--output found.xlsx is neither a table (.csv, .jsonl) nor a folder"),
        (1, ["a.png", "--output", "/dev/null/found.csv"], "/dev/null could not be written: /dev/null: Not a directory"),
        (1, ["a.png", "--output", "/dev/null/drawn"], "/dev/null/drawn could not be written: /dev/null: Not a direct"),
        (1, ["gone.png"], "gone.png: no such file or folder"),
        (1, ["gone/*.png"], "gone/*.png: no such file or folder, and no pattern that fits one"),
    ],
)
def test_wrong_words_are_refused_in_one_line(model, capsys, status, words, message):
    assert main(["predict", model, *words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.filterwarnings("default:.*are finite")
@pytest.mark.parametrize("command", ["predict", "eval"])
def test_json_is_json_where_a_figure_is_not_finite(command, pictures, tmp_path, capsys):
    toy = build_toy("smt_nano", num_classes=2)
    toy.pretrained_cfg = {**toy.pretrained_cfg, "input_size": (3, 32, 32), "label_names": ("bright", "dark")}
    with torch.no_grad():
        toy.head.fc.bias.fill_(float("nan"))
    save_model(toy, tmp_path / "diverged.safetensors")
    data = ["--data", str(pictures)] if command == "eval" else [str(pictures)]
    assert main([command, str(tmp_path / "diverged.safetensors"), *data, "--json"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out, parse_constant=pytest.fail)
    assert (found["loss"] if command == "eval" else found[0]["predictions"][0]["probability"]) is None
    assert "diverged.safetensors: not all numbers of head.fc.bias are finite" in output.err
