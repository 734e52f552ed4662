"""The classes of a data set by a small file: their names in order, and what numbers and colours masks have for them.

    sky                    a line each; the first is number 0
    sky 70 130 180         with the colour of RGB masks; `70 130 180 sky`, `sky #4682b4` and commas do too
    3 sky                  with the number in masks

A table (CSV, TSV) whose first line names a column `name`, and `r`, `g`, `b` or `color`, `id` or `idx`. JSON: a list of
names or of objects `{"name": …, "color": [70, 130, 180], "id": 3}`; `{"3": "sky", …}` or `{"sky": [70, 130, 180], …}`.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convattn.data.colours import Colour
from convattn.data.dataset import DataError
from convattn.data.spelling import spelled
from convattn.data.text_files import check_regular, read_lines
from convattn.segmentation.options import IGNORED
from convattn.shown import shown

__all__ = ["CLASS_FILES", "ClassTable", "find_class_file", "read_classes"]

CLASS_FILES = (  # that are found by themselves beside the data; the first that is there counts
    "classes.txt",
    "classes.csv",
    "classes.json",
    "class_dict.csv",
    "label_colors.txt",
    "labels.txt",
    "id2label.json",
    "objectInfo150.txt",
)
_LARGEST = 2**20  # bytes
_NAMES = ("name", "class", "label", "category", "classname")  # of columns and keys, small and without blanks, `_`, `-`
_NUMBERS = ("id", "idx", "index", "number", "trainid")
_COLOURS = ("color", "colour", "rgb", "hex")
_PARTS = (("r", "red"), ("g", "green"), ("b", "blue"))
_HEX = re.compile(r"#?([0-9a-fA-F]{6})")


@dataclass(frozen=True)
class ClassTable:
    """Classes in order, as a file states them."""

    where: str  # the file, for messages
    names: tuple[str, ...]
    numbers: tuple[int, ...] | None = None  # that masks have for them; None where they are not stated
    colours: tuple[Colour, ...] | None = None


@dataclass(frozen=True)
class _Row:
    place: str
    name: str
    number: int | None = None
    colour: Colour | None = None


def find_class_file(folder: Path) -> Path | None:
    """The file beside the data that names their classes, by its own name; None without one."""
    return next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)


def read_classes(file: Path) -> ClassTable:
    """The classes that a file names.

    Raises:
        DataError: naming file and line, if it is no such file, a class stands twice, or two have one number or colour.
    """
    check_regular(file)
    if not file.exists():
        raise DataError(f"{shown(file)}: no such file; it should name the classes, a line each")
    if file.stat().st_size > _LARGEST:
        raise DataError(f"{shown(file)}: {file.stat().st_size:,} bytes, too many for a list of classes")
    rows = _json_rows(file) if file.suffix.lower() == ".json" else _text_rows(file)
    if not rows:
        raise DataError(f"{shown(file)}: names no class; write one a line")
    if len(rows) > IGNORED:
        raise DataError(f"{shown(file)}: {len(rows)} classes; masks of 8 bits tell at most {IGNORED} apart")
    _check_distinct(file, rows)
    numbers = _all_or_none(file, [(row, row.number) for row in rows], "number")
    colours = _all_or_none(file, [(row, row.colour) for row in rows], "colour")
    for row in rows:
        if row.number is not None and not 0 <= row.number <= IGNORED:
            raise DataError(f"{shown(file)}, {row.place}: number {row.number} must be between 0 and {IGNORED}")
    return ClassTable(str(file), tuple(row.name for row in rows), numbers, colours)


def _check_distinct(file: Path, rows: Sequence[_Row]) -> None:
    for what in ("name", "number", "colour"):
        first: dict[Any, _Row] = {}
        for row in rows:
            value = spelled(row.name) if what == "name" else getattr(row, what)
            if value is None:
                continue
            other = first.setdefault(value, row)
            if other is row:
                continue
            said = " ".join(map(str, value)) if isinstance(value, tuple) else value
            problem = f"{shown(row.name)!r} has the {what} {said} of {shown(other.name)!r} ({other.place})"
            if what == "name":
                problem = f"class {shown(row.name)!r} stands in {other.place} already"
            raise DataError(f"{shown(file)}, {row.place}: {problem}; give each class a {what} of its own")


def _all_or_none(file: Path, values: Sequence[tuple[_Row, Any]], what: str) -> tuple[Any, ...] | None:
    lacking = next((row for row, value in values if value is None), None)
    if lacking is None:
        return tuple(value for _, value in values)
    if any(value is not None for _, value in values):
        raise DataError(
            f"{shown(file)}, {lacking.place}: class {shown(lacking.name)!r} has no {what}, and others have one; give "
            f"every class a {what}, or none"
        )
    return None


def _text_rows(file: Path) -> list[_Row]:
    lines = [(f"line {number}", line) for number, line in read_lines(file)]
    lines = [(place, line) for place, line in lines if not re.match(r"#(?![0-9a-fA-F]{6}\b)|//", line)]  # comments
    if lines and (table := _table_rows(file, lines)) is not None:
        return table
    rows = [_line(place, line) for place, line in lines]
    # A number that not every line begins with belongs to a name, as in `3 wheeler`.
    if any(row.number is None for row in rows):
        rows = [_line(place, line, numbered=False) for place, line in lines]
    return rows


def _table_rows(file: Path, lines: Sequence[tuple[str, str]]) -> list[_Row] | None:
    """The rows of a table whose first line names its columns; None for any other file."""
    heading = lines[0][1]
    mark = next((mark for mark in "\t,;" if mark in heading), None)
    if mark is None:
        return None
    columns = [_plain(cell) for cell in _cells(heading, mark)]
    if not set(columns) & set(_NAMES):
        return None
    rows = []
    for place, line in lines[1:]:
        cells = _cells(line, mark)
        if len(cells) != len(columns):
            raise DataError(f"{shown(file)}, {place}: {len(cells)} cells for {len(columns)} columns")
        rows.append(_from_cells(f"{shown(file)}, {place}", place, dict(zip(columns, cells, strict=True))))
    return rows


def _cells(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]


def _line(place: str, line: str, *, numbered: bool = True) -> _Row:
    """A class out of a line: `[NUMBER] NAME [COLOUR]` or `[NUMBER] COLOUR NAME`, parted by blanks, commas or `;`."""
    words = [word for word in re.split(r"[\s,;]+", line) if word]
    number = None
    leading = next((at for at, word in enumerate(words) if not word.rstrip(":").isdecimal()), len(words))
    if numbered and leading in (1, 4) and leading < len(words):
        number, words = int(words[0].rstrip(":")), words[1:]
    for part, rest in ((words[:3], words[3:]), (words[-3:], words[:-3])):
        if rest and len(part) == 3 and all(word.isdecimal() and int(word) <= 255 for word in part):
            return _Row(place, " ".join(rest), number, (int(part[0]), int(part[1]), int(part[2])))
    for part, rest in ((words[:1], words[1:]), (words[-1:], words[:-1])):
        if rest and part[0].startswith("#") and _HEX.fullmatch(part[0]):
            return _Row(place, " ".join(rest), number, _from_hex(part[0]))
    return _Row(place, " ".join(words) if number is not None else line, number)


def _json_rows(file: Path) -> list[_Row]:
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{shown(file)}: could not be read as JSON ({reason})") from None
    if isinstance(content, Mapping):
        named = next((content[name] for name in ("classes", "categories", "id2label") if name in content), content)
        content = named if isinstance(named, list | Mapping) else content
    entries = list(content.items()) if isinstance(content, Mapping) else content
    if not isinstance(entries, list):
        raise DataError(f"{shown(file)}: holds {type(content).__name__}, not a list of classes")
    return [_json_row(file, f"entry {at}", entry) for at, entry in enumerate(entries, start=1)]


def _json_row(file: Path, place: str, entry: Any) -> _Row:
    where = f"{shown(file)}, {place}"
    if isinstance(entry, str):
        return _Row(place, entry)
    if isinstance(entry, Mapping):
        return _from_cells(where, place, {_plain(str(key)): value for key, value in entry.items()})
    if isinstance(entry, tuple):  # of an object: number -> name, or name -> colour
        key, value = entry
        if key.isdecimal() and isinstance(value, str):
            return _Row(place, value, _number(where, key))
        return _Row(place, key, None, _colour(where, value))
    raise DataError(f"{where}: {shown(str(entry))[:40]!r} is neither a name nor an object with a name")


def _from_cells(where: str, place: str, cells: Mapping[str, Any]) -> _Row:
    """A class out of what columns or keys hold for it."""

    def first(names: Sequence[str]) -> Any:
        return next((cells[name] for name in names if name in cells), None)

    name, number, colour = first(_NAMES), first(_NUMBERS), first(_COLOURS)
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: no name; every class needs one")
    if colour is None and all(first(part) is not None for part in _PARTS):
        colour = [first(part) for part in _PARTS]
    return _Row(
        place,
        name.strip(),
        None if number is None else _number(where, number),
        None if colour is None else _colour(where, colour),
    )


def _number(where: str, value: Any) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise DataError(f"{where}: number {shown(text)[:20]!r} must be a whole number from 0")
    return int(text)


def _colour(where: str, value: Any) -> Colour:
    if isinstance(value, str) and (_HEX.fullmatch(value.strip())):
        return _from_hex(value.strip())
    parts = re.split(r"[\s,;]+", value.strip(" ()[]")) if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and len(parts) == 3:
        texts = [str(part).strip() for part in parts]
        if all(re.fullmatch(r"\d{1,3}", text, re.ASCII) and int(text) <= 255 for text in texts):
            return int(texts[0]), int(texts[1]), int(texts[2])
    raise DataError(f"{where}: colour {shown(str(value))[:30]!r} must be red, green and blue from 0 to 255, or #rrggbb")


def _from_hex(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
