import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.detection.rasterise import bitmap
from convattn.detection.sources import open_evaluation, open_training, recognises
from tiny_detection import HEIGHT, WIDTH, write_images, yolo_folder

BOX = "1 0.5 0.5 0.5 0.2\n"
OUTLINE = "0 0.25 0.2 0.75 0.2 0.75 0.6 0.25 0.6\n"


def test_a_box_is_its_centre_and_size_in_shares_of_the_image(tmp_path):
    data = open_evaluation(yolo_folder(tmp_path, [BOX]))
    assert data.classes == ("cat", "dog")
    found = data.target(0)
    assert found.labels.tolist() == [1]
    assert found.boxes_xyxy[0] == pytest.approx([10, 12, 30, 18])
    assert found.areas == pytest.approx([120])
    assert found.size == (HEIGHT, WIDTH)
    assert data.sizes.tolist() == [[HEIGHT, WIDTH]]


def test_an_outline_gives_the_box_too(tmp_path):
    root = yolo_folder(tmp_path, [OUTLINE])
    found = open_evaluation(root, masks=True).target(0)
    assert found.boxes_xyxy[0] == pytest.approx([10, 6, 30, 18])
    assert found.areas == pytest.approx([240])
    pixels = bitmap(found.outlines[0], found.size)
    assert pixels.sum() == 240
    assert pixels[6:18, 10:30].all()
    assert open_evaluation(root).target(0).outlines is None


def test_boxes_do_for_no_masks(tmp_path):
    with pytest.raises(DataError, match="1 of 1 annotations are not usable, more than 10%; of most it has no outline"):
        open_evaluation(yolo_folder(tmp_path, [BOX]), masks=True)


def test_images_without_a_text_file_or_with_an_empty_one_have_no_objects(tmp_path):
    root = yolo_folder(tmp_path, [BOX, "", None], splits=("val",))
    with pytest.warns(DataWarning, match=r"1 images have no text file, so no object: 2\.png"):
        data = open_evaluation(root)
    assert [len(data.target(at)) for at in range(3)] == [1, 0, 0]
    assert data.without_objects == [1, 2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2 0.5 0.5 0.2 0.2", "its class is no number from 0 to 1"),
        ("cat 0.5 0.5 0.2 0.2", "its class is no number from 0 to 1"),
        ("0 0.5 0.5 0.2", "its line has 4 words, and a box has 5, an outline 7"),
        ("0 0.5 0.5 0.2 0.2 0.9", "its line has a sixth number, as predictions have their score"),
        ("0 0.5 0.5 0.2 x", "its line holds something else than numbers"),
        ("0 0.5 0.5 0.2 nan", "its box is not finite"),
        ("0 0.5 0.5 0.2 0", "its box has no width or no height"),
        ("0 1.5 0.5 0.2 0.2", "its box lies outside the image"),
        ("0 0.1 0.1 0.2 0.1 9 0.2", "its outline leads far outside the image"),
        ("1 0.5 0.5 0.5 0.2", "it says again what another does"),
    ],
)
def test_a_line_that_means_nothing_is_passed_over_and_told(tmp_path, line, reason):
    good = "".join(f"1 0.5 0.5 0.5 0.{number}\n" for number in range(2, 10)) + "1 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.2 0.1\n"
    with pytest.warns(DataWarning, match=rf"1 of 11 annotations passed over, of each {reason}.*: 0\.txt, line 11"):
        data = open_evaluation(yolo_folder(tmp_path, [f"{good}{line}\n"]))
    assert len(data.target(0)) == 10


def test_pixels_in_place_of_shares_are_told(tmp_path):
    with pytest.raises(DataError, match="100% of 2 boxes are far greater than 1; this format has shares of the image"):
        open_evaluation(yolo_folder(tmp_path, ["0 20 15 10 10\n1 10 10 6 7\n"]))


def test_corners_in_place_of_centre_and_size_are_told(tmp_path):
    corners = "0 0.1 0.1 0.9 0.8\n0 0.05 0.2 0.5 0.7\n0 0.6 0.5 0.95 0.9\n0 0.2 0.3 0.4 0.5\n"
    with pytest.raises(
        DataError, match=r"do not fit .* as x, y of the centre, width, height, and fit as x1, y1, x2, y2"
    ):
        open_evaluation(yolo_folder(tmp_path, [corners]))


def test_text_files_without_an_image_are_told(tmp_path):
    root = yolo_folder(tmp_path, [BOX], splits=("val",))
    (root / "labels/val/7.txt").write_text(BOX)
    with pytest.warns(DataWarning, match=r"1 text files have no image and are passed over: 7\.txt"):
        assert len(open_evaluation(root)) == 1


def test_no_text_file_at_all_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"none of 1 images has a text file; that of .*0\.png would be .*labels/val/0\.txt"
    ):
        open_evaluation(yolo_folder(tmp_path, [None]))


def test_roboflows_paths_mean_the_folders_beside_the_file(tmp_path):
    for split in ("train", "valid"):
        write_images(tmp_path / split / "images", ["a.png"])
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels/a.txt").write_text(BOX)
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['cat', 'no']\n")
    with pytest.warns(DataWarning, match=r"is .*/images, since there is no .*\.\./.*/images"):
        train, validation = open_training(tmp_path)
    assert train.classes == ("cat", "no")  # which YAML would read as False
    assert validation.target(0).labels.tolist() == [1]


def test_path_is_where_the_other_paths_begin(tmp_path):
    yolo_folder(tmp_path / "here", [BOX])
    (tmp_path / "other").mkdir()
    file = tmp_path / "other/pets.yaml"
    file.write_text("path: ../here\ntrain: [images/train]\nval: images/val\nnames: [cat, dog]\n")
    assert [len(data) for data in open_training(file)] == [1, 1]
    file.write_text("path: /nowhere/here\ntrain: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(DataError, match="the train images are not there; looked for /nowhere/here/images/train, "):
        open_training(file)


def test_a_list_of_images_may_stand_for_a_folder(tmp_path):
    root = yolo_folder(tmp_path, [BOX, BOX, BOX])
    (root / "some.txt").write_text("./images/val/1.png\n\nimages/val/2.png\n")
    (root / "data.yaml").write_text("train: images/train\nval: some.txt\nnames: [cat, dog]\n")
    data = open_evaluation(root)
    assert [path.rpartition("/")[2] for path in data.paths] == ["1.png", "2.png"]
    assert len(data.target(1)) == 1


def test_a_list_of_names_does_without_a_description(tmp_path):
    root = yolo_folder(tmp_path, [BOX])
    (root / "data.yaml").unlink()
    assert not recognises(root)
    (root / "classes.txt").write_text("cat\ndog\n")
    assert recognises(root)
    assert open_training(root)[1].classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [\nnames: x\n", "could not be read as YAML"),
        ("train: images/train\nnames: 3\n", "names must be a list of the classes, or number: name"),
        ("train: images/train\nnames: []\n", "names must be a list of the classes"),
        ("train: images/train\nnames: [cat, cat]\n", "names must differ, and 'cat' stands twice"),
        ("train: images/train\nnames: {0: cat, 2: dog}\n", "names must number the classes 0 to 1, without a gap"),
        ("train: images/train\nnames: {a: cat}\n", "names must number the classes 0 to 0, without a gap"),
        ("train: images/train\nnc: 3\nnames: [cat, dog]\n", "nc 3 and 2 names; make them agree"),
        ("train: nowhere\nnames: [cat, dog]\n", "the train images are not there; looked for .*nowhere"),
        ("train:\nnames: [cat, dog]\n", "names no images; it needs train and val, folders of images"),
        ("path: [a]\ntrain: images/train\nnames: [cat, dog]\n", "path must be one folder"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_one_line(tmp_path, yaml, message):
    with pytest.raises(DataError, match=message) as error:
        open_training(yolo_folder(tmp_path, [BOX], yaml=yaml))
    assert "\n" not in str(error.value)


def test_a_description_cannot_run_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yaml = "train: images/train\nval: images/val\nnames: !!python/object/apply:os.system ['touch there', 'touch it']\n"
    assert open_evaluation(yolo_folder(tmp_path, [BOX], yaml=yaml)).classes == ("touch there", "touch it")
    assert not (tmp_path / "there").exists()


def test_two_descriptions_are_refused(tmp_path):
    root = yolo_folder(tmp_path, [BOX])
    (root / "more.yaml").write_text((root / "data.yaml").read_text())
    with pytest.raises(DataError, match=r"data\.yaml, .*more\.yaml could all be the description of the data"):
        open_training(root)
    assert len(open_training(root / "more.yaml")[0]) == 1
