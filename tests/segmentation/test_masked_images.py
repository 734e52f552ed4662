"""Images with masks as a run and an evaluation open them, and what is wrong with single ones."""

import shutil

import numpy as np
import pytest
from PIL import Image

from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.segmentation.masks import MissingMask, OtherSize, UnknownLabel
from convattn.segmentation.options import LabelOptions
from convattn.segmentation.sources import open_evaluation, open_training
from tiny_masks import COLOURS, NAMES, write_image, write_mask, write_masked, write_pair

PLAIN = LabelOptions()


@pytest.fixture
def data(tmp_path):
    return write_masked(tmp_path / "data")


@pytest.fixture
def quiet():
    """For tests in which it does not matter which file names the classes."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


def test_a_run_gets_both_splits_under_the_classes_that_a_file_names(data):
    with pytest.warns(DataWarning, match=r"data/classes.txt: names the 3 classes"):
        train, val = open_training(data, PLAIN)
    assert (len(train), len(val)) == (4, 2)
    assert train.classes == val.classes == NAMES
    assert [*train.paths] == [f"{data}/images/train/{at}.png" for at in range(4)]
    assert [*val.mask_paths] == [f"{data}/masks/val/{at}.png" for at in range(2)]
    for at, path in enumerate(train.mask_paths):
        picture, labels = train.read(at), train.target(at)
        assert (picture.mode, picture.size, labels.shape, labels.dtype) == ("RGB", (8, 6), (6, 8), np.uint8)
        assert np.array_equal(labels, np.asarray(Image.open(path)))
    assert np.array_equal(
        train.target(0), np.asarray(Image.open(train.mask_paths[0]))
    )  # without reading the image first


def test_a_named_file_goes_before_that_beside_the_data_and_others_there_are_told(data, tmp_path):
    (tmp_path / "named.txt").write_text("a 0 0 0\nb 1 1 1\nc 2 2 2\n")
    train, _ = open_training(data, LabelOptions(classes=str(tmp_path / "named.txt")))
    assert (train.classes, train.colours) == (("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    (data / "class_dict.csv").write_text("name\nx\ny\n")
    with pytest.warns(DataWarning, match=r"classes.txt: names the 3 classes; class_dict.csv beside it not read"):
        open_training(data, PLAIN)


def test_without_a_file_the_numbers_in_masks_of_both_splits_are_classes(data):
    (data / "classes.txt").unlink()
    write_mask(data / "masks" / "val" / "0.png", np.full((6, 8), 9))
    with pytest.warns(DataWarning, match=r"so they are the 4 numbers in masks: 0, 1, 2, 9"):
        train, val = open_training(data, PLAIN)
    assert train.classes == val.classes == ("0", "1", "2", "9")
    assert (val.target(0) == 3).all()
    write_mask(data / "masks" / "val" / "0.png", np.full((6, 8), 7))  # what has changed is read again
    with pytest.warns(DataWarning, match=r"numbers in masks: 0, 1, 2, 7"):
        open_training(data, PLAIN)


def test_masks_of_colours_with_a_file_of_these(tmp_path):
    data = write_masked(tmp_path)
    for mask in data.glob("masks/*/*.png"):
        write_mask(mask, np.array(COLOURS, dtype=np.uint8)[np.asarray(Image.open(mask))])
    with pytest.raises(DataError, match=r"classes.txt"), pytest.warns(DataWarning):
        open_training(data, PLAIN)  # without colours
    lines = (f"{name} {' '.join(map(str, colour))}" for name, colour in zip(NAMES, COLOURS, strict=True))
    (data / "classes.txt").write_text("\n".join(lines))
    with pytest.warns(DataWarning, match="names the 3 classes"):
        train, _ = open_training(data, PLAIN)
    assert train.colours == COLOURS
    assert set(np.unique(train.target(0)).tolist()) == {0, 1, 2}


def test_masks_of_colours_without_a_file_are_refused_before_a_run(data):
    (data / "classes.txt").unlink()
    for mask in data.glob("masks/*/*.png"):
        write_mask(mask, np.array(COLOURS, dtype=np.uint8)[np.asarray(Image.open(mask))])
    with pytest.raises(
        DataError, match=r"0.png: an RGB mask \(.*\), and no colours of classes are known; write a line"
    ):
        open_training(data, PLAIN)


@pytest.mark.usefixtures("quiet")
def test_what_is_wrong_with_most_masks_is_told_before_a_run(data):
    (data / "classes.txt").write_text("sky\ntree\n")
    with pytest.raises(DataError, match=r"masks/train/0.png: label 2 in \d+ pixels, and the 2 classes are 0 to 1; set"):
        open_training(data, PLAIN)
    train, _ = open_training(data, LabelOptions(ignore_index=2))
    assert set(np.unique(train.target(0)).tolist()) == {0, 1, 255}


@pytest.mark.usefixtures("quiet")
def test_what_is_wrong_with_one_mask_is_an_error_of_its_image(data):
    write_mask(data / "masks" / "train" / "1.png", np.full((6, 8), 4))
    write_mask(data / "masks" / "train" / "2.png", np.zeros((8, 6)))
    train, _ = open_training(data, PLAIN)
    assert len(train) == 4
    with pytest.raises(
        UnknownLabel, match=r"^.*masks/train/1.png: label 4 in 48 pixels, and the 3 classes are 0 to 2; "
    ):
        train.target(1)
    for first in (True, False):  # whether the image is read before or not
        if first:
            train.read(2)
        else:
            train.read(0)
        with pytest.raises(OtherSize) as error:
            train.target(2)
        assert str(error.value) == (
            f"{data}/masks/train/2.png: 6 × 8 pixels, and its image {data}/images/train/2.png has 8 × 6; is the "
            "photograph turned by its EXIF entry, and its mask is not?"
        )
    write_mask(data / "masks" / "train" / "2.png", np.zeros((3, 4)))
    with pytest.raises(
        OtherSize, match=r"2.png: 4 × 3 pixels, and its image .* has 8 × 6; make them equal, without smoo"
    ):
        train.target(2)
    assert issubclass(OtherSize, ImageError)  # so that it is set aside by name


@pytest.mark.usefixtures("quiet")
def test_a_photograph_turned_by_its_exif_needs_an_upright_mask(data):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(data / "images" / "train" / "0.png", exif=exif)  # 6 × 8 in the file, seen as 8 × 6
    train, _ = open_training(data, PLAIN)
    assert train.target(0).shape == (6, 8)
    assert train.read(0).size == (8, 6)


@pytest.mark.usefixtures("quiet")
def test_a_single_missing_mask_is_an_error_of_its_image_and_many_of_the_data(tmp_path):
    data = write_masked(tmp_path, train=120)
    (data / "masks" / "train" / "7.png").unlink()
    train, _ = open_training(data, PLAIN)
    at = [*train.paths].index(f"{data}/images/train/7.png")
    with pytest.raises(MissingMask, match=r"images/train/7.png: no mask in .*masks/train$"):
        train.target(at)
    (data / "masks" / "train" / "8.png").unlink()
    with pytest.raises(DataError) as error:
        open_training(data, PLAIN)
    assert str(error.value) == (
        f"{data}/images/train: 2 of 120 images have no mask in {data}/masks/train, more than 1%, such as 7.png, 8.png; "
        "add these or move the images elsewhere"
    )


def test_masks_without_an_image_are_told(data):
    write_mask(data / "masks" / "val" / "more.png", np.zeros((6, 8)))
    with pytest.warns(DataWarning) as told:
        open_training(data, PLAIN)
    lines = [str(one.message) for one in told]
    assert f"{data}/masks/val: 1 without an image in {data}/images/val, passed over: more.png" in lines


@pytest.mark.usefixtures("quiet")
def test_validation_may_be_held_out_lie_elsewhere_or_be_the_test_images(data, tmp_path):
    shutil.move(data / "images" / "val", data / "images" / "test")
    shutil.move(data / "masks" / "val", data / "masks" / "test")
    with pytest.warns(DataWarning, match=r"no val, valid, validation or dev; test serves"):
        _, val = open_training(data, PLAIN)
    assert len(val) == 2
    train, held = open_training(data, PLAIN, validation="0.25", seed=1)
    assert (len(train), len(held)) == (3, 1)
    assert not {*train.paths} & {*held.paths}
    for path, mask in zip((*train.paths, *held.paths), (*train.mask_paths, *held.mask_paths), strict=True):
        assert path.rpartition("/")[2] == mask.rpartition("/")[2]
    assert [*open_training(data, PLAIN, validation="0.25", seed=1)[1].paths] == [*held.paths]
    drawn = {open_training(data, PLAIN, validation="0.25", seed=seed)[1].paths[0] for seed in range(8)}
    assert len(drawn) > 1
    elsewhere = write_masked(tmp_path / "elsewhere", train=1)
    (elsewhere / "classes.txt").write_text("road\nsky\ntree\n")  # in another order
    train, val = open_training(data, PLAIN, validation=str(elsewhere))
    assert (len(val), val.classes) == (2, NAMES)
    numbers = np.asarray(Image.open(elsewhere / "masks" / "val" / "0.png"))
    assert np.array_equal(val.target(0), np.array([2, 0, 1], dtype=np.uint8)[numbers])


@pytest.mark.usefixtures("quiet")
def test_flat_folders_are_cut_by_a_share(tmp_path):
    for at in range(5):
        write_pair(tmp_path / "images" / f"{at}.png", tmp_path / "masks" / f"{at}.png", seed=at)
    with pytest.raises(DataError, match=r"no validation images; .* or hold some out: --data.validation 0.2"):
        open_training(tmp_path, PLAIN)
    train, val = open_training(tmp_path, PLAIN, validation="0.2")
    assert (len(train), len(val)) == (4, 1)
    shutil.copy(tmp_path / "images" / "0.png", tmp_path / "images" / "copy.png")
    shutil.copy(tmp_path / "masks" / "0.png", tmp_path / "masks" / "copy.png")
    for seed in range(6):
        _, val = open_training(tmp_path, PLAIN, validation="0.2", seed=seed)
        names = {path.rpartition("/")[2] for path in val.paths}
        assert len(names & {"0.png", "copy.png"}) in (0, 2)


def test_a_split_without_masks_is_told_where_they_are_expected(data):
    shutil.rmtree(data / "masks" / "val")
    with pytest.raises(DataError, match=r"data: the val images have no masks; expected them in .*data/masks/val"):
        open_training(data, PLAIN)


@pytest.mark.usefixtures("quiet")
def test_an_evaluation_follows_the_classes_of_a_model_by_name(data):
    assert len(open_evaluation(data, PLAIN)) == 2
    other = open_evaluation(data, PLAIN, classes=("road", "car", "tree", "sky"), colours=((1, 1, 1),) * 4)
    assert other.classes == ("road", "car", "tree", "sky")
    assert other.colours == ((1, 1, 1),) * 4
    own = open_evaluation(data, PLAIN)
    assert np.array_equal(other.target(0), np.array([3, 2, 0], dtype=np.uint8)[own.target(0)])
    with pytest.raises(DataError, match=r"class 'tree', 'road' is here but not among the training classes"):
        open_evaluation(data, PLAIN, classes=("sky", "car"))
    (data / "classes.txt").unlink()
    unnamed = open_evaluation(data, PLAIN, classes=NAMES)  # numbers are places
    assert np.array_equal(unnamed.target(0), own.target(0))


def test_all_pixels_ignored_count_for_nothing(data):
    write_mask(data / "masks" / "train" / "1.png", np.full((6, 8), 255))
    with pytest.warns(DataWarning, match="names the 3 classes"):
        train, _ = open_training(data, PLAIN)
    assert (train.target(1) == 255).all()


@pytest.mark.usefixtures("quiet")
def test_images_that_cannot_be_read_are_told_when_they_are(data):
    (data / "images" / "train" / "1.png").write_bytes(b"")
    train, _ = open_training(data, PLAIN)
    for call in (train.read, train.target):
        with pytest.raises(ImageError, match=r"images/train/1.png: the file is empty"):
            call(1)


def test_a_list_of_pairs_is_opened_like_folders(tmp_path):
    for at in range(3):
        write_image(tmp_path / f"{at}.png", seed=at)
        write_mask(tmp_path / f"{at}_m.png", np.arange(48).reshape(6, 8) % 3)
    rows = [f"{at}.png,{at}_m.png,{'val' if at == 2 else 'train'}" for at in range(3)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask,split", *rows]))
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    with pytest.warns(DataWarning, match="names the 3 classes"):
        train, val = open_training(tmp_path / "pairs.csv", PLAIN)
    assert (len(train), len(val), train.classes) == (2, 1, NAMES)
    assert train.target(1).shape == (6, 8)
