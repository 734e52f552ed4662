"""What `convattn convert` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convattn.cli.arguments import UsageError, parse

__all__ = ["Options", "read"]

_DESCRIPTION = """Read the authors' checkpoint, find out which model it is of, and write it as a model file.

The checkpoint is read without running anything that is in it. The result loads with every command here
(`convattn predict OUT.safetensors photo.jpg`) and holds the weights under this package's names.

Examples:
    convattn convert smt_tiny.pth smt_tiny.safetensors
    convattn convert smt_large_22k.pth out.safetensors --json
"""


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The authors' file (.pth, .pt, .safetensors)."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """The model file to write (.safetensors)."""
    json: bool = False
    """Print what was found as JSON."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="convert", description=_DESCRIPTION)
    if options.target.suffix != ".safetensors":
        raise UsageError(f"{options.target}: the target must end in .safetensors")
    if options.target.resolve() == options.source.resolve():
        raise UsageError(f"{options.target}: the target must be another file than the source")
    return options
