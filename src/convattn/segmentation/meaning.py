"""From the classes of a file, or of a model, to what masks mean (`MaskCode`)."""

import warnings
from collections.abc import Collection, Sequence

import numpy as np

from convattn.data.colours import Colour, default_colours
from convattn.data.dataset import DataError, DataWarning
from convattn.data.stated_labels import places_of
from convattn.segmentation.classes import ClassTable
from convattn.segmentation.masks import MaskCode, reduced
from convattn.segmentation.options import IGNORED, LabelOptions
from convattn.shown import shown

__all__ = ["mask_code", "table_of_numbers"]

_NAMED = 8


def mask_code(
    table: ClassTable | None,
    options: LabelOptions,
    *,
    classes: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> MaskCode:
    """What masks mean.

    A class has the number that its file states, or its place in it; with `reduce_zero_label` one more, unless stated
    numbers leave 0 free. What has the number `ignore_index` counts for nothing and is no class, which is told.

    Args:
        table: the classes of the data; None where nothing names them: then they are `classes`, by their places, or by
            their names where these are numbers.
        options: what counts for nothing.
        classes: those of a model or of the training images, and their order: the data's are matched by name.
        colours: of `classes`.

    Raises:
        DataError: if a class of the data is none of `classes`, or nothing is left to tell apart.
    """
    if table is None:
        assert classes is not None
        stated = tuple(map(int, classes)) if all(name.isdecimal() and len(name) < 4 for name in classes) else None
        table = ClassTable("", tuple(classes), stated, None if colours is None else tuple(colours))
    numbers = _numbers(table, options)
    kept = [at for at, number in enumerate(numbers) if not _is_ignored(number, options)]
    for at in sorted({*range(len(numbers))} - {*kept}):
        _tell(
            f"{shown(table.where)}: {shown(table.names[at])!r} has the number {numbers[at]}, which counts for nothing"
        )
    names = [table.names[at] for at in kept]
    known, places = (
        (names, [*range(len(names))]) if classes is None else (classes, places_of(names, classes, table.where))
    )
    if len(known) < 2:
        raise DataError(f"{shown(table.where)}: only one class, {shown(known[0])!r}; there is nothing to tell apart")
    meaning = np.full(256, -1, dtype=np.int16)
    for number in range(256):
        if _is_ignored(number, options):
            meaning[number] = IGNORED
    own = dict(enumerate(default_colours(len(known)) if colours is None else colours))
    for at, place in zip(kept, places, strict=True):
        meaning[numbers[at]] = place
        if table.colours is not None and colours is None:
            own[place] = table.colours[at]
    shown_in = tuple(own[place] for place in range(len(known)))
    return MaskCode(tuple(known), shown_in, meaning, table.colours, numbers, options, table.where)


def table_of_numbers(numbers: Collection[int], options: LabelOptions, where: object) -> ClassTable:
    """Classes for the numbers that occur in masks, each called by its number, which is told.

    Raises:
        DataError: if there are fewer than two.
    """
    found = sorted(number for number in numbers if not _is_ignored(number, options))
    if len(found) < 2:
        ignored = sorted({*numbers} - {*found})
        beside = f" beside {_listed(ignored)}, which counts for nothing" if ignored else ""
        raise DataError(
            f"{shown(where)}: masks hold {_listed(found) or 'nothing'} alone{beside}; there is nothing to tell apart. "
            "If 255 is a class, write classes.txt with a line `NAME R G B` for each, as `object 255 255 255`, or set "
            "another labels.ignore_index"
        )
    _tell(
        f"{shown(where)}: nothing names the classes (classes.txt beside the data would), so they are the {len(found)} "
        f"numbers in masks: {_listed(found)}"
    )
    return ClassTable("", tuple(map(str, found)), tuple(found))


def _numbers(table: ClassTable, options: LabelOptions) -> tuple[int, ...]:
    """The number of each class in masks."""
    if table.numbers is None:
        first = int(options.reduce_zero_label)
        return tuple(range(first, first + len(table.names)))
    counts_from_0 = options.reduce_zero_label and 0 in table.numbers
    numbers = tuple(number + counts_from_0 for number in table.numbers)
    if max(numbers) > 255:
        raise DataError(f"{shown(table.where)}: number {max(table.numbers)} has no place in masks of 8 bits")
    return numbers


def _is_ignored(number: int, options: LabelOptions) -> bool:
    if options.reduce_zero_label and int(reduced(np.array(number, np.uint8))) == IGNORED:
        return True
    return number == options.ignore_index


def _listed(values: Sequence[int]) -> str:
    if len(values) > 2 and values == [*range(values[0], values[-1] + 1)]:
        return f"{values[0]} to {values[-1]}"
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(map(str, values[:_NAMED])) + more


def _tell(line: str) -> None:
    warnings.warn(line, DataWarning, stacklevel=2)
