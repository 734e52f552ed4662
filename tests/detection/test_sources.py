import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.detection.sources import open_evaluation, open_training, recognises
from tiny_detection import coco_folder, coco_object, voc_file, voc_object, write_images, yolo_folder


def test_folders_of_other_tasks_are_not_recognised(tmp_path):
    write_images(tmp_path / "train/cat", ["a.png"])
    write_images(tmp_path / "images/train", ["a.png"])
    write_images(tmp_path / "masks/train", ["a.png"])
    (tmp_path / "labels.json").write_text('["cat", "dog"]')
    (tmp_path / "run.yaml").write_text("name: run\n")
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"no images with annotations of objects; expected .* found images/, labels\.json"
    ):
        open_training(tmp_path)


def test_the_name_of_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="the name of a data set is empty"):
        open_training("")
    with pytest.raises(DataError, match="no such file or folder"):
        open_training(tmp_path / "nowhere")


def test_two_formats_in_one_folder_are_refused(tmp_path):
    yolo_folder(coco_folder(tmp_path), ["0 0.5 0.5 0.1 0.1"])
    with pytest.raises(DataError, match=r"has annotations as COCO JSON .* and YOLO text files .*; name the file"):
        open_training(tmp_path)
    assert recognises(tmp_path)
    assert open_training(tmp_path / "data.yaml")[0].classes == ("cat", "dog")


def test_a_share_of_the_training_images_is_held_out(tmp_path):
    images = [f"{number}.png" for number in range(12)]
    write_images(tmp_path / "all", images)
    for number in range(12):
        voc_file(tmp_path / "all", str(number), *[voc_object(box=(2, 2, 9, 9))] * (number % 2))
    train, held_out = open_training(tmp_path / "all", validation="0.25", seed=3)
    assert (len(train), len(held_out)) == (9, 3)
    assert sorted((*train.paths, *held_out.paths)) == sorted(f"{tmp_path}/all/{name}" for name in images)
    for part in (train, held_out):
        numbers = [int(path.rpartition("/")[2].removesuffix(".png")) for path in part.paths]
        assert [len(part.target(at)) for at in range(len(part))] == [number % 2 for number in numbers]
        assert part.counts().sum() == sum(number % 2 for number in numbers)
    assert open_training(tmp_path / "all", validation="0.25", seed=3)[1].paths == held_out.paths


def test_validation_images_may_be_elsewhere_and_in_another_format(tmp_path):
    coco_folder(tmp_path / "one", train=[coco_object(1, category=7)])
    yolo_folder(
        tmp_path / "two", ["1 0.5 0.5 0.1 0.1"], yaml="train: images/train\nval: images/val\nnames: [bee, cat]\n"
    )
    train, validation = open_training(tmp_path / "one", validation=tmp_path / "two")
    assert train.classes == validation.classes == ("cat", "dog")
    assert validation.target(0).labels.tolist() == [0]


def test_test_images_serve_where_there_are_none_to_validate_on(tmp_path):
    root = coco_folder(tmp_path)
    (root / "annotations/instances_val2017.json").rename(root / "annotations/instances_test2017.json")
    (root / "val2017").rename(root / "test2017")
    with pytest.warns(DataWarning, match="no val, valid, validation or dev; test serves"):
        assert len(open_training(root)[1]) == 2


def test_training_images_alone_are_not_enough(tmp_path):
    root = coco_folder(tmp_path)
    (root / "annotations/instances_val2017.json").unlink()
    with pytest.raises(DataError, match="no validation images; put some into a split val, or hold some out"):
        open_training(root)
    with pytest.raises(DataError, match="has train alone, neither val nor test"):
        open_evaluation(root)
