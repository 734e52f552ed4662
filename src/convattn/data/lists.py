"""A list of images in a CSV, TSV or Parquet file: columns `path` and `label`, and `class` where labels are numbers.

Where each image has a mask, the columns are `image` and `mask`, and perhaps `split`.
"""

import csv
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convattn.data.dataset import DataError, tell
from convattn.data.file_names import is_image_name
from convattn.data.files import LabelledFiles, PlainFiles, label_as_stated
from convattn.data.known_classes import LabelError, number_in
from convattn.data.names import Names
from convattn.data.on_disk import OnDisk
from convattn.data.parquet_rows import parquet_rows
from convattn.data.split_words import SPLIT_WORDS
from convattn.data.stated_labels import StatedLabels
from convattn.data.text_files import text_lines

__all__ = [
    "LIST_SUFFIXES",
    "ClassNames",
    "Row",
    "has_columns",
    "is_list_name",
    "is_separator_line",
    "names_columns",
    "open_list",
    "paths_in_list",
    "row_word",
    "rows_of",
]

LIST_SUFFIXES = (".csv", ".tsv", ".parquet")
_MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}  # between cells
# What columns are called, small and without blanks, `_` and `-`; the first name of a kind goes before the others.
_COLUMNS = {
    "path": ("path", "filename", "filepath", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    "label": ("label", "labels", "target", "category", "classname", "class"),
    "mask": ("mask", "maskpath", "maskfile", "maskname", "annotation", "annotationpath", "segmentation"),
}
_SPLIT_COLUMNS = {"split", "set", "subset", "dataset", "partition", "isvalid", "isvalidation", "istest", "istrain"}
_SPLIT_CELLS = SPLIT_WORDS | {"true", "false", "0", "1", "2"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list."""

    number: int  # of its line, or of the row in Parquet, from 1
    path: str
    label: str = ""
    name: str = ""  # of the class that the label numbers
    split: str = ""
    mask: str = ""


def is_list_name(name: str) -> bool:
    """Whether a file's name ends like that of a list."""
    return name.lower().endswith(LIST_SUFFIXES)


def row_word(file: Path) -> str:
    """What a row of this file is called in errors."""
    return "row" if file.suffix.lower() == ".parquet" else "line"


def open_list(file: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """The images that a list names.

    A path is relative to the list's folder, or absolute. A label is the name of a class or a number; a column `class`
    gives the numbers their names. Order is that of the list; a row that stands twice counts once.

    Args:
        file: ends in .csv, .tsv or .parquet; the first line of a text file names the columns.
        classes: the classes and their order.

    Raises:
        DataError: naming the file, and the column or row that is missing or wrong.
        MissingExtra: for Parquet without pyarrow.
    """
    numbers, hashes = array("q"), array("q")
    word, disk, names, splits = row_word(file), OnDisk(file), ClassNames(file), _OneSplit(file)
    stated = StatedLabels(file, lambda at: f"{word} {numbers[at]}")

    def paths() -> Iterator[str]:
        for row in rows_of(file):
            path = disk.path(row.path, f"{file}, {word} {row.number}")
            names.add(row)
            splits.add(row)
            stated.add(row.label)
            numbers.append(row.number)
            hashes.append(hash(_whole(path)))
            yield path

    data = label_as_stated(PlainFiles(Names(paths())), stated, classes, names.whole(are_known=classes is not None))
    doubles = [pair for pair in _alike(hashes) if _whole(data.paths[pair[0]]) == _whole(data.paths[pair[1]])]
    if not doubles:
        return data
    for first, second in doubles:
        if data.labels[first] != data.labels[second]:
            labels = (f"{data.classes[data.labels[at]]!r} ({word} {numbers[at]})" for at in (first, second))
            raise DataError(f"{file}: {data.paths[first]} has two labels, {' and '.join(labels)}; leave one")
    first, second = doubles[0]
    tell(
        f"{file}: {len(doubles):,} rows say again what others do, such as {word} {numbers[second]} and "
        f"{word} {numbers[first]}; each image counts once"
    )
    again = {second for _, second in doubles}
    return data.part([at for at in range(len(data)) if at not in again])


def paths_in_list(file: Path) -> Sequence[str]:
    """The paths that a list names; it needs no labels."""
    disk = OnDisk(file)
    return Names(disk.path(row.path, f"{file}, {row_word(file)} {row.number}") for row in rows_of(file, ("path",)))


def rows_of(file: Path, needed: Sequence[str] = ("path", "label")) -> Iterator[Row]:
    """Each row but blank ones; DataError names the file, and the column or row that is missing or wrong."""
    word = row_word(file)
    for number, cells in _parquet(file, needed) if word == "row" else _text(file, needed):
        row = Row(number, **cells)
        if not row.path:
            raise DataError(f"{file}, {word} {number}: no path; every row needs one")
        if not row.label and "label" in needed:
            raise DataError(f"{file}, {word} {number}: no label; every row needs one")
        yield row


def has_columns(file: Path, needed: Sequence[str]) -> bool:
    """Whether a list names these columns."""
    try:
        if row_word(file) == "row":
            return next(_parquet(file, needed), None) is not None
        with text_lines(file) as lines:
            heading, _ = _heading(lines)
    except DataError:
        return False
    return any(_fits(_cells(heading, mark), needed) for mark in _MARKS)


def names_columns(line: str) -> bool:
    """Whether a line names the columns of a list, in any of the usual ways."""
    return any(_fits(_cells(line, mark), ("path", "label")) for mark in _MARKS)


def is_separator_line(line: str) -> bool:
    """Whether a line is Excel's own first one, which only says what parts the cells."""
    return re.fullmatch(r"sep=.\s*", line) is not None


class ClassNames:
    """What the column `class` of a list calls the numbers beside it."""

    def __init__(self, file: Path):
        self._file, self._names = file, dict[int, str]()

    def add(self, row: Row) -> None:
        """One row of the list."""
        if not row.name:
            return
        place = f"{self._file}, {row_word(self._file)} {row.number}"
        try:
            number = number_in(row.label)
        except LabelError as error:
            raise DataError(f"{place}: {error}") from None
        if number is None:
            raise DataError(f"{place}: label {row.label!r} beside a column class must be a number")
        if self._names.setdefault(number, row.name) != row.name:
            raise DataError(
                f"{place}: class {row.name!r} has the label {number}, which was {self._names[number]!r} before"
            )

    def whole(self, are_known: bool) -> dict[int, str] | None:
        """The name of every number from 0 or 1, of those that occur where the classes are known; None without any."""
        numbers = range(min(1, *self._names), max(self._names)) if len(self._names) > 1 else ()
        missing = next((number for number in numbers if number not in self._names), None)
        if missing is not None and not are_known:
            raise DataError(
                f"{self._file}: column class names no class {missing}; name every number up to {max(self._names)}"
            )
        return self._names or None


class _OneSplit:
    """Refuses a list whose rows are of several splits by a column that says so: it would be learnt as a whole."""

    def __init__(self, file: Path):
        self._file, self._first = file, dict[str, int]()

    def add(self, row: Row) -> None:
        split = row.split.lower()
        if split not in _SPLIT_CELLS or split in self._first:
            return
        self._first[split] = row.number
        if len(self._first) > 1:
            one, other = (f"{split!r} ({row_word(self._file)} {number})" for split, number in self._first.items())
            raise DataError(
                f"{self._file}: its rows are of several splits, {one} and {other}; write a list for each, such as "
                "train.csv and val.csv"
            )


def _whole(path: str) -> str:
    """A path in the one spelling by which files are compared; nothing is looked up."""
    return path if path[:1] == "/" and "/../" not in path else os.path.abspath(path)


def _text(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    with text_lines(file) as lines:
        heading, before = _heading(lines)
        mark = _mark(file, heading, needed)
        named = _cells(heading, mark)
        columns, count = _columns(file, named, needed), len(named)
        reader = csv.reader(lines, delimiter=mark, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                if len(cells) != count:
                    if not any(map(str.strip, cells)):
                        continue
                    if len(cells) < count or any(map(str.strip, cells[count:])):
                        raise DataError(
                            f"{file}, line {before + reader.line_num}: not as many columns as in the first line; quote "
                            f"a text that holds a {_MARKS[mark]}"
                        )
                elif not any(map(str.strip, cells)):
                    continue
                yield before + reader.line_num, {kind: cells[at].strip() for kind, at in columns.items()}
        except csv.Error as error:
            raise DataError(f"{file}: could not be read as a list ({error}, line {before + reader.line_num})") from None


def _heading(lines: Iterator[str]) -> tuple[str, int]:
    """The line that names the columns, and its number; empty if there is none."""
    before = 0
    for line in lines:
        before += 1
        if line.strip() and not is_separator_line(line):
            return line, before
    return "", before


def _parquet(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    kinds: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        columns = _columns(file, names, needed)
        kinds.extend(columns)
        return [names[at] for at in columns.values()]

    for number, cells in enumerate(parquet_rows(file, choose), start=1):
        yield number, dict(zip(kinds, cells, strict=True))


def _mark(file: Path, heading: str, needed: Sequence[str]) -> str:
    """What parts the cells of a text file: as its suffix says, or what else makes its heading name the columns."""
    usual = "\t" if file.suffix.lower() == ".tsv" else ","
    fitting = [mark for mark in _MARKS if _fits(_cells(heading, mark), needed)]
    return fitting[0] if len(fitting) == 1 and usual not in fitting else usual


def _cells(line: str, mark: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])]
    except csv.Error:
        return []


def _fits(heading: Sequence[str], needed: Sequence[str]) -> bool:
    """Whether a heading tells which columns hold these."""
    try:
        return bool(_columns("", heading, needed))
    except DataError:
        return False


def _columns(file: object, heading: Sequence[str], needed: Sequence[str]) -> dict[str, int]:
    """Which columns hold path, label, name of the class and split, those that are there; DataError if not told."""
    called = [re.sub(r"[\s_-]", "", name).lower() for name in heading]
    found: dict[str, int] = {}
    missing = []
    for kind in needed:
        names = _COLUMNS[kind]
        own = [at for at, name in enumerate(called) if name == names[0]]
        usable = own or [at for at, name in enumerate(called) if name in names]
        if len(usable) > 1:
            both = " and ".join(repr(heading[at]) for at in usable)
            raise DataError(f"{file}: columns {both} could all be the {kind}; call one of them {kind}")
        if usable:
            found[kind] = usable[0]
        else:
            missing.append(kind)
    if missing:
        shown = ", ".join(map(repr, heading)) or "none"
        hint = "; its first line has to name the columns: path,label" if any(map(is_image_name, heading)) else ""
        raise DataError(f"{file}: no column {' and no column '.join(missing)}; it has {shown}{hint}")
    if "label" in needed and "class" in called and called.index("class") != found["label"]:
        found["name"] = called.index("class")
    splits = [at for at, name in enumerate(called) if name in _SPLIT_COLUMNS and at not in found.values()]
    if {"label", "mask"} & {*needed} and len(splits) == 1:
        found["split"] = splits[0]
    return found


def _alike(hashes: array) -> Iterator[tuple[int, int]]:
    """Pairs of places with equal numbers, the earlier first; of more than two, each with the first."""
    values = np.frombuffer(hashes, np.int64) if len(hashes) else np.zeros(0, np.int64)
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    first, last = -1, -2
    for at in same.tolist():
        if at != last + 1:
            first = int(order[at])
        last = at
        yield first, int(order[at + 1])
