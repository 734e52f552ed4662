import os

import pytest
from PIL import Image

from convattn.data.dataset import DataError, DataWarning
from convattn.data.file_names import image_suffixes, is_image_name, is_unread_name
from convattn.data.images import FORMATS
from convattn.data.sources import open_data, open_unlabelled
from tiny_archives import write_files, write_tar

SERVICE = [
    "._1.jpg",
    ".ipynb_checkpoints/1.jpg",
    ".git/objects/1.jpg",
    "__MACOSX/cat/._1.jpg",
    "@eaDir/1.jpg/thumb.jpg",
    "$RECYCLE.BIN/1.jpg",
    "lost+found/1.jpg",
    "System Volume Information/1.jpg",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
]


@pytest.mark.parametrize("depth", ["", "cat/"])
@pytest.mark.parametrize("packed", [False, True])
def test_hidden_and_service_files_are_no_classes_and_no_images(tmp_path, depth, packed):
    names = ["cat/1.jpg", "cat/deep/2.jpg", "dog/1.jpg", *(depth + name for name in SERVICE)]
    if packed:
        write_tar(tmp_path / "train.tar", [(f"./photos/{name}", b"x") for name in names])
        top = "train.tar/./photos"
    else:
        write_files(tmp_path / "train", *names)
        top = "train"
    data = open_data(tmp_path, "train")
    assert list(data.classes) == ["cat", "dog"]
    assert data.paths == [f"{tmp_path}/{top}/{name}" for name in names[:3]]
    write_files(tmp_path, "._train.tar", ".Trashes/train.tar")
    assert len(open_unlabelled(tmp_path)) == 3


def test_hidden_samples_of_shards_are_none(tmp_path):
    members = [
        ("._1.jpg", b"x"),
        ("._1.cls", b"x"),
        ("1.jpg", b"x"),
        ("1.cls", b"0"),
        (".old/2.jpg", b"x"),
        (".old/2.cls", b"7"),
    ]
    write_tar(tmp_path / "train.tar", members)
    assert [path.rpartition("/")[2] for path in open_data(tmp_path, "train").paths] == ["1.jpg"]


def test_what_counts_are_the_suffixes_of_the_formats_that_are_read():
    assert {"jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "avif", "tif", "bmp", "ppm"} <= image_suffixes()
    assert {Image.registered_extensions()[f".{suffix}"] for suffix in image_suffixes()} <= {*FORMATS, "MPO"}
    for name in ("a.JPG", "deep/b.x.JFIF"):
        assert is_image_name(name) and not is_unread_name(name)
    for name in ("a.heic", "a.EPS", "a.svg", "a.psd", "a.nef"):
        assert is_unread_name(name) and not is_image_name(name)
    for name in ("jpg", "folder.jpg/notes", "a.txt", "a.csv", "a.tar", "a.json", ".jpg", "a"):
        assert not is_image_name(name) and not is_unread_name(name)


@pytest.mark.parametrize("packed", [False, True])
def test_formats_that_are_not_read_are_counted(tmp_path, packed):
    names = ["cat/1.gif", "cat/2.heic", "dog/1.avif", "dog/3.HEIC", "dog/4.svg", "dog/notes.txt"]
    if packed:
        write_tar(tmp_path / "train.tar", [(name, b"x") for name in names])
    else:
        write_files(tmp_path / "train", *names)
    with pytest.warns(
        DataWarning, match=r"train.*: passed over, because .* reads no such format here: 2 .heic, 1 .svg$"
    ):
        assert len(open_data(tmp_path, "train")) == 2


def test_images_beside_class_folders_are_named(tmp_path):
    write_files(tmp_path, "train/cat/1.png", "train/loose.png")
    with pytest.warns(DataWarning, match=r"train: passed over beside the class folders: loose.png"):
        assert len(open_data(tmp_path, "train")) == 1


def test_links_that_lead_back_end(tmp_path):
    train = write_files(tmp_path, "train/cat/1.png", "train/dog/2.png") / "train"
    (train / "cat" / "up").symlink_to(train)
    (train / "cat" / "self").symlink_to("self")
    (train / "dog" / "more").symlink_to(train / "cat")  # another place is read
    names = [path.removeprefix(f"{train}/") for path in open_data(tmp_path, "train").paths]
    assert names[0] == "cat/1.png"
    assert "dog/more/1.png" in names
    assert len(names) < 5


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_files(tmp_path, "train/cat/1.png", "train/dog/2.png")
    scan = os.scandir

    def locked(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(DataError, match=r"cat: could not be read \(Permission denied\)"):
        open_data(tmp_path, "train")
