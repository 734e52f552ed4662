import shutil

import pytest

from convattn.data.dataset import DataError
from convattn.data.images import ImageError
from convattn.data.shards import LabelError, grouped, label_in
from convattn.data.sources import open_data, open_evaluation
from tiny_archives import files_in, write_shards, write_tar
from tiny_runs import write_pictures


@pytest.fixture
def samples(tmp_path):
    """(key, content, class name) of the pictures of a split, in no order."""
    found = files_in(write_pictures(tmp_path / "pictures", train=3) / "train")
    return [(name.replace("/", "_")[:-4], content, name.split("/")[0]) for name, content in found[::-1]]


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_numbers_are_named_by_the_file_of_classes(tmp_path, samples, suffix):
    numbered = [(key, content, ("bright", "dark").index(name)) for key, content, name in samples]
    shards = write_shards(tmp_path / "data" / "train", numbered, suffix=suffix)
    plain = open_data(tmp_path / "data", "train")
    assert list(plain.classes) == ["0", "1"]
    (tmp_path / "data" / "classes.txt").write_text("bright\ndark\n")
    data = open_data(tmp_path / "data", "train")
    assert list(data.classes) == ["bright", "dark"]
    contents = {f"{key}.png": (content, name) for key, content, name in samples}
    assert len(data) == len(contents) == 6
    for at, path in enumerate(data.paths):
        content, name = contents[path.rpartition("/")[2]]
        assert (data.read_bytes(at), data.classes[data.labels[at]]) == (content, name)
        assert path.startswith(f"{shards}/000")


def test_names_serve_as_labels_and_braces_as_paths(tmp_path, samples):
    write_shards(tmp_path / "shards", samples, shards=3)
    data = open_data(f"{tmp_path}/shards/{{0000..0002}}.tar", "train")
    assert (list(data.classes), sorted(data.labels)) == (["bright", "dark"], [0, 0, 0, 1, 1, 1])
    with pytest.raises(
        DataError, match=r"\{0000..0002\}.tar: holds the training split alone; name the other with data.v"
    ):
        open_data(f"{tmp_path}/shards/{{0000..0002}}.tar", "val")
    held_out = open_data(
        f"{tmp_path}/shards/{{0000..0002}}.tar", "val", validation=f"{tmp_path}/shards/{{0000..0001}}.tar"
    )
    assert len(held_out) == 4
    with pytest.raises(DataError, match=r"0003.tar: no such file"):
        open_evaluation(f"{tmp_path}/shards/{{0000..0003}}.tar")


def test_shards_of_both_splits_in_one_folder_are_told_apart_by_name(tmp_path, samples):
    for split, count in (("train", 6), ("validation", 2)):
        write_shards(tmp_path / split, samples[:count])
        for shard in (tmp_path / split).iterdir():
            shutil.move(shard, tmp_path / f"pictures-{split}-{shard.name}")
        (tmp_path / split).rmdir()
    shutil.rmtree(tmp_path / "pictures")
    assert (len(open_data(tmp_path, "train")), len(open_data(tmp_path, "val"))) == (6, 2)


def test_a_sample_that_is_not_whole_is_set_aside_by_name(tmp_path, samples):
    (_, content, _), *_ = samples
    members = [("a.png", content), ("a.cls", b"cat"), ("b.png", content), ("b.txt", b"no label"), ("c.cls", b"cat")]
    members += [("d.png", content), ("d.json", b"{"), ("e.png", content), ("e.json", b'{"label": [1]}')]
    members += [("f.png", content), ("f.cls", b"x" * (2**20 + 1))]
    write_tar(tmp_path / "val.tar", members)
    data = open_evaluation(tmp_path / "val.tar")
    assert list(data.classes) == ["cat"]
    assert data.read(0).mode == "RGB"
    for at, reason in enumerate(
        [
            r"val.tar/b.png: no .cls or .json beside it states its label",
            r"val.tar/c.cls: no image beside it",
            r"val.tar/d.png: its .cls or .json states no label",
            r"val.tar/e.png: its label is \[1\]; it must be a number or a name",
            r"val.tar/f.png: its label takes 1,048,577 bytes",
        ],
        start=1,
    ):
        with pytest.raises(ImageError, match=reason):
            data.read(at)


def test_labels_that_the_training_classes_do_not_have_are_named(tmp_path, samples):
    write_shards(tmp_path / "shards" / "train", samples)
    write_shards(tmp_path / "shards" / "val", [("a", b"", 2)])
    with pytest.raises(DataError, match=r"val: label 2 must be between 0 and 1, for 2 classes"):
        open_data(tmp_path / "shards", "val")
    write_shards(tmp_path / "shards" / "val", [("a", b"", 1), ("b", b"", "bright")], shards=1)
    (tmp_path / "shards" / "val" / "0001.tar").unlink()
    with pytest.raises(DataError, match=r"val: labels are numbers \(1\) and names \('bright'\); write all in one way"):
        open_data(tmp_path / "shards", "val")


def test_parts_of_a_sample_are_neighbours_with_a_common_key():
    names = ["x/a.b/1.jpg", "x/a.b/1.CLS", "x/a.b/1.seg.png", "x/a.b/2.jpg", "y/2.jpg"]
    assert [(key, list(parts)) for key, parts in grouped((name, None) for name in names)] == [
        ("x/a.b/1", ["jpg", "cls", "seg.png"]),
        ("x/a.b/2", ["jpg"]),
        ("y/2", ["jpg"]),
    ]


@pytest.mark.parametrize(
    ("parts", "label"),
    [
        ({"cls": b"7\n"}, 7),
        ({"cls": b"cat"}, "cat"),
        ({"json": b'{"label": 3}'}, 3),
        ({"json": b'{"cls": "dog"}'}, "dog"),
        ({"cls": b"1", "json": b'{"label": 2}'}, 1),
    ],
)
def test_labels_are_numbers_or_names(parts, label):
    assert label_in(parts) == label
    with pytest.raises(LabelError, match=r"no .cls or .json"):
        label_in({})
