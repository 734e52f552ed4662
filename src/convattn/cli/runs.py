"""`convattn runs`: compare the training runs below a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from convattn.cli.arguments import UsageError, parse
from convattn.cli.console import console, say, warn
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

_DESCRIPTION = """Compare training runs: how far they are, how well they do, in which settings they differ.

Examples:
    convattn runs runs
    convattn runs runs --output runs/comparison.html
    convattn runs runs --json
"""


@dataclass(frozen=True)
class Options:
    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Run folders are looked for in it and below it."""
    output: Path | None = None
    """Write a page with their curves over one another to this file (.html)."""
    json: bool = False
    """Print one JSON object."""


def command(args: list[str]) -> int:
    """Run `convattn runs` with these arguments; returns the exit status."""
    options = parse(Options, args, command="runs", description=_DESCRIPTION)
    if options.output is not None and options.output.suffix != ".html":
        raise UsageError(f"--output {options.output} must end in .html")
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
