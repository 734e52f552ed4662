import os
import pickle
import tarfile
from collections import Counter
from contextlib import nullcontext

import pytest
import torch

from convattn.data import tar_cache, tars
from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.data.loader import Samples, evaluation_loader
from convattn.data.sources import open_data, open_evaluation, open_unlabelled
from convattn.data.tar_cache import Member
from convattn.data.transforms import PictureAlone
from tiny_archives import add, files_in, pack_splits, write_files, write_tar
from tiny_runs import write_pictures


def same_images(first, second):
    assert (list(first.classes), list(first.labels)) == (list(second.classes), list(second.labels))
    assert [first.read(at).tobytes() for at in range(len(first))] == [
        second.read(at).tobytes() for at in range(len(second))
    ]


@pytest.mark.parametrize("prefix", ["", "./", "ILSVRC/", "data/all/"])
def test_an_archive_gives_the_same_images_in_the_same_order_as_its_folder(tmp_path, prefix):
    pictures = write_pictures(tmp_path / "pictures")
    packed = pack_splits(pictures, tmp_path / "packed", prefix)
    for split in ("train", "val"):
        same_images(open_data(packed, split), open_data(pictures, split))
    same_images(open_evaluation(packed), open_data(pictures, "val"))
    assert open_data(packed, "val").paths[0] == f"{packed}/val.tar/{prefix}bright/000.png"


def test_an_archive_a_class_and_archives_within_an_archive(tmp_path):
    pictures = write_pictures(tmp_path / "pictures")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    inner = []
    for name in ("bright", "dark"):
        path = write_tar(tmp_path / "flat" / "train" / f"{name}.tar", files_in(pictures / "train" / name))
        inner.append((path.name, path.read_bytes()))
    same_images(open_data(tmp_path / "flat", "train"), open_data(pictures, "train"))
    (tmp_path / "nested").mkdir()
    write_tar(tmp_path / "nested" / "ILSVRC2012_img_train.tar", inner)
    nested = open_data(tmp_path / "nested", "train")
    same_images(nested, open_data(pictures, "train"))
    assert nested.paths[0].endswith("ILSVRC2012_img_train.tar/bright.tar/000.png")


def names_of(data):
    return [path.partition(".tar/")[2] for path in data.paths]


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "data/all/"])
@pytest.mark.parametrize("archives", [1, 2])
def test_images_beside_the_class_folders_are_passed_over_as_on_disk(tmp_path, prefix, archives):
    files = [*files_in(write_pictures(tmp_path / "pictures", train=2) / "train"), ("loose.png", b"x")]
    for name, content in files:
        write_files(tmp_path / "folder" / "train", name, content=content)
    for number in range(archives):
        part = [(prefix + name, content) for name, content in files[number::archives]]
        write_tar(tmp_path / "packed" / f"train-{number}.tar", part)
    told = r"passed over beside the class folders: [\w./]*loose.png; only what lies in one has a class"
    with pytest.warns(DataWarning, match=told):
        packed = open_data(tmp_path / "packed", "train")
    with pytest.warns(DataWarning, match=told):
        plain = open_data(tmp_path / "folder", "train")
    assert (list(packed.classes), list(packed.labels)) == (list(plain.classes), list(plain.labels))
    assert [prefix + path.partition("/train/")[2] for path in plain.paths] == names_of(packed)


@pytest.mark.parametrize(
    ("known", "labels", "told"),
    [
        (None, {"a": 2, "b": 1}, True),
        (["a", "b", "c"], {"a": 2, "b": 1}, True),
        (["cat", "dog"], {"cat": 4}, False),
    ],
)
def test_a_folder_that_holds_images_and_folders_is_a_class_where_it_is_known_as_one(tmp_path, known, labels, told):
    write_tar(tmp_path / "val.tar", [(f"cat/{name}.png", b"x") for name in ("a/1", "a/2", "b/3", "4")])
    with pytest.warns(DataWarning, match=r"beside the class folders: cat/4.png") if told else nullcontext():
        data = open_evaluation(tmp_path / "val.tar", classes=known)
    assert Counter(data.classes[label] for label in data.labels) == labels


@pytest.mark.parametrize("names", ["night/1 night/2", "night/1 night/old/2", "all/night/1"])
def test_an_unknown_class_alone_is_named(tmp_path, names):
    write_tar(tmp_path / "val.tar", [(f"{name}.png", b"x") for name in names.split()])
    with pytest.raises(DataError, match=r"val.tar: class 'night' is here but not among the training classes"):
        open_evaluation(tmp_path / "val.tar", classes=["cat", "dog"])


def test_archives_of_a_class_each_may_have_folders_besides(tmp_path):
    write_tar(tmp_path / "train" / "cat.tar", [("1.png", b"x"), ("old/2.png", b"x")])
    write_tar(tmp_path / "train" / "dog.tar", [("1.png", b"x")])
    data = open_data(tmp_path, "train")
    assert (list(data.classes), list(data.labels)) == (["cat", "dog"], [0, 0, 1])


def test_of_files_of_one_name_the_last_counts_as_when_they_are_unpacked(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        add(archive, "a/1.png", b"old")
        add(archive, "b/2.png", b"x")
        add(archive, "b/2.png", b"", type=tarfile.LNKTYPE, linkname="b/2.png")  # GNU tar, of a file named to it twice
        add(archive, "./a/1.png", b"newer")
        add(archive, "a/1.png", b"newest")
    told = r"train.tar: 2 files are followed by others of the same name, which count instead as .*, such as a/1.png"
    with pytest.warns(DataWarning, match=told):
        data = open_data(tmp_path, "train")
    assert (list(data.labels), [data.read_bytes(at) for at in (0, 1)]) == ([0, 1], [b"newest", b"x"])
    (tmp_path / "labels.txt").write_text("1.png cat\n2.png dog\n")
    with pytest.warns(DataWarning, match=told):
        assert len(open_evaluation(tmp_path / "train.tar", labels=tmp_path / "labels.txt")) == 2
    with pytest.warns(DataWarning, match=told):
        assert len(open_unlabelled(tmp_path / "train.tar")) == 2


@pytest.mark.parametrize("missing", [0, 1])
def test_an_image_that_its_inner_archive_cuts_short_is_set_aside(tmp_path, missing):
    pictures = write_pictures(tmp_path / "pictures")
    cut = write_tar(tmp_path / "bright.tar", files_in(pictures / "train" / "bright"))
    with tarfile.open(cut) as archive:
        last = archive.getmembers()[-1]
    content = cut.read_bytes()[: last.offset_data + last.size - missing]
    whole = write_tar(tmp_path / "dark.tar", files_in(pictures / "train" / "dark")).read_bytes()
    (tmp_path / "nested").mkdir()
    write_tar(tmp_path / "nested" / "train.tar", [("bright.tar", content), ("dark.tar", whole)])
    data, folder = open_data(tmp_path / "nested", "train"), open_data(pictures, "train")
    assert [path.rpartition("/")[2] for path in data.paths] == [path.rpartition("/")[2] for path in folder.paths]
    read = [at for at in range(len(data)) if not missing or not data.paths[at].endswith("/bright.tar/011.png")]
    assert len(read) == len(folder) - missing
    assert all(data.read_bytes(at) == folder.read_bytes(at) for at in read)
    if missing:
        with pytest.raises(ImageError, match=r"bright.tar/011.png: cut short"):
            data.read_bytes(11)


def test_a_class_that_only_the_validation_archive_has_is_named(tmp_path):
    packed = pack_splits(write_pictures(tmp_path / "pictures"), tmp_path / "packed")
    write_tar(packed / "val.tar", [("night/1.png", b"x"), ("dark/1.png", b"x")])
    with pytest.raises(DataError, match=r"val.tar: class 'night' is here but not among the training classes"):
        open_data(packed, "val")


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_and_copies_read_the_same_bytes(tmp_path, workers):
    packed = pack_splits(write_pictures(tmp_path / "pictures"), tmp_path / "packed")
    data = open_data(packed, "train")
    data.read(0)  # before the workers are forked

    def digest(image):
        return torch.tensor(list(image.tobytes()))

    loaded = [batch.images for batch in evaluation_loader(Samples(data, PictureAlone(digest)), 1, workers=workers)]
    copy = pickle.loads(pickle.dumps(data))
    assert len(loaded) == 24
    for at, image in enumerate(loaded):
        assert torch.equal(image[0], digest(copy.read(at)))


def test_what_is_not_to_be_trusted_in_an_archive_is_set_aside_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_BYTES", 1000)
    good = files_in(write_pictures(tmp_path / "pictures") / "val")
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        for name, content in good:
            add(archive, name, content)
        add(archive, "../dark/out.png")
        add(archive, "/etc/dark/absolute.png")
        add(archive, "dark/link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "dark/hard.png", b"", type=tarfile.LNKTYPE, linkname="dark/000.png")
        add(archive, "dark/device.png", b"", type=tarfile.CHRTYPE)
        add(archive, "dark/bomb.png", bytes(1001))
        add(archive, "notes.txt", b"no image")
    data = open_evaluation(tmp_path / "val.tar")
    assert list(data.classes) == ["bright", "dark"]
    batches = list(evaluation_loader(Samples(data, PictureAlone(lambda image: torch.zeros(1))), 4))
    assert sum(len(batch) for batch in batches) == len(good)
    reasons = {path.rpartition("/")[2]: why for batch in batches for path, why in batch.unreadable.items()}
    assert {name: why.partition(f"{name}: ")[2] for name, why in reasons.items()} == {
        "out.png": "its name leads out of the archive",
        "absolute.png": "its name leads out of the archive",
        "link.png": "a link to '/etc/passwd', not a file",
        "hard.png": "a link to 'dark/000.png', not a file",
        "device.png": "not a plain file",
        "bomb.png": "1,001 bytes, more than the limit of 1,000 for an image",
    }


def test_a_damaged_or_compressed_archive_is_named(tmp_path):
    packed = pack_splits(write_pictures(tmp_path / "pictures"), tmp_path / "packed")
    whole = (packed / "train.tar").read_bytes()
    for kept in (1500, 2000):  # within an image, within a header
        (packed / "train.tar").write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"train.tar: damaged or cut short at byte 1,536 .* make the archive anew"):
            open_data(packed, "train")
    with tarfile.open(packed / "train.tar", "w:gz") as archive:
        add(archive, "a/1.png")
    with pytest.raises(DataError, match=r"train.tar: not a plain tar archive .* unpack a compressed one first"):
        open_data(packed, "train")


def test_a_size_that_leads_back_does_not_hang(tmp_path):
    header = bytearray(tarfile.TarInfo("a/1.png").tobuf())
    header[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")  # base 256, negative
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    first = tarfile.TarInfo("a/0.png").tobuf()
    (tmp_path / "train.tar").write_bytes(first + first + bytes(header) + bytes(1024))
    with pytest.raises(DataError, match=r"train.tar: damaged"):
        open_data(tmp_path, "train")


def test_an_archive_that_shrank_is_an_error_of_the_image(tmp_path):
    packed = pack_splits(write_pictures(tmp_path / "pictures"), tmp_path / "packed")
    data = open_data(packed, "val")
    (packed / "val.tar").write_bytes(b"")
    with pytest.raises(ImageError, match=r"val.tar/bright/000.png: the archive has become shorter"):
        data.read(0)
    (packed / "val.tar").unlink()
    with pytest.raises(ImageError, match=r"val.tar/bright/000.png: could not be read \(No such file"):
        data.read(0)


def test_an_empty_archive_says_what_counts(tmp_path):
    write_tar(tmp_path / "train.tar", [("readme.txt", b"")])
    with pytest.raises(DataError, match=r"train.tar: no image; files ending in .jpg"):
        open_data(tmp_path, "train")


def test_an_index_that_took_long_is_kept_until_an_archive_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = write_pictures(tmp_path / "pictures")
    packed = pack_splits(pictures, tmp_path / "packed")
    with tarfile.open(packed / "train.tar", "a") as archive:
        add(archive, "dark/link.png", b"", type=tarfile.SYMTYPE, linkname="x")
    quick = open_data(packed, "train")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(tars, "_LONG", 0)
    first = open_data(packed, "train")
    (kept,) = (tmp_path / "cache" / "convattn").iterdir()
    monkeypatch.setattr(tars, "_scan", None)  # cannot be called
    again = open_data(packed, "train")
    assert first.paths == again.paths == quick.paths
    assert (list(again.labels), list(again.classes)) == (list(quick.labels), quick.classes)
    for at in range(len(again) - 1):
        assert again.read_bytes(at) == quick.read_bytes(at)
    with pytest.raises(ImageError, match=r"dark/link.png: a link to 'x'"):
        again.read(len(again) - 1)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert open_data(packed, "train").paths == first.paths
    write_tar(packed / "train.tar", [("a/1.png", b"x"), ("b/2.png", b"x")])
    assert len(open_data(packed, "train")) == 2


def test_an_index_is_of_one_archive_and_of_what_was_looked_for_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = write_tar(tmp_path / "train.tar", [("a/1.png", b"x"), ("b/2.jxl", b"x")])
    members = [Member(0, "a/1.png", 512, 1, "")]
    tar_cache.save_index([packed], members)
    assert tar_cache.load_index([packed]) == members
    for name, value in (("image_suffixes", lambda: {".png", ".jxl"}), ("_FORM", 0)):
        with monkeypatch.context() as patch:  # as with another version of Pillow, or of convattn
            patch.setattr(tar_cache, name, value)
            assert tar_cache.load_index([packed]) is None
    assert tar_cache.load_index([packed]) == members
    os.utime(packed, ns=(0, 0))  # another archive of the same size
    assert tar_cache.load_index([packed]) is None


def test_an_index_that_cannot_be_kept_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tars, "_LONG", 0)
    packed = pack_splits(write_pictures(tmp_path / "pictures"), tmp_path / "packed")
    assert len(open_data(packed, "train")) == 24


def test_a_header_of_absurd_size_is_damage(tmp_path):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**60
    (tmp_path / "train.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"train.tar: "):
        open_data(tmp_path, "train")
