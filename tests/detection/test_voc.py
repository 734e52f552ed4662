import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.detection.sources import open_evaluation, open_training, recognises
from tiny_detection import HEIGHT, WIDTH, voc_file, voc_object, write_images


def voc_folder(root, *objects, stems=("a", "b")):
    """VOC's own layout: `a` to train on, `b` to validate on, with the same objects."""
    write_images(root / "JPEGImages", [f"{stem}.jpg" for stem in stems])
    for stem in stems:
        voc_file(root / "Annotations", stem, *objects)
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "ImageSets/Main/val.txt").write_text("b\n")
    return root


def test_pixels_are_counted_from_1_and_belong_to_the_object(tmp_path):
    data = open_evaluation(
        voc_folder(tmp_path, voc_object("dog", (1, 3, 10, 8)), voc_object("cat", (5, 5, WIDTH, HEIGHT)))
    )
    found = data.target(0)
    assert data.classes == ("cat", "dog")
    assert found.labels.tolist() == [1, 0]
    assert found.boxes_xyxy.tolist() == [[0, 2, 10, 8], [4, 4, WIDTH, HEIGHT]]
    assert found.areas.tolist() == [60, 36 * 26]


def test_boxes_that_begin_at_0_are_counted_from_0(tmp_path):
    with pytest.warns(DataWarning, match="some boxes begin at 0, so pixels are taken as counted from 0, not from 1"):
        data = open_evaluation(voc_folder(tmp_path, voc_object(box=(0, 3, 10, 8)), voc_object(box=(5, 5, 9, 9))))
    assert data.target(0).boxes_xyxy.tolist() == [[0, 3, 10, 8], [5, 5, 9, 9]]


def test_what_is_difficult_is_not_judged(tmp_path):
    with pytest.warns(DataWarning, match="1 objects are difficult: neither learnt nor counted"):
        data = open_evaluation(voc_folder(tmp_path, voc_object(difficult=1), voc_object(box=(3, 3, 9, 9), difficult=0)))
    assert data.target(0).crowd.tolist() == [True, False]


def test_the_lists_of_names_say_what_is_of_a_split(tmp_path):
    train, validation = open_training(voc_folder(tmp_path, voc_object()))
    assert [path.rpartition("/")[2] for path in (*train.paths, *validation.paths)] == ["a.jpg", "b.jpg"]


def test_classes_are_those_of_every_split(tmp_path):
    voc_folder(tmp_path, voc_object("cat"))
    voc_file(tmp_path / "Annotations", "b", voc_object("bee"))
    with pytest.warns(DataWarning, match="only the val images have bee; nothing is learnt of it"):
        train, validation = open_training(tmp_path)
    assert train.classes == validation.classes == ("bee", "cat")
    assert (train.target(0).labels.tolist(), validation.target(0).labels.tolist()) == ([1], [0])
    (tmp_path / "labels.txt").write_text("cat\nbee\n")
    assert open_evaluation(tmp_path).classes == ("cat", "bee")


@pytest.mark.parametrize("inside", ["", "Annotations"])
def test_splits_may_be_folders(tmp_path, inside):
    for split in ("train", "valid"):
        write_images(tmp_path / split / ("JPEGImages" if inside else ""), ["a.jpg"])
        voc_file(tmp_path / split / inside, "a", voc_object())
    assert recognises(tmp_path)
    assert [len(data.target(0)) for data in open_training(tmp_path)] == [1, 1]


def test_an_image_without_objects_is_kept(tmp_path):
    assert len(open_evaluation(voc_folder(tmp_path)).target(0)) == 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("<object><name>cat</name></object>", "it has no name or no bndbox of four numbers"),
        (voc_object(""), "it has no name or no bndbox of four numbers"),
        (voc_object(box=("x", 1, 2, 3)), "it has no name or no bndbox of four numbers"),
        (voc_object(box=("nan", 1, 2, 3)), "its box is not finite"),
        (voc_object(box=(9, 1, 8, 3)), "its box has no width or no height"),
        (voc_object(box=(99, 99, 120, 130)), "its box lies outside the image"),
    ],
)
def test_an_object_that_means_nothing_is_passed_over_and_told(tmp_path, wrong, reason):
    good = [voc_object(box=(1, 1, 9 + number, 9)) for number in range(10)]
    with pytest.warns(DataWarning, match=rf"1 of 11 annotations passed over, of each {reason}: b\.xml, object 11"):
        data = open_evaluation(voc_folder(tmp_path, *good, wrong))
    assert len(data.target(0)) == 10


def test_sizes_in_place_of_corners_are_told_by_their_statistics(tmp_path):
    boxes = [voc_object(box=box) for box in ((20, 15, 8, 9), (30, 10, 5, 15), (12, 20, 20, 6), (3, 3, 9, 9))]
    with pytest.raises(
        DataError, match=r"75% of 4 boxes do not fit .* as xmin, ymin, xmax, ymax, and fit as x, y, width"
    ):
        open_evaluation(voc_folder(tmp_path, *boxes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation>", "could not be read as XML"),
        (b"", "could not be read as XML"),
        (b"<a>" * 40 + b"</a>" * 40, "more than 32 elements within one another"),
        (b'<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>', "it has a document type"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><a/>'.encode("utf-16"), "it has a document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "it has a document type"),
    ],
)
def test_a_file_that_is_damaged_or_hostile_is_refused_in_one_line(tmp_path, content, message):
    voc_folder(tmp_path, voc_object())
    (tmp_path / "Annotations/b.xml").write_bytes(content)
    with pytest.raises(DataError, match=rf"b\.xml: could not be read as XML .*{message}|b\.xml: {message}") as error:
        open_evaluation(tmp_path)
    assert "\n" not in str(error.value)


def test_masks_are_not_to_be_had(tmp_path):
    with pytest.raises(DataError, match="Pascal VOC's XML has boxes alone, and outlines are needed"):
        open_evaluation(voc_folder(tmp_path, voc_object()), masks=True)


def test_a_listed_name_without_a_file_is_refused(tmp_path):
    voc_folder(tmp_path, voc_object())
    (tmp_path / "ImageSets/Main/val.txt").write_text("b\nc\n")
    with pytest.raises(DataError, match=r"val\.txt: 1 of 2 are not in .*Annotations, such as c\.xml"):
        open_evaluation(tmp_path)
