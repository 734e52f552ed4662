import shutil

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from convattn.data.dataset import DataError
from convattn.data.folder import open_class_folders, open_folder
from tiny_runs import write_pictures


def test_order_is_that_of_torchvision(tmp_path):
    pictures = write_pictures(tmp_path, train=2)
    for name in ("Zebra", "ant", "10", "9"):
        (pictures / "train" / name / "deeper").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(pictures / "train" / name / "deeper" / "a.JPG")
    ours, theirs = open_folder(pictures, "train"), ImageFolder(pictures / "train")
    assert list(ours.classes) == theirs.classes
    assert list(zip(ours.paths, ours.labels, strict=True)) == theirs.samples
    assert ours.read(0).mode == "RGB"


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_val_or_test_serves_as_validation(tmp_path, held_out):
    pictures = write_pictures(tmp_path, held_out=held_out)
    for split in ("val", "test"):
        assert len(open_folder(pictures, split)) == 8
    assert held_out in open_folder(pictures, "val").paths[0]


def test_labels_of_validation_follow_the_training_classes(tmp_path):
    pictures = write_pictures(tmp_path)
    shutil.rmtree(pictures / "val" / "bright")
    assert set(open_folder(pictures, "val").labels) == {1}
    assert list(open_folder(pictures, "val").classes) == ["bright", "dark"]


def test_a_class_present_only_in_validation_is_named(tmp_path):
    pictures = write_pictures(tmp_path)
    (pictures / "val" / "dark").rename(pictures / "val" / "night")
    with pytest.raises(
        DataError, match=r"val: class 'night' is here but not among the training classes; add it to train"
    ):
        open_folder(pictures, "val")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], r"expected DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE \(or DIR/test/…\), found an empty folder"),
        (["cats/1.jpg", "dogs/2.jpg"], r"no folder train; expected .*, found cats/, dogs/"),
        (["train/1.jpg", "train/2.jpg"], r"train: no class folders; expected .*, found 1.jpg, 2.jpg"),
        (["train/a/1.jpg", "train/b/notes.txt"], r"train: no image in class 'b'; files ending in .jpg, .jpeg"),
    ],
)
def test_a_folder_of_another_layout_says_what_was_expected_and_found(tmp_path, made, message):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path, "train")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected DIR/train"):
        open_folder(tmp_path / "nowhere", "train")


def test_without_validation_the_error_names_both_folders(tmp_path):
    pictures = write_pictures(tmp_path)
    shutil.rmtree(pictures / "val")
    with pytest.raises(DataError, match=r"no folder val or test; .* found train/"):
        open_folder(pictures, "val")
    with pytest.raises(DataError, match=r"has train but neither val nor test"):
        open_class_folders(pictures)


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"unknown split 'valid'; choose one of train, val, test"):
        open_folder(tmp_path, "valid")


def test_class_folders_alone_serve_for_evaluation(tmp_path):
    pictures = write_pictures(tmp_path)
    assert open_class_folders(pictures).paths == open_class_folders(pictures / "val").paths
