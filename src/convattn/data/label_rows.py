"""The rows of a label file: `IMAGE CLASS` in any of the usual ways, or a label a line."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.dataset import DataError
from convattn.data.file_names import is_image_name
from convattn.data.lists import ClassNames, is_separator_line, names_columns, rows_of
from convattn.data.text_files import read_lines

__all__ = ["LabelRow", "LabelRows", "read_label_rows"]

_MARKS = "\t,;|"  # that part image and class where every line has one; otherwise blanks do
_BOXES = re.compile(
    r"(\S+)(?: -?\d+){4}(?: \S+(?: -?\d+){4})*"
)  # classes with boxes, as in Kaggle's LOC_val_solution.csv


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line."""

    number: int  # from 1
    whole: str  # all of it, for a file of one label a line
    image: str
    label: str  # empty if it stands alone on its line


@dataclass(frozen=True)
class LabelRows:
    """What a label file says."""

    rows: Sequence[LabelRow]
    names: dict[int, str] | None  # of numbered classes, where a list names them
    heading: bool  # whether the file names its columns


def read_label_rows(file: Path, are_known: bool = False) -> LabelRows:
    """Read a label file: a list with named columns, or lines that begin with an image or are a label each.

    Where the classes are known (`are_known`) it need not name them all. DataError names the line that is wrong.
    """
    if file.suffix.lower() == ".parquet":
        return _listed(file, are_known)
    lines = read_lines(file)
    if lines and is_separator_line(lines[0][1]):
        del lines[0]
    if lines and names_columns(lines[0][1]):
        return _listed(file, are_known)
    mark = next((mark for mark in _MARKS if all(mark in line for _, line in lines)), None)
    rows = []
    for number, line in lines:
        image, rest, more = _parted(line, mark)
        label = _label(rest, mark is not None)
        if label is None:
            raise DataError(
                f"{file}, line {number}: {rest!r} could be one class, or a class and more; labels are single, one an "
                "image: leave one, or part IMAGE and CLASS by a tab or a comma"
            )
        if more:  # a width, a class of several, a 0 or 1 for each class: which cell is the label, nobody says
            raise DataError(
                f"{file}, line {number}: more than IMAGE and CLASS; labels are single: leave these two, or let the "
                "first line name the columns path and label"
            )
        rows.append(LabelRow(number, line.strip("\"'"), image, label))
    return LabelRows(rows, None, False)


def _listed(file: Path, are_known: bool) -> LabelRows:
    names, rows = ClassNames(file), []
    for row in rows_of(file):
        names.add(row)
        rows.append(LabelRow(row.number, row.path, row.path, row.label))
    return LabelRows(rows, names.whole(are_known), True)


def _parted(line: str, mark: str | None) -> tuple[str, str, bool]:
    """Image and label of a line, and whether there is more."""
    if mark is not None:
        try:
            cells = next(csv.reader([line], delimiter=mark, skipinitialspace=True))
        except csv.Error:  # a quotation mark without its partner
            cells = []
        if len(cells) < 2:
            cells = line.split(mark)
        image, label, *more = (cell.strip() for cell in cells)
        return image, label, any(more)
    ends = [found.start() for found in re.finditer(r"\s+", line) if is_image_name(line[: found.start()])]
    image = line[: ends[0]] if ends else line.split(maxsplit=1)[0]
    return image.strip("\"'"), line[len(image) :].strip().strip("\"'"), False


def _label(text: str, marked: bool) -> str | None:
    """The label in what follows an image, without Kaggle's boxes; None if it could be more than a label."""
    boxes = _BOXES.fullmatch(text)
    if boxes is not None:
        return boxes[1] if len(set(text.split()[::5])) == 1 else None
    rest = text.split()[1:]
    return None if rest and not marked and all(re.fullmatch(r"[-+.\de]+", word) for word in rest) else text
