import os

import numpy as np
import pytest
import scipy.io
from PIL import Image

from convattn.data.dataset import DataError, DataWarning
from convattn.data.sources import open_data, open_evaluation
from tiny_archives import files_in, write_files, write_tar
from tiny_runs import write_pictures

IMAGES = [f"ILSVRC2012_val_0000000{number}" for number in (1, 2, 3)]


@pytest.fixture
def flat(tmp_path):
    """A folder of three pictures without classes."""
    (tmp_path / "flat").mkdir()
    for name in IMAGES:
        Image.new("RGB", (4, 4)).save(tmp_path / "flat" / f"{name}.JPEG")
    return tmp_path / "flat"


@pytest.mark.parametrize(
    "text",
    [
        "n02\nn01\nn02\n",
        "".join(f"{name}.JPEG {label}\n" for name, label in zip(IMAGES[::-1], ("n02", "n01", "n02"), strict=True)),
        "".join(f"val/{name}.JPEG\t{label}\n" for name, label in zip(IMAGES, ("n02", "n01", "n02"), strict=True)),
        "ImageId,PredictionString\n"
        + "".join(f"{name},{label} 1 2 3 4\n" for name, label in zip(IMAGES, ("n02", "n01", "n02"), strict=True)),
    ],
)
def test_labels_by_line_or_by_name(flat, tmp_path, text):
    (tmp_path / "labels.txt").write_text(text)
    data = open_evaluation(flat, labels=tmp_path / "labels.txt")
    assert (list(data.classes), list(data.labels)) == (["n01", "n02"], [1, 0, 1])
    assert data.paths == [f"{flat}/{name}.JPEG" for name in IMAGES]
    assert data.read(2).size == (4, 4)


def test_numbers_count_in_the_order_of_the_classes(flat, tmp_path):
    (tmp_path / "val.txt").write_text(
        "".join(f"{name}.JPEG {number}\n" for name, number in zip(IMAGES, (1, 0, 2), strict=True))
    )
    assert list(open_evaluation(flat, labels=tmp_path / "val.txt").classes) == ["0", "1", "2"]
    named = open_evaluation(flat, labels=tmp_path / "val.txt", classes=["cat", "dog", "fox"])
    assert (list(named.classes), list(named.labels)) == (["cat", "dog", "fox"], [1, 0, 2])


def write_devkit(folder):
    """The table of ImageNet's devkit: leaves first, numbered in another order than that of their synsets."""
    rows = [(1, "n09", 0), (2, "n01", 0), (3, "n05", 0), (4, "n00", 3)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    scipy.io.savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)[:, None]})


def test_imagenets_ground_truth_needs_the_devkits_table(flat, tmp_path):
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("3\n1\n2\n")
    with pytest.raises(DataError, match=r"no meta.mat beside ImageNet's ground truth, .* copy it from the devkit"):
        open_evaluation(flat, labels=truth)
    write_devkit(tmp_path)
    data = open_evaluation(flat, labels=truth)
    assert [data.classes[label] for label in data.labels] == ["n05", "n09", "n01"]
    truth.write_text("3\n1\n4\n")
    with pytest.raises(DataError, match=r"label 4 is none of meta.mat's 3 classes"):
        open_evaluation(flat, labels=truth)


def test_training_folders_with_a_flat_validation_folder(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", val=1)
    files = files_in(pictures / "val")
    write_tar(tmp_path / "val.tar", [(f"{at}.png", content) for at, (_, content) in enumerate(files)])
    (tmp_path / "labels.txt").write_text("dark\nbright\n")
    for given in (dict(validation=tmp_path / "val.tar", validation_labels=tmp_path / "labels.txt"),):
        data = open_data(pictures, "val", **given)
        assert (list(data.classes), list(data.labels)) == (["bright", "dark"], [1, 0])
        assert data.read_bytes(0) == files[0][1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01\nn02\n", r"labels.txt: 2 labels for 3 images; a line for each is needed"),
        (
            f"{IMAGES[0]} n01\n{IMAGES[1]} n01\nother n02\n",
            r"labels.txt: no label for the image 'ILSVRC2012_val_00000003",
        ),
        (
            f"{IMAGES[0]} n01\n{IMAGES[1]}\n",
            r"labels.txt, line 2: 'ILSVRC2012_val_00000002' stands alone on its line; write IM",
        ),
        ("0\n1\n5\n", r"labels.txt: label 5 must be between 0 and 2, for 3 classes \(line 3\)"),
    ],
)
def test_a_label_file_that_does_not_fit_says_where(flat, tmp_path, text, message):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_evaluation(flat, labels=tmp_path / "labels.txt", classes=["n01", "n02", "n03"])
    with pytest.raises(DataError, match=r"gone.txt: could not be read as a list of labels"):
        open_evaluation(flat, labels=tmp_path / "gone.txt")


def test_a_flat_folder_says_what_it_needs(flat):
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000001.JPEG' lies in no class folder .* name a label file"):
        open_evaluation(flat)


def test_synsets_in_file_names_are_labels(tmp_path):
    names = ["n02123045_tabby.JPEG", "n01440764_tench.JPEG", "n01440764-2.png"]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    data = open_evaluation(tmp_path)
    assert (list(data.classes), list(data.labels)) == (["n01440764", "n02123045"], [0, 0, 1])
    archive = write_tar(tmp_path / "photos.tar", [(name, (tmp_path / name).read_bytes()) for name in names])
    packed = open_evaluation(archive)
    assert (list(packed.classes), list(packed.labels)) == (data.classes, list(data.labels))


def labelled(folder, text, *images, **options):
    """The class of each image of a folder of these, by a label file of this text."""
    write_files(folder / "images", *images, content=b"x")
    (folder / "labels.txt").write_text(text, encoding=options.pop("encoding", "utf-8"))
    data = open_evaluation(folder / "images", labels=folder / "labels.txt", **options)
    return {
        path.removeprefix(f"{folder}/images/"): data.classes[label]
        for path, label in zip(data.paths, data.labels, strict=True)
    }


TWO = ("x/1.png", "y/1.png")


@pytest.mark.parametrize(
    "text",
    [
        "x/1.png cat\ny/1.png dog\n",
        "y/1.png dog\n./x/1.png cat\n",
        "images/x/1.png cat\nimages/y/1.png dog\n",
        "/elsewhere/x/1.png cat\n/elsewhere/y/1.png dog\n",
        "x/1 cat\ny/1 dog\n",
        "x\\1.png,cat\ny\\1.png,dog\n",
        "path;label\nx/1.png;cat\ny/1.png;dog\n",
        "z/1.png fox\nx/1.png cat\ny/1.png dog\n",
    ],
)
def test_images_of_equal_names_are_told_apart_by_their_folders(tmp_path, text):
    if "z/" in text:
        with pytest.raises(DataError, match=r"labels.txt, line 1: 'z/1.png' could be x/1.png or y/1.png"):
            labelled(tmp_path, text, *TWO)
    else:
        assert labelled(tmp_path, text, *TWO) == {"x/1.png": "cat", "y/1.png": "dog"}


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("1.png cat\n", TWO, r"line 1: '1.png' could be x/1.png or y/1.png; write the path within the images' folder"),
        ("a cat\n", ("a.png", "a.jpg"), r"line 1: 'a' could be a.jpg or a.png; write .* with its suffix"),
        (
            "x/1.png cat\ny/1.png dog\n",
            ("1.png",),
            r"line 2: the image '1.png' has the label 'dog', and 'cat' by line 1",
        ),
        ("a.png cat\na.png dog\n", ("a.png",), r"line 2: the image 'a.png' has the label 'dog', and 'cat' by line 1"),
        ("a.png 0 1\n", ("a.png",), r"line 1: '0 1' could be one class, or a class and more; labels are single"),
        ("a.png boeing 737\n", ("a.png",), r"line 1: 'boeing 737' could be one class, or a class and more"),
        ("a,n01 1 2 3 4 n02 1 2 3 4\n", ("a.png",), r"line 1: 'n01 1 .*; labels are single"),
        ("a.png,cat,dog\n", ("a.png",), r"labels.txt, line 1: more than IMAGE and CLASS; labels are single"),
        ("id,width,breed\na.png,30,cat\n", ("a.png",), r"line 1: more than IMAGE and CLASS; .* name the columns path"),
        ("filename, cat, dog, emu\na.png, 1, 0, 0\n", ("a.png",), r"line 1: more than IMAGE and CLASS"),
        (
            "cat\ndog\n",
            TWO,
            r"labels.txt: has a label a line, and images of equal names have no order; write IMAGE CLASS",
        ),
        ("99999999999999999999\n", ("a.png",), r"labels.txt: label 99999999999999999999 is above .* \(line 1\)"),
    ],
)
def test_what_could_mean_two_images_or_classes_is_refused_with_its_line(tmp_path, text, images, message):
    with pytest.raises(DataError, match=message):
        labelled(tmp_path, text, *images)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("a.png polar bear\nb c.png fox\n", "polar bear,fox"),
        ("a.png\tpolar bear\nb c.png\tfox 2\n", "polar bear,fox 2"),
        ('"a.png";"bear; polar"\n"b c.png";fox\n', "bear; polar,fox"),
        ("polar bear\n\nfox\n", "polar bear,fox"),
        ("0.0\n1.0\n", "0,1"),
        ("ImageId,PredictionString\na,n01 1 2 3 4 n01 5 6 7 8\nb c,n02 1 2 3 4\n", "n01,n02"),
        ("path,label,class\na.png,1,fox\nb c.png,0,polar bear\n", "fox,polar bear"),
    ],
)
def test_label_files_are_read_as_people_write_them(tmp_path, text, classes):
    for encoding in ("utf-8-sig", "utf-16"):
        found = labelled(tmp_path, text, "a.png", "b c.png", encoding=encoding)
        assert found == dict(zip(("a.png", "b c.png"), classes.split(","), strict=True))


@pytest.mark.parametrize(
    ("text", "images", "told"),
    [
        (
            "cat\ncat\ndog\n",
            ("img1.png", "img2.png", "img10.png"),
            r"img10.png is number 2, which by its numbers img2.png",
        ),
        ("a.png cat\na.png cat\n", ("a.png",), r"1 rows say again what others do, such as line 2, 'a.png'"),
        ("a.png cat\nb.png dog\n", ("a.png",), r"1 rows name no image that is there, such as line 2, 'b.png'"),
    ],
)
def test_what_is_passed_over_or_guessed_is_told(tmp_path, text, images, told):
    with pytest.warns(DataWarning, match=told):
        assert set(labelled(tmp_path, text, *images).values()) <= {"cat", "dog"}


def test_a_damaged_table_of_the_devkit_is_named(flat, tmp_path):
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("3\n1\n2\n")
    for content in (b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"x" * 1000):
        (tmp_path / "meta.mat").write_bytes(content)
        with pytest.raises(DataError, match=r"meta.mat: could not be read as the devkit's table of classes \("):
            open_evaluation(flat, labels=truth)


def test_only_imagenets_own_ground_truth_counts_by_the_devkit(flat, tmp_path):
    truth = tmp_path / "ground_truth.csv"
    truth.write_text("path,label\n" + "".join(f"{name},{at}\n" for at, name in enumerate(IMAGES)))
    assert list(open_evaluation(flat, labels=truth, classes=["a", "b", "c"]).labels) == [0, 1, 2]


@pytest.mark.parametrize("text", ["sep=;\nlabel;filename\ncat;a.png\n", "sep=,\na.png,cat\n"])
def test_excels_own_first_line_is_no_label(tmp_path, text):
    assert labelled(tmp_path, text, "a.png") == {"a.png": "cat"}


def test_numbers_that_may_count_from_one_are_told(tmp_path):
    with pytest.warns(DataWarning, match=r"no label is 0, .* counted from 0: 1 is 'dog'; subtract 1 if"):
        assert labelled(tmp_path, "a.png 1\n", "a.png", classes=["cat", "dog"]) == {"a.png": "dog"}


@pytest.mark.parametrize("name", ["labels.txt", "labels.csv", "labels.parquet"])
def test_a_pipe_is_no_label_file_and_is_not_waited_for(flat, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: a pipe or a device, not a list of labels"):
        open_evaluation(flat, labels=tmp_path / name)
