import json

import numpy as np
import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.detection import coco
from convattn.detection.rasterise import bitmap
from convattn.detection.sources import open_evaluation, open_training, recognises
from tiny_detection import CATEGORIES, HEIGHT, WIDTH, coco_folder, coco_image, coco_object, write_coco, write_images

SQUARE = [[4, 5, 14, 5, 14, 13, 4, 13]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [4 * HEIGHT + 5, 8, HEIGHT * WIDTH - 4 * HEIGHT - 13]}


def opened(tmp_path, annotations, *, masks=False, **others):
    """The validation images of a folder that has these annotations."""
    return open_evaluation(coco_folder(tmp_path, val=annotations, **others), masks=masks)


def test_ids_without_an_order_become_labels_in_order_of_the_ids(tmp_path):
    data = opened(tmp_path, [coco_object(1, category=7), coco_object(2, category=3, bbox=(0, 0, 5, 6))])
    assert data.classes == ("cat", "dog")
    assert data.category_ids == (3, 7)
    assert data.image_ids == [1, 2]
    found = data.target(0)
    assert found.labels.tolist() == [1, 0]
    assert found.boxes_xyxy.tolist() == [[4, 5, 14, 13], [0, 0, 5, 6]]
    assert found.areas.tolist() == [80, 30]
    assert found.size == (HEIGHT, WIDTH)


def test_an_image_without_objects_is_kept(tmp_path):
    data = opened(tmp_path, [coco_object(1, image=2), coco_object(2, image=1, iscrowd=1)])
    assert len(data) == 2
    assert data.target(0).crowd.tolist() == [True]
    assert data.without_objects == [0]  # crowds alone are nothing to learn
    assert data.part([1]).without_objects == []
    assert len(data.part([1]).target(0)) == 1


@pytest.mark.parametrize("outline", [SQUARE, RUNS, RUNS | {"counts": "m38[Q1"}], ids=["polygon", "runs", "text"])
def test_an_outline_is_the_pixels_that_it_says(tmp_path, outline):
    found = opened(tmp_path, [coco_object(1, segmentation=outline)], masks=True).target(0)
    pixels = bitmap(found.outlines[0], found.size)
    want = np.zeros((HEIGHT, WIDTH), np.uint8)
    want[5:13, 4 : 5 if isinstance(outline, dict) else 14] = 1
    assert np.array_equal(pixels, want)


def test_an_object_without_a_bbox_has_that_of_its_outline(tmp_path):
    bare = coco_object(1, segmentation=SQUARE) | {"bbox": []}
    del bare["area"]
    found = opened(tmp_path, [bare], masks=True).target(0)
    assert found.boxes_xyxy.tolist() == [[4, 5, 14, 13]]
    assert found.areas.tolist() == [80]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (coco_object(9, bbox=(4, float("nan"), 5, 5)), "its box is not finite"),
        (coco_object(9, bbox=(4, 5, 10**400, 5)), "its box is not finite"),
        (coco_object(9, bbox=(4, 5, 0, 5)), "its box has no width or no height"),
        (coco_object(9, bbox=(4, 5, 5, -5)), "its box has no width or no height"),
        (coco_object(9, bbox=(WIDTH, 5, 5, 5)), "its box lies outside the image"),
        (coco_object(9) | {"bbox": [1, 2, 3]}, "its bbox is not four numbers"),
        (coco_object(9) | {"bbox": None}, "it has no bbox"),
        (coco_object(9, category=99), "its category_id is that of no category"),
        (coco_object(9, category=[3]), "its category_id is that of no category"),
        (coco_object(9, image=99), "its image_id is that of no image"),
        (coco_object(1, bbox=(0, 0, 9, 9)), "it says again what another does"),
        ("an object", "it is no object of JSON"),
    ],
)
def test_what_is_invalid_is_passed_over_and_told(tmp_path, annotation, reason):
    good = [coco_object(number, bbox=(0, 0, 9, 9 + number)) for number in range(11)]
    with pytest.warns(
        DataWarning, match=rf"1 of 12 annotations passed over, of each {reason}: annotations\[11\]"
    ) as told:
        data = opened(tmp_path, [*good, annotation])
    assert len(data.target(0)) == 11
    assert data.problems == tuple(str(one.message) for one in told)


@pytest.mark.parametrize(
    ("outline", "reason"),
    [
        (None, "it has no outline"),
        ([[4, 5, 14, 5]], "its outline has fewer than three corners"),
        ([[4, 5, 14, 5, 14]], "its outline is no list of x and y in turn"),
        ([[4, 5, 14, 5, 1e12, 13]], "its outline leads far outside the image"),
        ([[4, 5, 14, 5, float("nan"), 13]], "its outline leads far outside the image"),
        ([["x", 5, 14, 5, 14, 13]], "its outline holds something else than numbers"),
        (7, "its outline is no list of polygons"),
        (RUNS | {"size": [WIDTH, HEIGHT]}, f"its RLE is of {HEIGHT} × {WIDTH} pixels, and its image has 40 × 30"),
        (RUNS | {"size": None}, "its RLE is of no pixels"),
        (RUNS | {"counts": [5, 8]}, "its RLE covers other pixels than the 40 × 30"),
        (RUNS | {"counts": [-5, 1205]}, "its RLE covers other pixels than the 40 × 30"),
        (RUNS | {"counts": [1200.5]}, "its RLE is damaged"),
        (RUNS | {"counts": "m38[Q"}, "its RLE is damaged"),
        (RUNS | {"counts": "m3é"}, "its RLE is damaged"),
        ({"size": [HEIGHT, WIDTH]}, "its RLE has no counts"),
    ],
)
def test_an_outline_that_means_nothing_is_passed_over_and_told(tmp_path, outline, reason):
    good = [coco_object(number, bbox=(0, 0, 9, 9 + number), segmentation=SQUARE) for number in range(11)]
    with pytest.warns(DataWarning, match=reason):
        data = opened(tmp_path, [*good, coco_object(12, segmentation=outline)], masks=True)
    assert len(data.target(0)) == 11


def test_many_invalid_annotations_are_refused(tmp_path):
    wrong = [coco_object(number, bbox=(0, 0, 9, 0)) for number in range(2)]
    good = [coco_object(number, bbox=(0, 0, 9, 9 + number)) for number in range(11)]
    with pytest.raises(
        DataError, match=r"2 of 13 annotations are not usable, more than 10%; of most its box has no width"
    ):
        opened(tmp_path, [*good, *wrong])


def test_a_box_over_the_border_is_told_and_kept_as_it_is(tmp_path):
    with pytest.warns(DataWarning, match=r"1 boxes reach over the border .* annotations\[0\] \(id 1\)"):
        data = opened(tmp_path, [coco_object(1, bbox=(30, 20, 20, 9)), coco_object(2, bbox=(31, 20, 9.5, 9))])
    assert data.target(0).boxes_xyxy.tolist() == [[30, 20, 50, 29], [31, 20, 40.5, 29]]


def test_corners_in_place_of_sizes_are_told_by_their_statistics(tmp_path):
    boxes = [(5, 5, 38, 28), (20, 10, 30, 20), (1, 2, 5, 9), (22, 18, 39, 29)]
    with pytest.raises(
        DataError, match=r"75% of 4 boxes do not fit .* as x, y, width, height, and fit as x1, y1, x2, y2"
    ):
        opened(tmp_path, [coco_object(at, bbox=box) for at, box in enumerate(boxes)])


def test_shares_in_place_of_pixels_are_told(tmp_path):
    with pytest.raises(DataError, match="boxes lie between 0 and 1; this format has pixels, not shares of the image"):
        opened(tmp_path, [coco_object(at, bbox=(0.1, 0.2, 0.5, 0.1 * at + 0.1)) for at in range(3)])


def test_an_image_that_is_not_there_is_left_out_if_it_is_one_of_many(tmp_path):
    images = [coco_image(number) for number in range(1, 121)]
    file = write_coco(tmp_path / "val.json", [coco_object(1, image=120)], images, pictures=tmp_path / "images")
    (tmp_path / "images/7.png").unlink()
    with pytest.warns(DataWarning, match=r"1 of 120 images are not there: .*7\.png; they are left out"):
        data = open_evaluation(file)
    assert len(data) == 119
    assert data.image_ids[-1] == 120
    assert len(data.target(118)) == 1
    (tmp_path / "images/9.png").unlink()
    with pytest.raises(DataError, match="more than 1% may not be missing"):
        open_evaluation(file)


def test_images_that_are_nowhere_are_refused(tmp_path):
    file = write_coco(tmp_path / "annotations/instances_val.json", [coco_object(1)])
    with pytest.raises(DataError, match=r"its images are not there, such as 1\.png; looked in"):
        open_evaluation(file)


def test_sizes_that_are_not_the_files_are_refused(tmp_path):
    coco_folder(tmp_path)
    write_images(tmp_path / "val2017", ["1.png", "2.png"], (HEIGHT, WIDTH))
    with pytest.raises(
        DataError, match="30 × 40 pixels, and its annotations are for 40 × 30; the photograph is turned"
    ):
        open_evaluation(tmp_path)


def test_one_size_that_is_not_the_files_is_told_when_it_is_read(tmp_path):
    data = opened(tmp_path, [coco_object(1)])
    write_images(tmp_path / "val2017", ["1.png"], (20, 20))
    data.read(0)
    with pytest.raises(ImageError, match=r"1\.png: 20 × 20 pixels, and its annotations are for 40 × 30"):
        data.target(0)


def test_sizes_that_are_not_stated_are_those_of_the_files(tmp_path):
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}]
    data = opened(tmp_path, [coco_object(1)], images=images)
    assert data.sizes.tolist() == [[HEIGHT, WIDTH]] * 2
    assert data.target(0).size == (HEIGHT, WIDTH)


def test_two_files_for_one_split_are_refused(tmp_path):
    coco_folder(tmp_path)
    write_coco(tmp_path / "annotations/instances_val.json", [])
    with pytest.raises(
        DataError, match=r"instances_val\.json, .*instances_val2017\.json could all be the annotations of val"
    ):
        open_training(tmp_path)
    assert recognises(tmp_path)


def test_captions_and_keypoints_beside_are_not_looked_at(tmp_path):
    coco_folder(tmp_path)
    write_coco(tmp_path / "annotations/captions_val2017.json", [])
    assert len(open_training(tmp_path)[1]) == 2


@pytest.mark.parametrize(
    ("file", "pictures"),
    [
        ("annotations/instances_val2017.json", "images/val2017"),
        ("annotations/instances_val.json", "val"),
        ("annotations/val.json", "images"),
        ("valid/_annotations.coco.json", "valid"),
        ("val/labels.json", "val/data"),
        ("val.json", "images/val"),
        ("val.json", "val/images"),
    ],
)
def test_pictures_are_found_in_each_layout(tmp_path, file, pictures):
    write_coco(tmp_path / file, [coco_object(1)], pictures=tmp_path / pictures)
    assert recognises(tmp_path)
    data = open_evaluation(tmp_path)
    assert data.read(0).size == (WIDTH, HEIGHT)
    assert len(data.target(0)) == 1


def test_a_class_that_stands_above_all_others_and_has_no_object_is_none(tmp_path):
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    with pytest.warns(DataWarning, match="category 0, 'animals', is above all others and has no object: no class"):
        data = opened(tmp_path, [coco_object(1, category=2)], categories=categories)
    assert data.classes == ("cat", "dog")
    assert data.target(0).labels.tolist() == [1]


def test_classes_are_those_of_the_same_name_in_each_split(tmp_path):
    coco_folder(tmp_path, train=[coco_object(1, category=7)])
    other = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    write_coco(tmp_path / "annotations/instances_val2017.json", [coco_object(1, category=1)], categories=other)
    train, validation = open_training(tmp_path)
    assert train.classes == validation.classes == ("cat", "dog")
    assert train.target(0).labels.tolist() == validation.target(0).labels.tolist() == [1]
    assert (train.category_ids, validation.category_ids) == ((3, 7), (2, 1))


def test_a_class_that_the_model_does_not_know_is_refused_only_if_it_has_objects(tmp_path):
    coco_folder(tmp_path, val=[coco_object(1, category=7)])
    assert open_evaluation(tmp_path, classes=["fox", "dog"]).target(0).labels.tolist() == [1]
    with pytest.raises(DataError, match="objects of 'dog', and the classes are cat, fox; rename or remove them"):
        open_evaluation(tmp_path, classes=["cat", "fox"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "could not be read as JSON"),
        (b"[" * 100_000, "could not be read as JSON"),
        (b"[]", "holds list, not an object with images and annotations"),
        (b'{"images": [], "annotations": {}}', "has no list 'annotations'"),
        (b'{"images": [], "annotations": [], "categories": []}', "names no category"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"categories\[0\] needs an id"),
        (b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "lists no image"),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category 1 is 'a' and 'b'",
        ),
    ],
)
def test_a_file_that_is_none_of_coco_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "instances_val.json"
    file.write_bytes(content)
    layout = coco.CocoLayout({"val": file}, tmp_path)
    with pytest.raises(DataError, match=message) as error:
        layout.read("val", layout.classes(["val"]), masks=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([coco_image(1), coco_image(1, file_name="2.png")], r"images\[1\] has the id 1 of images\[0\]"),
        ([coco_image(1), coco_image(2, file_name="1.png")], r"images\[1\] has the file_name 1\.png of images\[0\]"),
        ([coco_image(1, width="40")], "width 40 of 1.png must be a whole number"),
        ([coco_image(1, width=10**9)], "is said to have 1000000000 × 30 pixels"),
        ([coco_image(1, file_name="")], r"images\[0\] needs an id and a file_name"),
        (["1.png"], r"images\[0\] needs an id and a file_name"),
    ],
)
def test_images_that_make_no_sense_are_refused(tmp_path, images, message):
    write_images(tmp_path / "images", ["1.png", "2.png"])
    file = write_coco(tmp_path / "val.json", [coco_object(1)], images)
    with pytest.raises(DataError, match=message):
        open_evaluation(file)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    coco_folder(tmp_path)
    monkeypatch.setattr(coco, "LARGEST", 100)
    with pytest.raises(DataError, match="bytes, more than the limit of 100; cut it up"):
        open_evaluation(tmp_path)


def test_nothing_of_the_users_is_changed(tmp_path):
    coco_folder(tmp_path, val=[coco_object(1, segmentation=SQUARE)])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    open_evaluation(tmp_path, masks=True).target(0)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_with_a_mark_at_its_beginning_is_read(tmp_path):
    file = write_coco(tmp_path / "val.json", [coco_object(1)], pictures=tmp_path / "images")
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(json.loads(file.read_text())).encode())
    assert open_evaluation(file).classes == tuple(one["name"] for one in reversed(CATEGORIES))
