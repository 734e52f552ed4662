import shutil
from contextlib import nullcontext

import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.data.known_classes import LabelError
from convattn.data.shards import grouped, label_in
from convattn.data.sources import open_data, open_evaluation
from tiny_archives import files_in, write_shards, write_tar
from tiny_runs import write_pictures


@pytest.fixture
def samples(tmp_path):
    """(key, content, class name) of the pictures of a split, in no order."""
    found = files_in(write_pictures(tmp_path / "pictures", train=3) / "train")
    return [(name.replace("/", "_")[:-4], content, name.split("/")[0]) for name, content in found[::-1]]


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_numbers_are_named_by_the_file_of_classes(tmp_path, samples, suffix, monkeypatch):
    numbered = [(key, content, ("bright", "dark").index(name)) for key, content, name in samples]
    shards = write_shards(tmp_path / "data" / "train", numbered, suffix=suffix)
    plain = open_data(tmp_path / "data", "train")
    assert list(plain.classes) == ["0", "1"]
    (tmp_path / "data" / "classes.txt").write_text("bright\ndark\n")
    data = open_data(tmp_path / "data", "train")
    assert list(data.classes) == ["bright", "dark"]
    monkeypatch.chdir(shards)
    assert list(open_data("0000.tar", "train").classes) == ["bright", "dark"]  # seen from within as from outside
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


def test_folders_in_braces_are_no_shards(tmp_path):
    for number in range(2):
        write_pictures(tmp_path / f"photos-{number}")
    with pytest.raises(DataError, match=r"photos-0: no such file"):
        open_data(tmp_path / "photos-{0..1}", "train")


def test_shards_of_both_splits_in_one_folder_are_told_apart_by_name(tmp_path, samples):
    for split, count in (("train", 6), ("validation", 2)):
        write_shards(tmp_path / split, samples[:count])
        for shard in (tmp_path / split).iterdir():
            shutil.move(shard, tmp_path / f"pictures-{split}-{shard.name}")
        (tmp_path / split).rmdir()
    shutil.rmtree(tmp_path / "pictures")
    with pytest.warns(DataWarning, match=r"the val images are those of pictures-validation-0000.tar …"):
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
        ({"cls": b"7\n"}, "7"),
        ({"cls": b"\xef\xbb\xbf007"}, "007"),
        ({"cls": b"cat"}, "cat"),
        ({"json": b'{"label": 3}'}, "3"),
        ({"json": b'{"label": 3.0}'}, "3.0"),
        ({"json": b'{"cls": "dog"}'}, "dog"),
        ({"cls": b"1", "json": b'{"label": 2}'}, "1"),
        ({"json": b'{"label": 4006381333931}'}, "4006381333931"),
    ],
)
def test_labels_are_numbers_or_names(parts, label):
    assert label_in(parts) == label


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"no .cls or .json beside it"),
        (
            {"v1.cls": b"1"},
            r"called 'v1.cls': as in webdataset, the key of a sample ends at the first point of its name",
        ),
        ({"cls": b"\xff"}, r"states no label"),
        ({"cls": b"9" * 5000}, r"label 99999999999999999999… of 5,000 digits is above 99,999,999"),
        ({"cls": b"-1"}, r"label -1 is below 0"),
        ({"cls": b"x" * (2**20 + 1)}, r"takes 1,048,577 bytes"),
        ({"json": b"[" * 100_000}, r"states no label"),
        ({"json": b'{"label": NaN}'}, r"its label is nan; it must be a number or a name"),
        ({"json": b'{"label": 1.5}'}, r"its label is 1.5; it must be a number or a name"),
        ({"json": b'{"label": [1, 2]}'}, r"its label is \[1, 2\]; it must be a number or a name"),
        ({"json": b'{"label": 1e30}'}, r"above 99,999,999"),
    ],
)
def test_a_label_that_no_class_can_have_is_refused(parts, message):
    with pytest.raises(LabelError, match=message):
        label_in(parts)


@pytest.mark.parametrize(
    ("members", "taken"),
    [
        (["jpg", "seg.png", "cls"], "jpg"),
        (["depth.png", "jpg", "mask.png", "cls"], "jpg"),
        (["input.png", "cls"], "input.png"),
        (["json", "a.png", "png"], "png"),
    ],
)
def test_a_second_image_in_a_sample_leaves_its_label_alone(tmp_path, members, taken):
    content = {"cls": b"%d", "json": b'{"label": %d}'}
    write_tar(
        tmp_path / "train.tar",
        [(f"{at}.{part}", content[part] % at if part in content else b"x") for at in (0, 1) for part in members],
    )
    data = open_data(tmp_path, "train")
    assert (list(data.classes), list(data.labels)) == (["0", "1"], [0, 1])
    assert [path.rpartition("/")[2] for path in data.paths] == [f"0.{taken}", f"1.{taken}"]


def test_of_several_images_alike_the_first_is_taken_and_that_is_said(tmp_path):
    write_tar(
        tmp_path / "train.tar", [("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0"), ("b.jpg", b"x"), ("b.cls", b"1")]
    )
    with pytest.warns(
        DataWarning, match=r"train.tar: samples have several images \(jpg, png\); the first is taken, .* a"
    ):
        data = open_data(tmp_path, "train")
    assert [path.rpartition("/")[2] for path in data.paths] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("other", "classes"), [("7", ["7"]), ("cola", ["4006381333931", "cola"])])
def test_a_code_among_words_is_a_name_and_among_numbers_a_slip(tmp_path, other, classes):
    write_shards(tmp_path / "train", [("a", b"x", other), ("b", b"x", 4006381333931)], shards=1)
    with nullcontext() if len(classes) > 1 else pytest.warns(DataWarning, match="labels are the numbers 7"):
        data = open_data(tmp_path, "train")
    assert (len(data), list(data.classes)) == (2, classes)
    if len(classes) == 1:
        with pytest.raises(ImageError, match=r"b.png: label 4006381333931 is above 99,999,999"):
            data.read(1)


def test_samples_of_equal_keys_are_all_kept(tmp_path):
    write_tar(tmp_path / "train.tar", [("a.jpg", b"x"), ("a.cls", b"0"), ("a.jpg", b"y"), ("a.cls", b"1")])
    data = open_data(tmp_path, "train")
    assert (list(data.labels), [data.read_bytes(at) for at in (0, 1)]) == ([0, 1], [b"x", b"y"])


def test_classes_by_number_are_named_in_their_order_and_told_apart(tmp_path):
    write_tar(tmp_path / "train.tar", [("a.jpg", b"x"), ("a.cls", b"1"), ("b.jpg", b"x"), ("b.cls", b"0")])
    (tmp_path / "classes.txt").write_text("crane\n\ncrane\n")
    with pytest.raises(DataError, match=r"classes.txt: line 2 is blank"):
        open_data(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("crane\ncrane\n", "utf-16")
    with pytest.warns(DataWarning, match=r"more than one class is called 'crane'; their numbers are added"):
        data = open_data(tmp_path, "train")
    assert (data.classes, list(data.labels)) == (["crane (0)", "crane (1)"], [1, 0])
