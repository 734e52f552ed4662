import json
import shutil

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from convattn.cli.main import main
from convattn.data.check import SplitCheck, stops_of
from convattn.data.dataset import DataError
from convattn.rooms import KINDS, data_of, kind_of_data
from convattn.training.loop import train
from map_task import MapRoom
from tiny_archives import pack_splits
from tiny_runs import tiny_config, write_pictures


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


def check(capsys, *words):
    status = main(["data", "check", *map(str, words), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_sound_data_set_has_counts_and_nothing_else(pictures, tmp_path, capsys):
    for source in (pictures, pack_splits(pictures, tmp_path / "packed")):
        status, found = check(capsys, source)
        assert status == 0
        train, val = found["splits"]["train"], found["splits"]["val"]
        assert (train["images"], train["classes"], train["modes"]) == (24, {"bright": 12, "dark": 12}, {"RGB": 24})
        assert (val["images"], val["widths"], val["heights"]) == (8, [16, 16, 16], [16, 16, 16])
        assert [found[key] for key in ("duplicates", "leaked", "contradicting", "odd", "stops")] == [[], [], 0, [], []]
    assert list(check(capsys, pictures / "val")[1]["splits"]) == ["all"]


def test_what_is_wrong_is_named(pictures, tmp_path, capsys):
    train, val = pictures / "train", pictures / "val"
    (val / "dark" / "001.png").write_bytes(b"")
    shutil.copy(train / "dark" / "000.png", train / "dark" / "copy.png")
    Image.open(train / "dark" / "001.png").save(train / "bright" / "other_format.bmp")
    shutil.copy(train / "bright" / "002.png", val / "bright" / "leaked.png")
    Image.open(train / "bright" / "003.png").convert("L").save(train / "bright" / "grey.png")
    Image.new("RGB", (80, 16)).save(train / "dark" / "long.png")
    Image.new("RGB", (3, 3)).save(train / "dark" / "small.png")
    status, found = check(capsys, pictures, "--output", tmp_path / "page.html")
    assert (status, found["stops"]) == (
        1,
        ["1 of 9 validation images cannot be read, more than 1%; repair or remove them"],
    )

    def names(group):
        return [entry["path"].removeprefix(f"{pictures}/") for entry in group]

    assert found["splits"]["val"]["corrupt"] == {f"{val}/dark/001.png": f"{val}/dark/001.png: the file is empty"}
    assert sorted(map(names, found["duplicates"])) == [
        ["train/bright/other_format.bmp", "train/dark/001.png"],
        ["train/dark/000.png", "train/dark/copy.png"],
    ]
    assert found["contradicting"] == 1
    assert [names(group) for group in found["leaked"]] == [["train/bright/002.png", "val/bright/leaked.png"]]
    assert {name: entry["what"] for name, entry in zip(names(found["odd"]), found["odd"], strict=True)} == {
        "train/bright/grey.png": "mode L",
        "train/dark/long.png": "80 × 16 pixels",
        "train/dark/small.png": "3 × 3 pixels",
    }
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 2 * 8 + 4 + 2 + 3
    assert f"{val}/dark/001.png: the file is empty" in page
    assert "http" not in page.replace("http-equiv", "")


def test_more_than_a_hundredth_of_broken_training_images_would_stop_a_run(pictures, capsys):
    (pictures / "train" / "dark" / "001.png").write_bytes(b"")
    assert main(["data", "check", str(pictures)]) == 1
    out = capsys.readouterr().out
    assert "would stop a run: 1 of 24 training images cannot be read, more than 1%; repair or remove them" in out
    assert f"train: cannot be read: {pictures}/train/dark/001.png: the file is empty" in out


def test_twelve_bits_in_a_file_of_sixteen_are_told(tmp_path, capsys):
    for name, most in (("twelve", 4095), ("sixteen", 65535)):
        (tmp_path / "a").mkdir(exist_ok=True)
        pixels = np.linspace(0, most, 64, dtype=np.uint16).reshape(8, 8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{name}.png")
    status, found = check(capsys, tmp_path)
    (odd,) = found["odd"]
    assert (status, odd["path"]) == (1, str(tmp_path / "a" / "twelve.png"))  # one split: nothing to train by
    assert odd["what"].startswith("at most 16 of 255 bright, as are 12 bits in a file of 16")


def test_an_image_that_only_reads_without_its_texts_is_looked_at_like_any_other(pictures, capsys):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("notes", "x" * 2_000_000, zip=True)
    Image.new("RGB", (16, 16), "red").save(pictures / "train" / "dark" / "a.png", pnginfo=texts)
    status, found = check(capsys, pictures)
    assert (status, found["splits"]["train"]["modes"]) == (0, {"RGB": 25})


def test_a_layout_that_training_refuses_fails_and_the_rest_is_looked_through(pictures, capsys):
    (pictures / "val" / "dark").rename(pictures / "val" / "night")
    status, found = check(capsys, pictures)
    assert (status, list(found["splits"]), len(found["stops"])) == (1, ["train"], 1)
    assert "class 'night' is here but not among the training classes" in found["stops"][0]


def empty_class(pictures):
    (pictures / "train" / "bird").mkdir()


def empty_training_folder(pictures):
    shutil.rmtree(pictures / "train")
    (pictures / "train").mkdir()


def no_training_folder(pictures):
    shutil.rmtree(pictures / "train")


def one_class(pictures):
    for split in ("train", "val"):
        shutil.rmtree(pictures / split / "dark")


def two_validation_folders(pictures):
    shutil.copytree(pictures / "val", pictures / "valid")


def list_that_does_not_cover(pictures):
    (pictures / "train.csv").write_text("path,label\nbright/001.png,bright\n")


def no_validation(pictures):
    shutil.rmtree(pictures / "val")


def contradicting_list(pictures):
    shutil.rmtree(pictures / "val")
    (pictures / "val.csv").write_text("path,label\na.png,bright\na.png,dark\n")


@pytest.mark.filterwarnings("ignore::convattn.data.dataset.DataWarning")
@pytest.mark.parametrize(
    "spoil",
    [
        empty_class,
        empty_training_folder,
        no_training_folder,
        one_class,
        two_validation_folders,
        list_that_does_not_cover,
        no_validation,
        contradicting_list,
    ],
)
def test_what_training_refuses_is_refused_for_the_same_reason(pictures, tmp_path, capsys, spoil):
    spoil(pictures)
    with pytest.raises(DataError) as refused:
        train(tiny_config(pictures, tmp_path / "run"))
    assert main(["data", "check", str(pictures)]) == 1
    shown = capsys.readouterr()
    assert str(refused.value) in shown.out + shown.err


def test_what_was_chosen_is_shown(pictures, tmp_path, capsys):
    (pictures / "val").rename(pictures / "test")
    (pictures / "train" / "dark" / "photo.heic").write_bytes(b"")
    status, found = check(capsys, pictures)
    assert (status, list(found["splits"]), found["splits"]["val"]["images"]) == (0, ["train", "val"], 8)
    passed_over, serves = found["notes"]
    assert passed_over.endswith("train: passed over, because Pillow reads no such format here: 1 .heic")
    assert "no val, valid, validation or dev; test serves" in serves
    assert main(["data", "check", str(pictures)]) == 0
    assert passed_over in capsys.readouterr().out


def test_test_images_that_are_laid_out_otherwise_stop_nothing(pictures, capsys):
    (pictures / "test").mkdir()
    shutil.copy(pictures / "val" / "dark" / "001.png", pictures / "test" / "1.png")
    status, found = check(capsys, pictures)
    assert (status, list(found["splits"])) == (0, ["train", "val"])
    assert "the test images are not looked at: " in found["notes"][0]
    (pictures / "test" / "dark").mkdir()
    (pictures / "test" / "1.png").rename(pictures / "test" / "dark" / "1.png")
    assert list(check(capsys, pictures)[1]["splits"]) == ["train", "val", "test"]


def test_data_of_a_task_that_says_nothing_of_them_are_not_looked_through(monkeypatch, pictures):
    monkeypatch.setitem(KINDS, "map", MapRoom())
    assert kind_of_data(pictures) == "classification"
    with pytest.raises(ValueError, match="data of the task map cannot be looked through"):
        data_of("map")


def test_validation_images_may_lie_elsewhere(pictures, tmp_path, capsys):
    (pictures / "val").rename(tmp_path / "elsewhere")
    assert check(capsys, pictures, "--validation", tmp_path / "elsewhere")[0] == 0
    packed = pack_splits(pictures.rename(tmp_path / "again"), tmp_path / "packed") / "train.tar"
    status, found = check(capsys, packed, "--validation", tmp_path / "elsewhere")
    assert (status, list(found["splits"])) == (0, ["train", "val"])
    status, found = check(capsys, packed)
    assert (status, list(found["splits"])) == (1, ["all"])
    assert "holds the training split alone; name the other with data.validation" in found["stops"][0]


def test_many_classes_and_findings_are_shortened(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"c{number:02d}").mkdir()
        for at in range(number + 1):
            Image.new("RGB", (4, 4), (number, at, 0) if at else 0).save(tmp_path / f"c{number:02d}" / f"{at}.png")
    assert main(["data", "check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "would stop a run" in out
    assert "c09 " in out
    assert "c10 " not in out
    assert "1 pictures are there under different classes" in out


@pytest.mark.parametrize(
    ("status", "args", "message"),
    [
        (1, ["check", "nowhere"], "nowhere: no such folder"),
        (1, ["check", ""], "the name of a data set is empty"),  # not the working directory
        (1, ["check", "digits"], "digits: they are in memory and whole"),
        (2, ["check", "x", "--output", "page.txt"], "--output page.txt must end in .html"),
        (1, ["check", "x", "--output", "/dev/null/page.html"], "/dev/null could not be written: "),
        (2, ["look", "x"], "look"),
    ],
)
def test_bad_requests_are_refused_in_one_line(capsys, status, args, message):
    assert main(["data", *args]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(("broken", "stops"), [(1, 0), (2, 1)])
def test_one_image_of_a_hundred_may_be_broken_as_in_training(broken, stops):
    corrupt = {f"{number}.png": "damaged" for number in range(broken)}
    for split in ("train", "val", "all"):
        found = SplitCheck(100, {"cat": 100}, corrupt, {}, (0, 0, 0), (0, 0, 0))
        assert len(list(stops_of({split: found, "test": found}))) == stops
