import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from convattn.data.check import SplitCheck, sheets_of
from convattn.data.dataset import DataError
from convattn.detection import data_check
from convattn.detection.data_check import SIDE, check_data, drawn, open_splits, picture, recognises
from convattn.detection.options import CheckOptions
from convattn.report.contact_sheet import write_contact_sheet
from tiny_detection import (
    HEIGHT,
    WIDTH,
    coco_folder,
    coco_object,
    voc_file,
    voc_object,
    write_coco,
    write_images,
    yolo_folder,
)

SQUARE = [[4, 5, 14, 5, 14, 13, 4, 13]]


def checked(source, **others):
    return check_data(open_splits(source, **others))


def test_a_sound_data_set_has_counts_and_nothing_else(tmp_path):
    coco_folder(
        tmp_path,
        train=[
            coco_object(1),
            coco_object(2, category=7, bbox=(1, 1, 20, 9)),
            coco_object(3, iscrowd=1, bbox=(0, 0, 9, 9)),
        ],
    )
    found = checked(tmp_path)
    train = found.splits["train"]
    assert train.images == 2
    assert train.classes == {"cat": 1, "dog": 1}
    assert train.holding == {"cat": 1, "dog": 1}
    assert train.sizes == {"small": 2, "medium": 0, "large": 0}
    assert (train.crowds, train.without, train.a_picture) == (1, 1, (0, 1, 2))
    assert train.sides == pytest.approx((80**0.5, (80**0.5 + 180**0.5) / 2, 180**0.5))
    assert [*found.stops, *found.odd] == []
    assert found.as_json()["splits"]["train"]["classes"]["dog"] == {"objects": 1, "images": 1}
    table = found.class_table()
    assert table.columns == ("class", "train: objects", "images", "val: objects", "images")
    assert table.rows[0] == ("cat", "1", "1", "1", "1")
    assert "val: no object of dog, so that nothing is known of it here" in found.notes


def test_what_is_wrong_is_named(tmp_path):
    good = [coco_object(at, bbox=(1, 1, 9, 10 + at)) for at in range(12)]
    coco_folder(
        tmp_path, train=[*good, coco_object(13, bbox=(5, 5, 0, 9)), coco_object(14, image=2, bbox=(3, 3, 1, 9))]
    )
    write_images(tmp_path / "val2017", ["1.png"], (20, 20))
    (tmp_path / "val2017/2.png").write_bytes(b"no image")
    found = checked(tmp_path)
    assert any("1 of 14 annotations passed over, of each its box has no width" in line for line in found.notes)
    assert len(found.splits["train"].passed_over) == 1
    assert [*found.splits["val"].kinds.values()] == ["of another size than annotated", "cannot be read"]
    assert found.stops == ["2 of 2 validation images cannot be learnt from, more than 1%; repair or remove them"]
    assert [what for one, what in found.odd if one.split == "train"] == ["1 boxes narrower or lower than 2 pixels"]


def test_the_same_picture_with_other_objects_is_told(tmp_path):
    coco_folder(tmp_path)
    (tmp_path / "train2017/2.png").write_bytes((tmp_path / "train2017/1.png").read_bytes())
    found = checked(tmp_path)
    assert [len(group) for group in found.leaked] == [3]
    assert found.contradicting == 1


def test_boxes_that_are_not_those_of_their_outlines_are_odd(tmp_path):
    objects = [coco_object(1, segmentation=SQUARE), coco_object(2, bbox=(20, 5, 10, 8), segmentation=SQUARE)]
    coco_folder(tmp_path, train=objects, val=objects)
    found = checked(tmp_path, options=CheckOptions(masks=True))
    assert {what for _, what in found.odd} == {"1 boxes that are not those of their outlines"}
    assert checked(tmp_path).odd == []


def test_what_training_would_refuse_is_told_and_the_rest_is_looked_at(tmp_path):
    coco_folder(tmp_path, val=[coco_object(1, bbox=(1, 1, 0, 0))])
    found = checked(tmp_path)
    assert [*found.splits] == ["train"]
    assert "1 of 1 annotations are not usable" in found.stops[0]
    coco_folder(tmp_path, train=[coco_object(1, bbox=(1, 1, 0, 0))])
    (tmp_path / "annotations/instances_val2017.json").unlink()
    with pytest.raises(DataError, match="1 of 1 annotations are not usable"):
        open_splits(tmp_path)


def test_test_images_are_looked_at_too(tmp_path):
    coco_folder(tmp_path)
    write_coco(tmp_path / "annotations/instances_test2017.json", [], pictures=tmp_path / "test2017")
    assert [*open_splits(tmp_path).splits] == ["train", "val", "test"]


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_other_formats_are_looked_at_alike(tmp_path, layout):
    if layout == "yolo":
        yolo_folder(tmp_path, ["1 0.5 0.5 0.5 0.2"])
    else:
        for split in ("train", "val"):
            write_images(tmp_path / split, ["a.jpg"])
            voc_file(tmp_path / split, "a", voc_object("dog"))
    assert recognises(tmp_path)
    assert {name: split.classes["dog"] for name, split in checked(tmp_path).splits.items()} == {"train": 1, "val": 1}


def test_the_contact_sheet_shows_images_with_their_objects(tmp_path):
    data = coco_folder(tmp_path / "data", train=[coco_object(1, segmentation=SQUARE)])
    write_images(data / "train2017", ["2.png"], (20, 20))
    opened = open_splits(data)
    write_contact_sheet(tmp_path / "page.html", check_data(opened), opened.splits, data, data_check)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") >= 3
    assert "1 objects in 1 images" in page
    shown = np.asarray(picture(opened.splits["train"], 0))
    assert shown.shape == (HEIGHT, WIDTH, 3)
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 2
    assert picture(opened.splits["train"], 1).size == (20, 20)  # whose annotations are for another size


def test_a_large_picture_is_drawn_small_and_left_as_it_was(tmp_path):
    data = open_splits(coco_folder(tmp_path)).splits["train"]
    large = Image.new("RGB", (WIDTH * 20, HEIGHT * 20))
    assert drawn(large, data.target(0), data.classes).size == (SIDE, SIDE * 3 // 4)
    assert large.getbbox() is None


def test_it_needs_no_torch(tmp_path):
    coco_folder(tmp_path)
    program = f"""
import sys
class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"torch", "torchvision", "timm"}}:
            raise ImportError(f"{{name}} is not needed")
sys.meta_path.insert(0, Refusal())
import convattn_command
from convattn.detection.data_check import check_data, open_splits
from convattn.detection.average_precision import BOX_METRICS
from convattn.detection.variation import Variation
print(len(check_data(open_splits({str(tmp_path)!r})).splits), len(BOX_METRICS), Variation().flip)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("2 12 0.5\n", 0), done.stderr


def test_sheets_show_the_images_that_have_the_most_of_a_class():
    check = SplitCheck(7, {"cat": 18, "dog": 1}, {}, {}, (0, 0, 0), (0, 0, 0))
    cats = np.array([0, 3, 1, 5, 2, 4, 3])
    every, cat, dog = sheets_of("val", check, np.stack([cats, cats == 5], 1), "of {}".format)
    assert (every.indices, every.note) == ([*range(7)], "7 of 7")
    assert (cat.title, cat.note, cat.split, cat.indices) == ("cat", "of cat", "val", [3, 5, 1, 6])
    assert dog.indices == [3]
    many, *_ = sheets_of("val", check, np.zeros((120, 2)), str)
    assert many.indices == [*range(0, 120, 10)]
