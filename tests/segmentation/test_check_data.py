"""`convattn data check` on images with masks."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from convattn.cli.main import main
from convattn.rooms import data_of
from convattn.segmentation.options import CheckOptions, LabelOptions
from tiny_masks import COLOURS, write_image, write_mask, write_masked, write_pair


@pytest.fixture
def data(tmp_path):
    return write_masked(tmp_path / "data")


def check(capsys, *words):
    status = main(["data", "check", *map(str, words), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_sound_data_have_shares_and_nothing_else(data, capsys):
    status, found = check(capsys, data)
    assert (status, [*found["splits"]]) == (0, ["train", "val"])
    for split, count in (("train", 4), ("val", 2)):
        masks = np.stack([np.asarray(Image.open(data / "masks" / split / f"{at}.png")) for at in range(count)])
        one = found["splits"][split]
        for number, name in enumerate(("sky", "tree", "road")):
            pixels = int((masks == number).sum())
            assert one["classes"][name] == {"pixels": pixels, "share": pixels / masks.size, "images": count}
        assert (one["images"], one["ignored_share"], one["corrupt"], one["kinds"]) == (count, 0, {}, {})
        assert (one["modes"], one["widths"], one["heights"]) == ({"RGB": count}, [8, 8, 8], [6, 6, 6])
    assert [found[key] for key in ("duplicates", "leaked", "contradicting", "odd", "stops")] == [[], [], 0, [], []]
    assert found["notes"] == [f"{data}/classes.txt: names the 3 classes"]


def test_what_is_wrong_is_named_by_its_kind(tmp_path, capsys):
    data = write_masked(tmp_path / "data", train=6)
    images, masks = data / "images" / "train", data / "masks" / "train"
    (masks / "0.png").unlink()
    write_mask(masks / "1.png", np.zeros((6, 9)))
    write_mask(masks / "2.png", np.r_[np.full(40, 9), np.zeros(8)].reshape(6, 8))
    (images / "3.png").write_bytes(b"")
    Image.fromarray(np.full((6, 8), 300, dtype=np.uint16)).save(masks / "4.png")
    write_mask(masks / "stray.png", np.zeros((6, 8)))
    status, found = check(capsys, data)
    train = found["splits"]["train"]
    assert status == 1
    assert train["kinds"] == {
        "no mask": 1, "image and mask of different size": 1, "labels that are no class": 1, "cannot be read": 1,
        "masks of another kind": 1,
    }  # fmt: skip
    reasons = {path.rpartition("/")[2]: reason.removeprefix(f"{data}/") for path, reason in train["corrupt"].items()}
    assert reasons["0.png"] == f"images/train/0.png: no mask in {masks}"
    assert reasons["1.png"].startswith("masks/train/1.png: 9 × 6 pixels, and its image ")
    assert reasons["2.png"].startswith("masks/train/2.png: label 9 in 40 pixels, and the 3 classes are 0 to 2; ")
    assert reasons["3.png"] == "images/train/3.png: the file is empty"
    assert reasons["4.png"].startswith("masks/train/4.png: a mask of more than 8 bits")
    sound = np.asarray(Image.open(masks / "5.png"))
    counts = np.bincount(sound.ravel(), minlength=3) + np.array([8, 0, 0])  # and what is known of that with label 9
    assert [one["pixels"] for one in train["classes"].values()] == counts.tolist()
    assert train["ignored_share"] == 40 / (counts.sum() + 40)
    assert found["stops"] == [
        f"{images}: 1 of 6 images have no mask in {masks}, more than 1%, such as 0.png; add these or move "
        "the images elsewhere",
        "5 of 6 training images cannot be learnt from, more than 1%; repair or remove them",
    ]
    assert f"{masks}: 1 without an image in {images}, passed over: stray.png" in found["notes"]
    assert main(["data", "check", str(data)]) == 1
    said = capsys.readouterr().out
    assert f"train: no mask: {images}/0.png: no mask in {masks}\n" in said
    assert "would stop a run: 5 of 6 training images cannot be learnt from" in said


def test_doubles_leaks_and_contradictions_are_found_by_the_pixels(data, capsys):
    for name in ("images/{}/0.png", "masks/{}/0.png"):
        shutil.copy(data / name.format("train"), data / name.format("train").replace("0.png", "copy.png"))
        shutil.copy(data / name.format("train"), data / name.format("val").replace("0.png", "leaked.png"))
    _, found = check(capsys, data)
    assert ([len(group) for group in found["leaked"]], found["duplicates"], found["contradicting"]) == ([3], [], 0)
    write_mask(data / "masks" / "val" / "leaked.png", np.zeros((6, 8)))
    assert check(capsys, data)[1]["contradicting"] == 1
    assert main(["data", "check", str(data)]) == 0
    said = capsys.readouterr().out
    assert "1 pictures are there with different masks" in said
    assert f"in more than one split: {data}/images/train/0.png = " in said


def test_absent_and_rare_classes_are_told(tmp_path, capsys):
    data = write_masked(tmp_path / "data", train=1, val=1)
    write_image(data / "images" / "train" / "0.png", size=(80, 60))
    rare = np.zeros((60, 80), dtype=np.uint8)
    rare[0, :3] = (1, 2, 1)
    write_mask(data / "masks" / "train" / "0.png", rare)
    write_mask(data / "masks" / "val" / "0.png", np.zeros((6, 8)))
    status, found = check(capsys, data)
    assert (status, found["notes"][1:]) == (
        0,
        [
            "train: below 0.1 % of the pixels: road 0.021 %, tree 0.042 %",
            "val: no pixel of road, tree, so that nothing is known of it here",
        ],
    )


def test_an_image_without_a_pixel_that_counts_is_odd(data, capsys):
    write_mask(data / "masks" / "train" / "1.png", np.full((6, 8), 255))
    status, found = check(capsys, data)
    (odd,) = found["odd"]
    assert (status, odd["path"], odd["what"]) == (0, f"{data}/images/train/1.png", "no pixel counts")


def test_options_say_what_masks_mean(data, tmp_path, capsys):
    (data / "classes.txt").unlink()
    (tmp_path / "named.txt").write_text("sky\ntree\n")
    status, found = check(capsys, data, "--labels.classes", tmp_path / "named.txt", "--labels.ignore-index", "2")
    assert (status, [*found["splits"]["train"]["classes"]]) == (0, ["sky", "tree"])
    assert found["splits"]["train"]["ignored_share"] > 0
    status, found = check(capsys, data, "--labels.classes", tmp_path / "named.txt", "--labels.reduce-zero-label")
    assert (status, found["splits"]["train"]["classes"]["sky"]["images"]) == (0, 4)
    with pytest.raises(SystemExit):
        main(["data", "check", str(data), "--help"])
    assert "--labels.ignore-index" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    assert "--validation-labels" in capsys.readouterr().out
    assert main(["data", "check", str(data), "--validation-labels", "x"]) == 2


def test_what_training_refuses_is_among_the_stops_and_the_rest_is_looked_at(data, capsys):
    shutil.rmtree(data / "masks" / "val")
    status, found = check(capsys, data)
    assert (status, [*found["splits"]], len(found["stops"])) == (1, ["train"], 1)
    assert "the val images have no masks; expected them in" in found["stops"][0]
    assert "val: its images have no masks and are not looked at" in found["notes"]
    shutil.rmtree(data / "images" / "val")
    assert "no validation images; put some into a split val" in check(capsys, data)[1]["stops"][0]


def test_flat_folders_test_images_and_other_places(tmp_path, capsys):
    flat = tmp_path / "flat"
    for at in range(4):
        write_pair(flat / "images" / f"{at}.png", flat / "masks" / f"{at}.png", seed=at)
    (flat / "classes.txt").write_text("sky\ntree\nroad\n")
    status, found = check(capsys, flat)
    assert (status, [*found["splits"]]) == (1, ["all"])
    status, found = check(capsys, flat, "--validation", "0.25")
    assert (status, {name: one["images"] for name, one in found["splits"].items()}) == (0, {"train": 3, "val": 1})
    data = write_masked(tmp_path / "data", val=0)
    status, found = check(capsys, data, "--validation", flat)
    assert (status, {name: one["images"] for name, one in found["splits"].items()}) == (0, {"train": 4, "val": 4})
    write_pair(data / "images" / "test" / "t.png", data / "masks" / "test" / "t.png", seed=77)
    status, found = check(capsys, data)
    assert (status, {name: one["images"] for name, one in found["splits"].items()}) == (0, {"train": 4, "val": 1})
    write_pair(data / "images" / "val" / "v.png", data / "masks" / "val" / "v.png", seed=78)
    assert [*check(capsys, data)[1]["splits"]] == ["train", "val", "test"]
    (data / "masks" / "test" / "t.png").rename(data / "masks" / "test" / "other.png")
    status, found = check(capsys, data)
    assert (status, [*found["splits"]]) == (0, ["train", "val"])
    assert any(line.startswith("the test images are not looked at: ") for line in found["notes"])


def test_nothing_to_look_at_is_one_line(data, capsys):
    (data / "classes.txt").write_text("sky 0 0 0\ntree 0 0 0\nroad 1 1 1\n")
    assert main(["data", "check", str(data)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"convattn data: {data}/classes.txt, line 2: 'tree' has the colour 0 0 0 of 'sky' (line 1); give each class "
        "a colour of its own"
    )


def test_the_page_shows_the_classes_laid_over_images(data, tmp_path, capsys):
    lines = (f"{name} {' '.join(map(str, rgb))}" for name, rgb in zip(("<sky>", "tree", "road"), COLOURS, strict=True))
    (data / "classes.txt").write_text("\n".join(lines))
    write_mask(data / "masks" / "train" / "3.png", np.zeros((2, 2)))
    (data / "images" / "train" / "2.png").write_bytes(b"")
    assert main(["data", "check", str(data), "--output", str(tmp_path / "page.html")]) == 1
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/jpeg;base64,') == 4 + 3 * 2  # all, and those of each class that have a mask
    assert "&lt;sky&gt;" in page
    assert "background: rgb(70 130 180)" in page
    assert f"{data}/masks/train/3.png: 2 × 2 pixels" in page
    assert "with different masks" in page
    assert "<script" not in page


def test_a_picture_is_mixed_with_the_colours_of_its_classes(data):
    room = data_of("segmentation")
    opened = room.open_splits(data, None, CheckOptions(LabelOptions(ignore_index=0)))
    images = opened.splits["train"]
    shown, plain = np.asarray(room.picture(images, 0), dtype=float), np.asarray(images.read(0), dtype=float)
    labels = images.target(0)
    assert np.array_equal(shown[labels == 255], plain[labels == 255])
    colours = np.array(images.colours, dtype=float)[labels[labels != 255]]
    assert np.abs(shown[labels != 255] - (0.45 * plain[labels != 255] + 0.55 * colours)).max() <= 1
    (data / "masks" / "train" / "0.png").unlink()
    assert np.array_equal(np.asarray(room.picture(images, 0)), plain)


def test_of_many_classes_the_smallest_and_the_greatest_are_listed(tmp_path, capsys):
    data = write_masked(tmp_path / "data", train=1, val=1)
    numbers = np.repeat(np.arange(30), np.arange(1, 31))
    for split in ("train", "val"):
        write_image(data / "images" / split / "0.png", seed=split == "val", size=(len(numbers), 1))
        write_mask(data / "masks" / split / "0.png", numbers[None])
    (data / "classes.txt").write_text("\n".join(f"c{number:02d}" for number in range(30)))
    assert main(["data", "check", str(data)]) == 0
    said = capsys.readouterr().out
    assert "c09 " in said
    assert "c10 " not in said
    assert "c20 " in said
    assert "(counts for nothing)" in said
