import numpy as np
import pytest
import scipy.io
from PIL import Image

from convattn.data.dataset import DataError
from convattn.data.sources import open_data, open_evaluation
from tiny_archives import files_in, write_tar
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
            r"labels.txt: 'ILSVRC2012_val_00000002' stands alone on its line; write IM",
        ),
        ("0\n1\n5\n", r"labels.txt: label 5 must be between 0 and 2, for 3 classes"),
    ],
)
def test_a_label_file_that_does_not_fit_says_where(flat, tmp_path, text, message):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_evaluation(flat, labels=tmp_path / "labels.txt", classes=["n01", "n02", "n03"])
    with pytest.raises(DataError, match=r"gone.txt: could not be read as a label file"):
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
