"""A list of images in a CSV, TSV or Parquet file: columns `path` and `label`, and `class` where labels are numbers."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convattn.data.dataset import DataError
from convattn.data.files import LabelledFiles, PlainFiles, label_files
from convattn.data.names import Names
from convattn.extras import require

__all__ = ["LIST_SUFFIXES", "open_list", "paths_in_list"]

LIST_SUFFIXES = (".csv", ".tsv", ".parquet")


def open_list(file: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """The images that a list names.

    A path is relative to the list's folder, or absolute. A label is a number from 0 or the name of a class; a column
    `class` gives the numbers their names. Order is that of the list.

    Args:
        file: ends in .csv, .tsv or .parquet; the first line of a text file names the columns.
        classes: the classes and their order.

    Raises:
        DataError: naming the file, and the column or row that is missing or wrong.
        MissingExtra: for Parquet without pyarrow.
    """
    paths: list[str] = []
    labels: list[str] = []
    names: dict[int, str] = {}
    for place, row in _rows(file, needed=("path", "label")):
        paths.append(_path(file, place, row))
        label = row["label"]
        if label == "":
            raise DataError(f"{place}: no label; every row needs one")
        labels.append(label)
        if row.get("class"):
            _add_name(names, place, label, row["class"])
    numbers = all(label.isdecimal() for label in labels)
    if names:
        missing = next((number for number in range(max(names)) if number not in names), None)
        if missing is not None:
            raise DataError(f"{file}: column class names no class {missing}; name every number up to {max(names)}")
    given = [int(label) for label in labels] if numbers else labels
    ordered = [names[number] for number in sorted(names)] or None
    return label_files(PlainFiles(Names(paths)), given, file, classes, ordered)


def paths_in_list(file: Path) -> Sequence[str]:
    """The paths that a list names; it needs no labels."""
    return Names(_path(file, place, row) for place, row in _rows(file, needed=("path",)))


def _rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Each row as text by the names of the columns, with its place for errors."""
    reader = _parquet_rows if file.suffix == ".parquet" else _text_rows
    try:
        yield from reader(file, needed)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: could not be read as a list ({error})") from None


def _text_rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
        _check_columns(file, reader.fieldnames or (), needed)
        for row in reader:
            place = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{place}: not as many columns as in the first line; quote a text that holds a comma")
            yield place, {name: text.strip() for name, text in row.items()}


def _parquet_rows(file: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    pyarrow, parquet = require("pyarrow", "train"), require("pyarrow.parquet", "train")
    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        _check_columns(file, columns, needed)
        chosen = [name for name in ("path", "label", "class") if name in columns]
        number = 0
        for batch in table.iter_batches(columns=chosen):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", {name: _text(value) for name, value in row.items()}
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: could not be read as Parquet ({str(error).splitlines()[0]})") from None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _check_columns(file: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            f"{file}: no column {' and no column '.join(missing)}; it has {', '.join(map(repr, columns)) or 'none'}"
        )


def _path(file: Path, place: str, row: Mapping[str, str]) -> str:
    if not row["path"]:
        raise DataError(f"{place}: no path; every row needs one")
    return str(file.parent / row["path"])


def _add_name(names: dict[int, str], place: str, label: str, name: str) -> None:
    if not label.isdecimal():
        raise DataError(f"{place}: label {label!r} beside a column class must be a number")
    if names.setdefault(int(label), name) != name:
        raise DataError(f"{place}: class {name!r} has the label {label}, which was {names[int(label)]!r} before")
