"""What `convattn runs` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convattn.cli.arguments import check_page, parse

__all__ = ["Options", "read"]

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


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="runs", description=_DESCRIPTION)
    check_page(options.output)
    return options
