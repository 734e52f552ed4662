"""`convattn runs`: compare the training runs below a folder."""

from collections.abc import Iterator

from convattn.cli.console import console, print_table, say, warn
from convattn.cli.options.runs import Options
from convattn.json_text import json_text
from convattn.report.comparison import comparison_report, comparison_tables, differing_fields, find_runs, run_row
from convattn.report.run import RunError
from convattn.report.write import write_report
from convattn.shown import shown
from convattn.task import Table

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn runs` with these options; returns the exit status."""
    runs, problems = find_runs(options.directory)
    for problem in problems:
        warn(f"passed over: {problem}")
    if not runs:
        raise RunError(f"{options.directory}: no {'whole ' if problems else ''}run here or below")
    if options.output is not None:
        write_report(options.output, comparison_report(runs, f"Runs in {options.directory}", problems))
    if options.json:
        differing = differing_fields(list(runs.values()))
        rows = [
            {"run": name, **run_row(run), "settings": {field: differing[field][index] for field in differing}}
            for index, (name, run) in enumerate(runs.items())
        ]
        print(json_text({"runs": rows, "passed_over": problems}, indent=2))
        return 0
    for number, table in enumerate(comparison_tables(runs)):
        if number:
            print()
        say(table.title)
        for part in _fitting(table, console().width):
            print_table(part)
    if options.output is not None:
        print()
        say(str(options.output))
    return 0


def _fitting(table: Table, width: int) -> Iterator[Table]:
    """The table in parts that are no wider than `width` characters: its first column and some of the others each."""
    columns = list(zip(table.columns, *table.rows, strict=True))
    first, *needed = [2 + max(len(shown(cell)) for cell in cells) for cells in columns]
    start = 1
    while start < len(columns):
        end, room = start + 1, width - first - needed[start - 1]
        while end < len(columns) and needed[end - 1] <= room:
            room -= needed[end - 1]
            end += 1
        chosen = [0, *range(start, end)]
        names, *rows = zip(*(columns[at] for at in chosen), strict=True)
        numbers = frozenset(place for place, at in enumerate(chosen) if at in table.numbers)
        yield Table(table.title, names, tuple(rows), numbers)
        start = end
