"""`convattn data check`: look through a data set before training on it."""

from collections.abc import Iterable
from pathlib import Path

from convattn.cli.console import print_table, progress_bar, say
from convattn.cli.options.data import Options
from convattn.data.check import DataCheck, SplitCheck, splits_table
from convattn.json_text import json_text
from convattn.rooms import data_of, kind_of_data

__all__ = ["command"]

_FEW_CLASSES = 20  # of more, only the smallest and greatest are listed
_FEW_NAMES = 5


def command(options: Options) -> int:
    """Run `convattn data` with these options; returns the exit status, 1 if training would stop."""
    room = data_of(kind_of_data(options.source))
    opened = room.open_splits(options.source, options.validation, options)
    with progress_bar() as progress:
        task = progress.add_task("checking", total=sum(map(len, opened.splits.values())))
        check = room.check_data(opened, lambda images: progress.advance(task, images))
    if options.output is not None:
        from convattn.report.contact_sheet import write_contact_sheet

        write_contact_sheet(options.output, check, opened.splits, options.source, room)
    if options.json:
        print(json_text(check.as_json(), indent=2))
    else:
        _print(check, options.output)
    return 1 if check.stops else 0


def _print(check: DataCheck, page: Path | None) -> None:
    print_table(splits_table(check))
    print_table(check.class_table(_FEW_CLASSES))
    for name, split in check.splits.items():
        for kind, reasons in _by_kind(split).items():
            _list(f"{name}: {kind}", reasons)
    for title, groups in (("in more than one split", check.leaked), ("twice or more in a split", check.duplicates)):
        _list(title, (" = ".join(map(str, group)) for group in groups))
    _list("odd", (f"{found.path}: {what}" for found, what in check.odd))
    if check.contradicting:
        say(f"{check.contradicting} pictures are there {check.contradiction}")
    for line in check.notes:
        say(line)
    for line in check.stops:
        say(f"would stop a run: {line}")
    if page is not None:
        say(f"contact sheet: {page}")


def _by_kind(split: SplitCheck) -> dict[str, list[str]]:
    """What is wrong with files, those with the same kind of problem together."""
    found: dict[str, list[str]] = {}
    for path, reason in split.corrupt.items():
        found.setdefault(split.kinds[path], []).append(reason)
    return found


def _list(title: str, lines: Iterable[str]) -> None:
    named = list(lines)
    for line in named[:_FEW_NAMES]:
        say(f"{title}: {line}")
    if len(named) > _FEW_NAMES:
        say(f"{title}: {len(named) - _FEW_NAMES:,} more")
