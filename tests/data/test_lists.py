import pyarrow
import pyarrow.parquet
import pytest

from convattn.data.dataset import DataError
from convattn.data.images import ImageError
from convattn.data.sources import open_data, open_evaluation
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
