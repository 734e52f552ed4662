import unicodedata
from contextlib import nullcontext

import pyarrow
import pyarrow.parquet
import pytest

from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import ImageError
from convattn.data.sources import open_data, open_evaluation
from tiny_archives import write_files
from tiny_runs import write_pictures


def write_list(file, rows, columns=("path", "label")):
    if file.suffix == ".parquet":
        table = {name: [row[at] for row in rows] for at, name in enumerate(columns)}
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    else:
        mark = "\t" if file.suffix == ".tsv" else ","
        file.write_text("\n".join(mark.join(map(str, row)) for row in [columns, *rows]) + "\n")
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_list_names_images_and_classes(tmp_path, kind):
    pictures = write_pictures(tmp_path / "pictures", train=2, val=1)
    for split in ("train", "val"):
        plain = open_data(pictures, split)
        rows = [
            (f"pictures/{split}/{plain.classes[label]}/{path.rpartition('/')[2]}", plain.classes[label])
            for path, label in zip(plain.paths, plain.labels, strict=True)
        ]
        write_list(tmp_path / f"{split}.{kind}", rows)
        data = open_data(tmp_path, split)
        assert (list(data.classes), list(data.labels)) == (list(plain.classes), list(plain.labels))
        assert data.paths == plain.paths
        assert data.read(0).tobytes() == plain.read(0).tobytes()
    assert len(open_evaluation(tmp_path)) == len(open_evaluation(tmp_path / f"val.{kind}")) == 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_are_named_by_the_column_class(tmp_path, kind):
    rows = [("a.png", 1, "dark"), ("/b.png", 0, "bright"), ("c.png", 1, "dark")]
    data = open_evaluation(write_list(tmp_path / f"val.{kind}", rows, ("path", "label", "class")))
    assert (data.classes, list(data.labels)) == (["bright", "dark"], [1, 0, 1])
    assert data.paths == [f"{tmp_path}/a.png", "/b.png", f"{tmp_path}/c.png"]
    with pytest.raises(ImageError, match=r"a.png: no such file"):
        data.read(0)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_missing_column_is_named_beside_those_that_are_there(tmp_path, kind):
    file = write_list(tmp_path / f"train.{kind}", [("a.png", "cat")], ("file", "label"))
    with pytest.raises(DataError, match=rf"train.{kind}: no column path; it has 'file', 'label'"):
        open_data(tmp_path, "train")
    file.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,cat\nb.png\n", r"train.csv, line 3: not as many columns as in the first line"),
        ("path,label\na.png,cat,2\n", r"train.csv, line 2: not as many columns"),
        ("path,label\na.png,cat\n,cat\n", r"train.csv, line 3: no path; every row needs one"),
        ("path,label\na.png,\n", r"train.csv, line 2: no label; every row needs one"),
        (
            "path,label,class\na.png,0,cat\nb.png,0,dog\n",
            r"line 3: class 'dog' has the label 0, which was 'cat' before",
        ),
        ("path,label,class\na.png,2,cat\nb.png,0,dog\n", r"train.csv: column class names no class 1; name every"),
        ("path,label,class\na.png,x,cat\n", r"line 2: label 'x' beside a column class must be a number"),
        ("path,label\n", r"train.csv: no image"),
        ("", r"train.csv: no column path and no column label; it has none"),
        ('path,label\n"a.png,cat\n', r"train.csv: could not be read as a list"),
        ("path,label\n\udcff.png,cat\n", r"train.csv: could not be read as a list"),
    ],
)
def test_what_is_wrong_with_a_list_is_named_by_its_row(tmp_path, text, message):
    (tmp_path / "train.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, "train")


def test_what_is_no_parquet_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text("path,label\n")
    with pytest.raises(DataError, match=r"train.parquet: could not be read as Parquet"):
        open_data(tmp_path, "train")


def test_a_validation_list_follows_the_training_classes(tmp_path):
    write_list(tmp_path / "train.csv", [("a.png", "cat"), ("b.png", "dog")])
    write_list(tmp_path / "val.csv", [("c.png", "dog")])
    assert list(open_data(tmp_path, "val").labels) == [1]
    write_list(tmp_path / "val.csv", [("c.png", "fox")])
    with pytest.raises(DataError, match=r"val.csv: class 'fox' is here but not among the training classes"):
        open_data(tmp_path, "val")


def opened(folder, text, encoding="utf-8"):
    """Classes and labels of a list of this text."""
    (folder / "train.csv").write_bytes(text.encode(encoding))
    data = open_data(folder, "train")
    assert data.paths == [f"{folder}/{at}.png" for at in range(len(data))]
    return list(data.classes), list(data.labels)


ROWS = "path,label\n0.png,cat\n1.png,dög\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (ROWS.replace(",", ";"), "utf-8"),
        (ROWS.replace(",", "\t"), "utf-8"),
        (ROWS.replace(",", "|"), "utf-8"),
        (ROWS.replace(",", ", "), "utf-8"),
        (ROWS.replace("\n", "\r\n"), "utf-8-sig"),
        (ROWS, "utf-16"),
        ("sep=;\n" + ROWS.replace(",", ";"), "utf-16"),
        ("\n  \n" + ROWS.replace("\n", "\n\n") + "   \n,\n", "utf-8"),
        (ROWS.replace("dög\n", "dög,,\n"), "utf-8"),
        ('"path", "label"\n"0.png", "cat"\n"1.png","dög"\n', "utf-8"),
        (ROWS.replace("path,label", "Path,LABEL"), "utf-8"),
        (ROWS.replace("path,label", "file_name,Class"), "utf-8"),
        (ROWS.replace("path,label", "Image Path,category"), "utf-8"),
        (ROWS.replace("path,label", "image,target"), "utf-8"),
        (",filepath,label\n7,0.png,cat\n8,1.png,dög\n", "utf-8"),
        ("path,image,label\n0.png,x,cat\n1.png,y,dög\n", "utf-8"),
    ],
)
def test_lists_are_read_as_programs_write_them(tmp_path, text, encoding):
    assert opened(tmp_path, text, encoding) == (["cat", "dög"], [0, 1])


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        (
            "0.png,cat\n1.png,dog\n",
            "utf-8",
            r"it has '0.png', 'cat'; its first line has to name the columns: path,label",
        ),
        (
            "image,filename,label\n",
            "utf-8",
            r"columns 'image' and 'filename' could all be the path; call one of them path",
        ),
        ("Path,path,label\n", "utf-8", r"columns 'Path' and 'path' could all be the path"),
        (ROWS, "latin-1", r"train.csv: could not be read .*0xf6.*; save it as UTF-8"),
        (ROWS, "utf-16-le", r"train.csv: could not be read as text \(it holds zero bytes\); save it as UTF-8"),
        ("path,label\n" + "x" * 2**20, "utf-8", r"train.csv, line 2: longer than 1,048,576 characters"),
        (
            "path,label\nC:\\a.png,cat\n",
            "utf-8",
            r"train.csv, line 2: 'C:.*a.png' is a path of Windows; write it relative",
        ),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused_with_a_hint(tmp_path, text, encoding, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, text, encoding)


@pytest.mark.parametrize(
    ("labels", "classes", "places", "told"),
    [
        ("0 1", ["0", "1"], [0, 1], ""),
        ("0.0 1.0 1", ["0", "1"], [0, 1, 1], ""),
        ("1.0e+00 0.0e+00", ["0", "1"], [1, 0], ""),
        (
            "2 1",
            ["1", "2"],
            [1, 0],
            "labels are the numbers 1, 2, not 0 to 1: 2 classes, one for each number that occurs",
        ),
        ("2020 2019 2020", ["2019", "2020"], [1, 0, 1], "labels are the numbers 2019, 2020, not"),
        ("001 002", ["001", "002"], [0, 1], "labels are the numbers 001, 002, not"),
        ("10 9", ["9", "10"], [1, 0], "labels are the numbers 9, 10, not"),
        ("A 1", ["1", "A"], [1, 0], ""),
        ("cola 4006381333931 40063813", ["40063813", "4006381333931", "cola"], [2, 1, 0], ""),
        ("5449000000996 4006381333931", ["4006381333931", "5449000000996"], [1, 0], "the numbers 4006381333931, 5449"),
        ("5449000000996 40063813", ["40063813", "5449000000996"], [1, 0], "are the numbers 40063813, 5449000000996"),
        ("1.5 0.5", ["0.5", "1.5"], [1, 0], ""),
        ("cat nan", ["cat", "nan"], [0, 1], "'nan' is taken for a class (line 3)"),
    ],
)
def test_labels_that_are_numbers_are_as_many_classes_as_occur(tmp_path, labels, classes, places, told):
    text = "path,label\n" + "".join(f"{at}.png,{label}\n" for at, label in enumerate(labels.split()))
    with pytest.warns(DataWarning) if told else nullcontext() as lines:
        assert opened(tmp_path, text) == (classes, places)
    assert not told or told in str(lines[0].message)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_whole_floats_are_numbers_in_every_format(tmp_path, kind):
    data = open_evaluation(write_list(tmp_path / f"val.{kind}", [("a.png", 1.0), ("b.png", 0.0)]))
    assert (list(data.classes), list(data.labels)) == (["0", "1"], [1, 0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["2147483646", "0"], r"label 2147483646 is above 99,999,999, where no class is numbered; .* \(line 2\)"),
        (["4006381333931", "12"], r"label 4006381333931 is above 99,999,999, .* \(line 2\)"),
        (["cola", "4.00638E+12"], r"label 4.00638E\+12 is above 99,999,999, .*; correct it, .* \(line 3\)"),
        (["cola", "-1"], r"label -1 is below 0; .* \(line 3\)"),
        (["12345678905", "012345678905"], r"label '012345678905' could be the class '12345678905' or .* \(line 3\)"),
        (["12345678905", "nan"], r"'nan' stands among numbers \(line 3\)"),
        (["12345678905", "12345678905 12345678912"], r"'12345678905 12345678912' names several classes; .* \(line 3\)"),
        (["0", "9" * 5000], r"label 9+… of 5,000 digits is above .* \(line 3\)"),
        (["1", "-1"], r"label -1 is below 0; .* leave out what has no label, or write names \(line 3\)"),
        (["1", "01"], r"label '01' could be the class '1' or one of its own; write each number in one way \(line 3\)"),
        (["1", "nan"], r"'nan' stands among numbers \(line 3\); leave out images without a label"),
        (["1", "0 1"], r"'0 1' names several classes; labels are single, one an image \(line 3\)"),
        (["cat", "dog", '"cat,dog"'], r"'cat,dog' names several classes; .* \(line 4\)"),
        (["cat", "dog", "cat|dog"], r"'cat|dog' names several classes; .* \(line 4\)"),
        (["0", '"[0, 1]"'], r"'\[0, 1\]' names several classes; .* \(line 3\)"),
    ],
)
def test_labels_that_no_class_can_have_are_refused_with_their_line(tmp_path, labels, message):
    with pytest.raises(DataError, match=rf"train.csv: {message}"):
        opened(tmp_path, "path,label\n" + "".join(f"{at}.png,{label}\n" for at, label in enumerate(labels)))


def test_a_label_that_holds_another_is_told(tmp_path):
    with pytest.warns(DataWarning, match=r"'cat dog' is taken for one class, though 'cat' is another; .* \(line 2\)"):
        assert opened(tmp_path, "path,label\n0.png,cat dog\n1.png,cat\n")[0] == ["cat", "cat dog"]


@pytest.mark.parametrize("again", ["0.png", "./0.png"])
def test_an_image_counts_once_and_has_one_label(tmp_path, again):
    rows = "path,label\n0.png,cat\n1.png,dog\n"
    with pytest.raises(DataError, match=r"/0.png has two labels, 'cat' \(line 2\) and 'dog' \(line 4\); leave one"):
        opened(tmp_path, f"{rows}{again},dog\n")
    with pytest.warns(
        DataWarning, match=r"2 rows say again what others do, such as line 4 and line 2; each image counts"
    ):
        assert opened(tmp_path, f"{rows}{again},cat\n0.png,cat\n") == (["cat", "dog"], [0, 1])


def test_classes_of_equal_names_are_told_apart_by_their_numbers(tmp_path):
    rows = [("0.png", 0, "crane"), ("1.png", 1, "crane"), ("2.png", 2, "dog")]
    for split in ("train", "val"):
        write_list(tmp_path / f"{split}.csv", rows, ("path", "label", "class"))
    with pytest.warns(DataWarning, match=r"more than one class is called 'crane'; their numbers are added"):
        data = open_data(tmp_path, "val")
    assert (data.classes, list(data.labels)) == (["crane (0)", "crane (1)", "dog"], [0, 1, 2])
    write_list(tmp_path / "val.csv", [("1.png", "crane")])
    with pytest.warns(DataWarning), pytest.raises(DataError, match=r"class 'crane' is here but not among"):
        open_data(tmp_path, "val")


def test_numbers_of_a_validation_list_are_names_where_classes_are_called_by_numbers(tmp_path):
    write_files(tmp_path, *(f"train/{name}/{name}.png" for name in range(12)))
    write_list(tmp_path / "val.csv", [(f"train/{name}/{name}.png", name) for name in range(12)])
    data = open_data(tmp_path, "val")
    assert list(data.classes) == sorted(map(str, range(12)))
    assert [data.classes[label] for label in data.labels] == [str(name) for name in range(12)]


def test_codes_are_names_of_known_classes(tmp_path):
    write_files(tmp_path, "train/4006381333931/0.png", "train/40063813/1.png", "train/-1/2.png")
    rows = [("train/40063813/1.png", 40063813), ("train/-1/2.png", -1), ("train/4006381333931/0.png", 4006381333931)]
    for kind in ("csv", "parquet"):
        listed = write_list(tmp_path / f"other.{kind}", rows)
        data = open_data(tmp_path, "val", validation=listed)
        assert [data.classes[label] for label in data.labels] == ["40063813", "-1", "4006381333931"]
    listed = write_list(tmp_path / "other.csv", [("train/40063813/1.png", 5449000000996)])
    with pytest.raises(DataError, match=r"class '5449000000996' is here but not among the training classes"):
        open_data(tmp_path, "val", validation=listed)
    write_list(tmp_path / "train.csv", [("a", 1, "cola"), ("b", 0, 5449000000996)], ("path", "label", "class"))
    assert list(open_evaluation(tmp_path / "train.csv").classes) == ["5449000000996", "cola"]


def test_backslashes_are_turned_where_no_file_is_called_so(tmp_path):
    write_files(tmp_path, "photos/0.png", "photos/1.png")
    text = "path,label\nphotos\\0.png,cat\nphotos\\1.png,dog\n"
    (tmp_path / "train.csv").write_text(text)
    with pytest.warns(DataWarning, match=r"train.csv: backslashes in paths are read as /, as in 'photos/0.png'"):
        assert open_data(tmp_path, "train").paths == [f"{tmp_path}/photos/{at}.png" for at in (0, 1)]
    write_files(tmp_path, "photos\\0.png")
    with pytest.raises(DataError, match=r"train.csv, line 2: .* are both there; write the path with / or rename one"):
        open_data(tmp_path, "train")


def test_paths_and_labels_are_compared_in_one_normal_form(tmp_path):
    composed, parted = (unicodedata.normalize(form, "café/é.png") for form in ("NFC", "NFD"))
    write_files(tmp_path, parted, "b.png")
    for listed in (composed, parted):
        (tmp_path / "train.csv").write_text(
            f"path,label\n{listed},{composed[:4]}\nb.png,{parted[:5]}\n{tmp_path}/{listed},{composed[:4]}\n"
        )
        with pytest.warns(DataWarning, match=r"1 rows say again"):
            data = open_data(tmp_path, "train")
        assert (data.paths, list(data.classes)) == ([f"{tmp_path}/{parted}", f"{tmp_path}/b.png"], [composed[:4]])
        assert data.read_bytes(0) == b"x"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"path": ["a.png"], "label": [[0, 1]]},
            r"column label holds list<.*>; a path and a label are one text or number",
        ),
        ({"image": [{"bytes": b"x"}], "label": [1]}, r"column image holds struct<"),
        ({"path": ["a.png"], "label": [None]}, r"train.parquet, row 1: no label"),
        (
            {"path": ["a" * 2**21] * 2, "label": [0] * 2},
            r"cells of more than 65,536 bytes; no list of images has these",
        ),
        (
            {"path": pyarrow.nulls(2**21, pyarrow.string()), "label": pyarrow.nulls(2**21, pyarrow.int8())},
            r"says that it has 2,097,152 rows in [\d,]+ bytes; no list of images does",
        ),
    ],
)
def test_parquet_that_is_no_list_or_would_fill_the_memory_is_refused(tmp_path, table, message):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=message):
        open_data(tmp_path, "train")


@pytest.mark.parametrize(
    ("column", "cells"),
    [("split", "train train test"), ("Data_Set", "valid train train"), ("is_valid", "False False True")],
)
def test_a_list_of_several_splits_is_refused_not_learnt_whole(tmp_path, column, cells):
    one, two, three = cells.split()
    rows = f"path,label,{column}\na.png,cat,{one}\nb.png,dog,{two}\nc.png,dog,{three}\n"
    (tmp_path / "train.csv").write_text(rows)
    with pytest.raises(
        DataError, match=r"train.csv: its rows are of several splits, '\w+' \(line 2\) and '\w+' \(line"
    ):
        open_data(tmp_path, "train")
    (tmp_path / "train.csv").write_text(rows.replace(three, one).replace(two, one))
    assert list(open_data(tmp_path, "train").labels) == [0, 1, 1]


def test_named_numbers_may_begin_at_one_and_lack_some_in_validation(tmp_path):
    columns = ("path", "label", "class")
    write_list(tmp_path / "train.csv", [("a.png", 2, "cat"), ("b.png", 1, "emu"), ("c.png", 3, "ant")], columns)
    write_list(tmp_path / "val.csv", [("d.png", 3, "ant"), ("e.png", 1, "emu")], columns)
    data = open_data(tmp_path, "train")
    assert (data.classes, list(data.labels)) == (["emu", "cat", "ant"], [1, 0, 2])
    assert list(open_data(tmp_path, "val").labels) == [2, 0]


@pytest.mark.parametrize("again", ["x/../a.png", "{folder}/a.png"])
def test_an_image_has_one_label_however_its_path_is_written(tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text(f"path,label\na.png,cat\n{again.format(folder=tmp_path)},dog\n")
    with pytest.raises(DataError, match=r"a.png has two labels, 'cat' \(line 2\) and 'dog' \(line 3\)"):
        open_evaluation("list.csv")
