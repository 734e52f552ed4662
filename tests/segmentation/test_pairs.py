"""Layouts of images and masks, by names alone."""

from pathlib import Path

import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.rooms import kind_of_data
from convattn.segmentation.pairs import find_layout
from convattn.segmentation.sources import layout_of, recognises


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder):
    """split -> {image: mask}, within the folder."""
    layout = find_layout(folder)
    cut = len(str(folder if folder.is_dir() else folder.parent)) + 1
    pairs = {split: layout.pairs(split) for split in layout.places}
    return {
        split: {image[cut:]: mask[cut:] for image, mask in zip(each.images, each.masks, strict=True)}
        for split, each in pairs.items()
    }


ADE20K = (
    "images/training/a.jpg",
    "annotations/training/a.png",
    "images/validation/b.jpg",
    "annotations/validation/b.png",
)
CAMVID = ("images/train/a.jpg", "annotations/train/a.png", "images/val/b.jpg", "annotations/val/b.png")
COCO_STUFF = (
    "images/train2017/a.jpg", "annotations/train2017/a_labelTrainIds.png", "images/val2017/b.jpg",
    "annotations/val2017/b_labelTrainIds.png",
)  # fmt: skip
CITYSCAPES = (
    "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png", "gtFine/train/ulm/ulm_0_gtFine_labelTrainIds.png",
    "leftImg8bit/val/bonn/bonn_0_leftImg8bit.png", "gtFine/val/bonn/bonn_0_gtFine_labelTrainIds.png",
)  # fmt: skip
SPLITS_FIRST = ("train/images/a.jpg", "train/masks/a.png", "valid/images/b.jpg", "valid/masks/b.png")
KAGGLE = ("train/a.png", "train_labels/a_L.png", "val/b.png", "val_labels/b_L.png")
SEGNET = ("train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png")


@pytest.mark.parametrize("names", [ADE20K, CAMVID, COCO_STUFF, CITYSCAPES, SPLITS_FIRST, KAGGLE, SEGNET])
def test_layouts_are_recognised(tmp_path, names):
    touch(tmp_path, *names)
    assert found(tmp_path) == {"train": {names[0]: names[1]}, "val": {names[2]: names[3]}}
    assert kind_of_data(tmp_path) == "segmentation"


@pytest.mark.parametrize("masks", ["annotations", "masks", "labels", "Ground_Truth", "SegmentationClass"])
def test_folders_of_masks_have_one_of_several_names(tmp_path, masks):
    touch(tmp_path, "images/test/a.jpg", f"{masks}/test/a.png")
    assert found(tmp_path) == {"test": {"images/test/a.jpg": f"{masks}/test/a.png"}}


def test_without_splits_it_is_one(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/deeper/b.jpg", "masks/a.png", "masks/deeper/b.png")
    assert found(tmp_path) == {"all": {"images/a.jpg": "masks/a.png", "images/deeper/b.jpg": "masks/deeper/b.png"}}


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat/a.jpg", "train/dog/b.jpg", "val/cat/c.jpg"),  # class folders
        ("cat/a.jpg", "dog/b.jpg"),
        ("images/train/a.jpg", "labels/train/a.txt", "images/val/b.jpg", "labels/val/b.txt"),  # YOLO
        ("images/a.jpg", "annotations/instances.json"),  # COCO
        ("train/a.jpg", "train/_annotations.coco.json"),
        ("train.csv", "val.csv", "train/a.jpg"),
        ("a.jpg",),
        (),
    ],
)
def test_data_of_other_tasks_are_not(tmp_path, names):
    touch(tmp_path, *names)
    for file in tmp_path.glob("*.csv"):
        file.write_text("path,label\na.jpg,cat\n")
    assert not recognises(tmp_path)
    assert kind_of_data(tmp_path) == "classification"
    with pytest.raises(
        DataError, match=r": no images beside masks; expected DIR/images/train/X.jpg and DIR/masks/train/X"
    ):
        layout_of(tmp_path)


@pytest.mark.parametrize("source", ["digits", "nowhere", "", "pipe:cat a.tar", "train-{00..10}.tar"])
def test_names_of_other_sources_are_not(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not recognises(source)
    with pytest.raises(DataError, match=r"no such folder|is empty"):
        layout_of(source)


def test_of_several_endings_the_one_that_fits_most_is_taken_and_told(tmp_path):
    for split in ("train", "val"):
        for at in (1, 2):
            touch(
                tmp_path,
                f"images/{split}/{at}.jpg",
                *(f"masks/{split}/{at}{end}.png" for end in ("_labelIds", "_color")),
            )
    layout = find_layout(tmp_path)
    pairs = layout.pairs("train")
    assert [Path(mask).name for mask in pairs.masks] == ["1_labelIds.png", "2_labelIds.png"]
    with pytest.warns(DataWarning) as told:
        pairs.tell()
    (line,) = [str(one.message) for one in told]
    assert line == (
        f"{tmp_path}/masks/train: masks are called like their images with '_labelIds' behind; 2 other files "
        "there are not read"
    )


def test_images_without_a_mask_stay_and_masks_without_an_image_are_told(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/b.png", "masks/c.png", "masks/d.png")
    pairs = find_layout(tmp_path).pairs("all")
    assert (pairs.lacking, [*pairs.strays]) == ([0], ["c.png", "d.png"])
    with pytest.warns(DataWarning, match=r"masks: 2 without an image in .*images, passed over: c.png, d.png"):
        pairs.tell()


def test_names_are_compared_in_one_normal_form(tmp_path):
    touch(tmp_path, "images/caf\u00e9.jpg", "masks/cafe\u0301.png")
    assert find_layout(tmp_path).pairs("all").lacking == []


def test_splits_that_have_no_masks_are_known(tmp_path):
    touch(tmp_path, *CAMVID, "images/test/c.jpg")
    layout = find_layout(tmp_path)
    assert ("test" in layout, layout.unmasked) == (False, {"test": tmp_path / "annotations" / "test"})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("images/a.jpg", "masks/a.png", "labels/a.png"),
            r": labels/, masks/ could all be the masks; leave one, or rename",
        ),
        (("images/a.jpg", "imgs/a.jpg", "masks/a.png"), r": images/, imgs/ could all be the images; leave one"),
        (("images/training/a.jpg", "images/train2017/a.jpg", "masks/train2017/a.png"), r"could all be the train files"),
        (("images/train/a.jpg", "masks/a.png"), r": images/ has train/ and masks/ has none of these; cut both alike"),
        (("images/a.jpg", "images/a.png", "masks/a.png"), r"images: a.jpg and a.png differ in their suffix alone, and"),
        (("images/a.jpg", "masks/a.gif", "masks/a.png"), r"masks: a.gif and a.png differ in their suffix alone"),
        (
            ("images/a.jpg", "images/b.jpg", "masks/x1.png"),
            r"images: none of 2 images has a mask in .*masks; masks are called like their images: a.png for a.jpg, and "
            r"there is x1.png",
        ),
    ],
)
def test_what_could_mean_two_things_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    assert recognises(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        layout_of(tmp_path).pairs("all")
    assert "\n" not in str(error.value)


def test_a_list_names_images_masks_and_splits(tmp_path):
    touch(tmp_path, "a.jpg", "m/a.png")
    (tmp_path / "pairs.csv").write_text(
        "image,mask,split\na.jpg,m/a.png,train\nb.jpg,m/b.png,Validation\nc.jpg,,train\n"
    )
    want = {"train": {"a.jpg": "m/a.png", "c.jpg": ""}, "val": {"b.jpg": "m/b.png"}}
    assert found(tmp_path / "pairs.csv") == want
    assert found(tmp_path) == want  # the only list of the folder
    assert kind_of_data(tmp_path / "pairs.csv") == "segmentation"


def test_lists_may_be_one_a_split_or_have_none(tmp_path):
    (tmp_path / "train.csv").write_text("file_name;annotation\na.jpg;a.png\n")
    (tmp_path / "val.tsv").write_text("image\tmask\nb.jpg\tb.png\n")
    assert found(tmp_path) == {"train": {"a.jpg": "a.png"}, "val": {"b.jpg": "b.png"}}
    (tmp_path / "alone.csv").write_text("image,mask\na.jpg,a.png\n")
    assert found(tmp_path / "alone.csv") == {"all": {"a.jpg": "a.png"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mask\na.jpg,a.png\na.jpg,b.png\n", r"p.csv, line 3: .*a.jpg stands in line 2 already; leave one"),
        ("image,mask,split\na.jpg,a.png,tain\n", r"p.csv, line 2: split 'tain' is unknown; write train, val or test"),
        ("image,mask,split\na.jpg,a.png,train\nb.jpg,b.png,\n", r"p.csv, line 3: no split, and other rows have one"),
        ("image,mask\n,a.png\n", r"p.csv, line 2: no path; every row needs one"),
        ("image,mask\n", r"p.csv: no image"),
        ("image,mask\na.jpg,\n", r"p.csv: none of 1 images has a mask"),
    ],
)
def test_rows_that_cannot_be_understood_are_named(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    assert recognises(tmp_path / "p.csv")
    with pytest.raises(DataError, match=message):
        layout_of(tmp_path / "p.csv").pairs("all")


def test_two_lists_of_a_folder_are_refused(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("image,mask\na.jpg,a.png\n")
    with pytest.raises(DataError, match=r"a.csv, b.csv could all be the list of images and masks; leave one"):
        layout_of(tmp_path)
