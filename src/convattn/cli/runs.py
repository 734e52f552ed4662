"""`convattn runs`: compare the training runs below a folder."""

import json

from rich.table import Table

from convattn.cli.console import console, say, warn
from convattn.cli.options.runs import Options
from convattn.report import content
from convattn.report.comparison import (
    differing_fields,
    figures_table,
    find_runs,
    run_row,
    settings_table,
    write_comparison,
)
from convattn.report.run import RunError
from convattn.shown import shown

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn runs` with these options; returns the exit status."""
    runs, problems = find_runs(options.directory)
    for problem in problems:
        warn(f"passed over: {problem}")
    if not runs:
        raise RunError(f"{options.directory}: no {'whole ' if problems else ''}run here or below")
    if options.output is not None:
        write_comparison(options.output, runs, f"Runs in {options.directory}", problems)
    if options.json:
        differing = differing_fields(list(runs.values()))
        rows = [
            {"run": name, **run_row(run), "settings": {field: differing[field][index] for field in differing}}
            for index, (name, run) in enumerate(runs.items())
        ]
        print(json.dumps({"runs": rows, "passed_over": problems}, indent=2))
        return 0
    _print(figures_table(runs), settings_table(runs))
    if options.output is not None:
        print()
        say(str(options.output))
    return 0


def _print(*tables: content.Table) -> None:
    """Tables as aligned columns, those without rows left out."""
    for number, rows in enumerate(each for each in tables if each.rows):
        table = Table(box=None, pad_edge=False)
        for index, column in enumerate(rows.columns):
            table.add_column(column.lower(), justify="right" if index in rows.numbers else "left")
        for row in rows.rows:
            table.add_row(*map(shown, row))
        console().print(*([""] if number else []), table, sep="\n")
