import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.data.sources import open_data, open_evaluation, open_training
from tiny_archives import write_files, write_tar

TRAIN = ("train/cat/1.png", "train/dog/2.png")


def place(folder, kind, name):
    """One image of class `cat` as a folder, a list or an archive of this name."""
    if kind == "folder":
        write_files(folder, f"{name}/cat/here.png")
    elif kind == "list":
        write_files(folder, **{f"{name}_csv": "path,label\nhere.png,cat\n"})
    else:
        write_tar(folder / f"{name}.tar", [("all/cat/here.png", b"x")])


@pytest.mark.parametrize("kind", ["folder", "list", "archive"])
@pytest.mark.parametrize("name", ["valid", "validation", "dev", "Val", "VALIDATION"])
def test_validation_has_several_names_and_goes_before_test(tmp_path, kind, name):
    write_files(tmp_path, *TRAIN, "test/cat/9.png")
    place(tmp_path, kind, name)
    with pytest.warns(DataWarning, match=rf"the val images are those of {name}") as told:
        data = open_data(tmp_path, "val")
    assert (len(told), list(data.classes), list(data.labels)) == (1, ["cat", "dog"], [0])
    assert data.paths[0].endswith("/here.png")


@pytest.mark.parametrize("kind", ["folder", "list", "archive"])
def test_training_may_be_spelled_out(tmp_path, kind):
    place(tmp_path, kind, "Training")
    with pytest.warns(DataWarning, match=r"the train images are those of Training"):
        assert list(open_data(tmp_path, "train").classes) == ["cat"]


@pytest.mark.parametrize(
    "two",
    [
        (("folder", "val"), ("folder", "valid")),
        (("folder", "val"), ("archive", "val")),
        (("list", "val"), ("archive", "validation")),
        (("list", "dev"), ("list", "val")),
        (("archive", "photos-val-0"), ("archive", "photos-valid-0")),
    ],
)
def test_two_things_that_could_be_a_split_are_refused_by_name(tmp_path, two):
    write_files(tmp_path, *TRAIN)
    for kind, name in two:
        place(tmp_path, kind, name)
    with pytest.raises(DataError, match=rf"{two[0][1]}.*{two[1][1]}.* could all be the val images; leave one, or put"):
        open_data(tmp_path, "val")


def test_two_lists_of_a_split_are_refused(tmp_path):
    write_files(tmp_path, train_csv="path,label\na.png,cat\n", train_tsv="path\tlabel\na.png\tcat\n")
    with pytest.raises(DataError, match=r"train.csv, train.tsv could all be the train images"):
        open_data(tmp_path, "train")


def test_an_archive_belongs_to_one_split(tmp_path):
    write_tar(tmp_path / "photos_train_val.tar", [("cat/1.png", b"x")])
    with pytest.raises(DataError, match=r"photos_train_val.tar: could be the train or the val images by its name"):
        open_data(tmp_path, "train")


def test_a_folder_goes_before_archives_that_only_contain_the_word(tmp_path):
    write_files(tmp_path, *TRAIN)
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", [("fox/1.png", b"x")])
    with pytest.warns(
        DataWarning, match=r"train: holds the train images; ILSVRC2012_img_train.tar beside it is not read"
    ):
        assert list(open_data(tmp_path, "train").classes) == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["folder", "list", "archive"])
def test_test_images_select_a_model_only_with_a_word(tmp_path, kind):
    write_files(tmp_path, *TRAIN)
    place(tmp_path, kind, "test")
    with pytest.warns(
        DataWarning, match=r"no val, valid, validation or dev; test.* serves, so the best epoch is chosen"
    ):
        _, held_out = open_training(tmp_path)
    assert len(held_out) == len(open_evaluation(tmp_path)) == len(open_data(tmp_path, "test")) == 1


def test_validation_images_serve_as_test(tmp_path):
    assert open_data(write_files(tmp_path, *TRAIN, "val/cat/3.png"), "test").paths == [f"{tmp_path}/val/cat/3.png"]


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    data = open_evaluation(write_files(tmp_path, f"{name}/1.png", "apple/2.png"))
    assert list(data.classes) == ["apple", name]


@pytest.mark.parametrize("inside", ["{}", "batch{}/x"])
@pytest.mark.parametrize("stated", ["train/{}", "{}"])
def test_a_list_beside_a_folder_states_the_labels_of_its_images(tmp_path, inside, stated):
    names = [f"{inside.format(number)}{number}.png" for number in range(4)]
    rows = "".join(f"{stated.format(name)},{('cat', 'dog')[at % 2]}\n" for at, name in enumerate(names))
    write_files(tmp_path, *(f"train/{name}" for name in names), train_csv=f"path,label\n{rows}")
    with pytest.warns(DataWarning, match=r"train.csv: states the labels of the images in train/"):
        data = open_data(tmp_path, "train")
    assert (list(data.classes), list(data.labels)) == (["cat", "dog"], [0, 1, 0, 1])
    assert data.paths == [f"{tmp_path}/train/{name}" for name in names]


@pytest.mark.filterwarnings("ignore:.*states the labels:convattn.data.dataset.DataWarning")
def test_a_list_that_does_not_cover_its_folder_is_refused_naming_both(tmp_path):
    write_files(tmp_path, "train/a/1.png", "train/a/2.png", train_csv="path,label\na/1.png,cat\n")
    with pytest.raises(DataError, match=r"train.csv: no label for the image 'a/2.png' of .*/train; add one, or leave"):
        open_data(tmp_path, "train")
    write_files(tmp_path, train_csv="path,label\na/1.png,cat\na/2.png,dog\na/3.png,dog\n")
    with pytest.warns(DataWarning, match=r"1 rows name no image that is there, such as line 4, 'a/3.png'"):
        assert list(open_data(tmp_path, "train").labels) == [0, 1]


def test_a_list_among_flat_images_states_their_labels(tmp_path):
    write_files(tmp_path, "train/1.png", "train/2.png")
    write_files(tmp_path / "train", metadata_csv="file_name,label\n2.png,cat\n1.png,dog\n")
    with pytest.warns(DataWarning, match=r"metadata.csv: states the labels of the images beside it"):
        data = open_data(tmp_path, "train")
    assert (list(data.classes), list(data.labels)) == (["cat", "dog"], [1, 0])
    write_files(tmp_path / "train", more_csv="file_name,label\n")
    with pytest.raises(DataError, match=r"metadata.csv and more.csv could both state the labels; leave one"):
        open_data(tmp_path, "train")


def test_a_list_beside_class_folders_is_said_to_be_passed_over(tmp_path):
    write_files(tmp_path, *TRAIN)
    write_files(tmp_path / "train", metadata_csv="file_name,label\n")
    with pytest.warns(
        DataWarning, match=r"train: class folders state the labels; metadata.csv beside them is not read"
    ):
        assert list(open_data(tmp_path, "train").classes) == ["cat", "dog"]


def test_an_empty_folder_beside_a_list_is_nothing(tmp_path):
    write_files(tmp_path, "train/.gitkeep", train_csv="path,label\na.png,cat\n")
    assert open_data(tmp_path, "train").paths == [f"{tmp_path}/a.png"]


def test_a_list_that_is_named_itself_finds_the_folder_called_like_it(tmp_path):
    write_files(tmp_path, "train/1.png", "train/2.png", "val/3.png", val_csv="path,label\n3.png,cat\n")
    with pytest.warns(DataWarning, match=r"val.csv: its paths are those within .*/val/"):
        assert open_evaluation(tmp_path / "val.csv").paths == [f"{tmp_path}/val/3.png"]
    write_files(tmp_path, "3.png")
    assert open_evaluation(tmp_path / "val.csv").paths == [f"{tmp_path}/3.png"]


@pytest.mark.parametrize("others", [("sample/9.png",), ("devkit/readme.txt",), ("test/9.png", "sample/9.png")])
def test_flat_splits_are_no_classes_whatever_lies_beside(tmp_path, others):
    texts = {"train_csv": "path,label\n1.png,cat\n2.png,dog\n", "val_csv": "path,label\n3.png,dog\n"}
    write_files(tmp_path, "train/1.png", "train/2.png", "val/3.png", *others, **texts)
    with pytest.warns(DataWarning, match=r"val.csv: states the labels of the images in val/"):
        data = open_evaluation(tmp_path, classes=["cat", "dog"])
    assert (data.paths, list(data.labels)) == ([f"{tmp_path}/val/3.png"], [1])


def test_what_else_could_be_validation_images_is_named_where_test_serves(tmp_path):
    write_files(tmp_path, *TRAIN, "test/cat/3.png", "holdout/cat/4.png")
    with pytest.warns(DataWarning, match=r"test serves, .*; not read: holdout/"):
        open_data(tmp_path, "val")


def test_splits_in_one_archive_are_no_classes(tmp_path):
    names = ("pets/train/cat/1.png", "pets/train/dog/2.png", "pets/val/cat/3.png")
    archive = write_tar(tmp_path / "pets.tar", [(name, b"x") for name in names])
    with pytest.raises(DataError, match=r"pets.tar: its folders train and val are splits, not classes; make an arch"):
        open_evaluation(archive)
