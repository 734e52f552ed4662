import shutil

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from convattn.data.dataset import DataError
from convattn.data.folder import images_below, open_class_folders
from convattn.data.sources import open_data, open_evaluation
from tiny_runs import write_pictures


def test_order_is_that_of_torchvision(tmp_path):
    pictures = write_pictures(tmp_path, train=2)
    for name in ("Zebra", "ant", "10", "9"):
        (pictures / "train" / name / "deeper").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(pictures / "train" / name / "deeper" / "a.JPG")
    ours, theirs = open_data(pictures, "train"), ImageFolder(pictures / "train")
    assert list(ours.classes) == theirs.classes
    assert list(zip(ours.paths, ours.labels, strict=True)) == theirs.samples
    assert ours.read(0).mode == "RGB"
    assert ours.paths[-1:] == [theirs.samples[-1][0]]
    with pytest.raises(IndexError):
        ours.paths[len(ours)]


def test_labels_of_validation_follow_the_training_classes(tmp_path):
    pictures = write_pictures(tmp_path)
    shutil.rmtree(pictures / "val" / "bright")
    assert set(open_data(pictures, "val").labels) == {1}
    assert list(open_data(pictures, "val").classes) == ["bright", "dark"]


def test_a_class_present_only_in_validation_is_named(tmp_path):
    pictures = write_pictures(tmp_path)
    (pictures / "val" / "dark").rename(pictures / "val" / "night")
    with pytest.raises(
        DataError, match=r"val: class 'night' is here but not among the training classes; add it there or"
    ):
        open_data(pictures, "val")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], r"expected DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE \(or DIR/test/…\), or .* found an empty folder"),
        (["cats/1.jpg", "dogs/2.jpg"], r"no folder train; expected .*, found cats/, dogs/"),
        (["train/1.txt", "train/2.txt"], r"train: no class folders; expected .*, found 1.txt, 2.txt"),
        (["train/1.jpg", "train/2.jpg"], r"train: '1.jpg' lies in no class folder and its name begins with no synset"),
        (["train/a/1.jpg", "train/b/notes.txt"], r"train: no image in class 'b'; files ending in .jpg, .jpeg"),
    ],
)
def test_a_folder_of_another_layout_says_what_was_expected_and_found(tmp_path, made, message):
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, "train")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected DIR/train"):
        open_data(tmp_path / "nowhere", "train")


def test_without_validation_the_error_names_both_folders(tmp_path):
    pictures = write_pictures(tmp_path)
    shutil.rmtree(pictures / "val")
    with pytest.raises(DataError, match=r"no folder val or test; .* found train/"):
        open_data(pictures, "val")
    with pytest.raises(DataError, match=r"has train but neither val nor test"):
        open_evaluation(pictures)


def test_an_unknown_split_names_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"unknown split 'valid'; choose one of train, val, test"):
        open_data(tmp_path, "valid")


def test_class_folders_alone_serve_for_evaluation(tmp_path):
    pictures = write_pictures(tmp_path)
    assert open_evaluation(pictures).paths == open_evaluation(pictures / "val").paths


def test_links_that_lead_to_each_other_end(tmp_path):
    for name, other in (("cat", "dog"), ("dog", "cat")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(b"x")
        for number in range(2):
            (tmp_path / name / f"more{number}").symlink_to(tmp_path / other)
    assert list(images_below(tmp_path / "cat")) == ["cat.png", "more0/dog.png", "more1/dog.png"]


@pytest.mark.parametrize(
    ("name", "target", "others"),
    [
        ("feline", "cat", "class 'cat'"),
        ("tabby", "cat/tabby", "class 'cat'"),
        ("all", ".", "all the classes"),
        ("above", "..", "all the classes"),
        ("zoo", "elsewhere", "class 'away'"),
        ("zoo", "around", "class 'away'"),
        ("root", "/", "all the classes"),
    ],
)
def test_a_class_that_is_a_link_to_anothers_images_is_refused(tmp_path, name, target, others):
    """Each of them would be learnt as two classes."""
    away, folder = tmp_path / "around" / "away", tmp_path / "train"
    for place in (folder / "cat" / "tabby", folder / "dog", away):
        place.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(place / "0.png")
    (folder / "away").symlink_to(away)  # a class may lie elsewhere
    assert open_class_folders(folder).classes == ["away", "cat", "dog"]
    (folder / name).symlink_to({"elsewhere": away, "around": away.parent}.get(target, folder / target))
    with pytest.raises(DataError, match=rf"train: class '{name}' is a link to the images of {others}; remove it$"):
        open_class_folders(folder)
