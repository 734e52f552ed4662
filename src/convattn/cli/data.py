"""`convattn data check`: look through a data set before training on it."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from convattn.cli.console import console, notes, say
from convattn.cli.options.data import Options
from convattn.data.check import DataCheck, SplitCheck, check_data, open_splits
from convattn.shown import shown

__all__ = ["command"]

_FEW_CLASSES = 20  # of more, only the smallest and greatest are listed
_FEW_NAMES = 5


def command(options: Options) -> int:
    """Run `convattn data` with these options; returns the exit status, 1 if training would stop."""
    opened = open_splits(options.source, validation=options.validation, validation_labels=options.validation_labels)
    columns = (TextColumn("checking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes(), disable=not notes().is_terminal, transient=True) as progress:
        task = progress.add_task("checking", total=sum(map(len, opened.splits.values())))
        check = check_data(opened, lambda images: progress.advance(task, images))
    if options.output is not None:
        from convattn.report.contact_sheet import write_contact_sheet

        write_contact_sheet(options.output, check, opened.splits, options.source)
    if options.json:
        print(json.dumps(_as_json(check), indent=2))
    else:
        _print(check, options.output)
    return 1 if check.stops else 0


def _as_json(check: DataCheck) -> dict:
    return {
        "splits": {name: asdict(split) for name, split in check.splits.items()},
        "duplicates": [[asdict(found) for found in group] for group in check.duplicates],
        "leaked": [[asdict(found) for found in group] for group in check.leaked],
        "contradicting": check.mislabelled,
        "odd": [asdict(found) | {"what": what} for found, what in check.odd],
        "notes": list(check.notes),
        "stops": list(check.stops),
    }


def _print(check: DataCheck, page: Path | None) -> None:
    console().print(_splits_table(check))
    console().print(_classes_table(check))
    for split, found in check.splits.items():
        _list(f"{split}: cannot be read", found.corrupt.values())
    for title, groups in (("in more than one split", check.leaked), ("twice or more in a split", check.duplicates)):
        _list(title, (" = ".join(f"{found.path} ({found.class_name})" for found in group) for group in groups))
    _list("odd", (f"{found.path}: {what}" for found, what in check.odd))
    if check.mislabelled:
        say(f"{check.mislabelled} pictures are there under different classes")
    for line in check.notes:
        say(line)
    for line in check.stops:
        say(f"would stop a run: {line}")
    if page is not None:
        say(f"contact sheet: {page}")


def _splits_table(check: DataCheck) -> Table:
    table = Table("split", "images", "classes", "cannot be read", "width", "height", "modes", box=None)
    for name, split in check.splits.items():
        modes = ", ".join(f"{mode} {count:,}" for mode, count in split.modes.items())
        present = sum(count > 0 for count in split.classes.values())
        sizes = (" to ".join(f"{side:g}" for side in sides) for sides in (split.widths, split.heights))
        table.add_row(name, f"{split.images:,}", f"{present:,}", f"{len(split.corrupt):,}", *sizes, modes)
    return table


def _classes_table(check: DataCheck) -> Table:
    """Images of each class; of many classes, of the smallest and the greatest."""
    first: SplitCheck = next(iter(check.splits.values()))
    names = list(first.classes)
    if len(names) > _FEW_CLASSES:
        ordered = sorted(names, key=lambda name: first.classes[name])
        names = [*ordered[: _FEW_CLASSES // 2], *ordered[-_FEW_CLASSES // 2 :]]
    table = Table(Column("class", overflow="fold"), *check.splits, box=None)
    for name in names:
        table.add_row(shown(name), *(f"{split.classes[name]:,}" for split in check.splits.values()))
    return table


def _list(title: str, lines: Iterable[str]) -> None:
    named = list(lines)
    for line in named[:_FEW_NAMES]:
        say(f"{title}: {line}")
    if len(named) > _FEW_NAMES:
        say(f"{title}: {len(named) - _FEW_NAMES:,} more")
