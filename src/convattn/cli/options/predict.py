"""What `convattn predict` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from convattn.cli.arguments import UsageError, parse
from convattn.cli.options.files import IMAGES, MODEL

__all__ = ["Options", "read"]

_DESCRIPTION = """Classify images. A file that cannot be read is named on standard error, and the others go on.

Examples:
    convattn predict runs/pictures cat.jpg dog.jpg
    convattn predict smt_tiny cat.jpg --top 3 --json
    convattn predict pictures.onnx cat.jpg
"""
_IMAGES = f"Image files: {IMAGES}."


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...", help=_IMAGES)]
    top: int = 5
    """How many classes to show, the most probable first."""
    json: bool = False
    """Print one JSON list."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="predict", description=_DESCRIPTION)
    if not options.images:
        raise UsageError("no image given; write convattn predict MODEL IMAGE...")
    if options.top < 1:
        raise UsageError(f"--top {options.top} must be 1 or more")
    return options
