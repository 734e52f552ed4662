"""What `convattn models` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from convattn.cli.arguments import UsageError, parse

__all__ = ["Options", "read"]

_DESCRIPTION = """List models, or show one in detail.

Accuracies are the authors' published figures, with their source; nothing here was measured anew.

Examples:
    convattn models
    convattn models "smt_*"
    convattn models smt_tiny --image-size 384
    convattn models runs/photos
    convattn models timm:resnet50 --json
"""


@dataclass(frozen=True)
class Options:
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = "*"
    """A pattern (quote it), a model's name, `timm:NAME`, a run folder or a model file."""
    image_size: int | None = None
    """Count at this height and width in pixels; by default what the weights expect."""
    json: bool = False
    """Print JSON instead of a table."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    options = parse(Options, args, command="models", description=_DESCRIPTION)
    if options.image_size is not None and options.image_size < 1:
        raise UsageError(f"image-size {options.image_size} must be 1 or more")
    return options
