"""`convattn runs`: compare the training runs below a folder."""

import json

from convattn.cli.console import print_table, say, warn
from convattn.cli.options.runs import Options
from convattn.report.comparison import (
    differing_fields,
    figures_table,
    find_runs,
    run_row,
    settings_table,
    write_comparison,
)
from convattn.report.run import RunError

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
    print_table(figures_table(runs))
    if (settings := settings_table(runs)).rows:
        print()
        print_table(settings)
    if options.output is not None:
        print()
        say(str(options.output))
    return 0
