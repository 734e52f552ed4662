"""What `convattn data` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from convattn.cli.arguments import UsageError, check_page
from convattn.cli.help import HELP_WORDS
from convattn.cli.options.files import IMAGES
from convattn.cli.options.of_task import parse_for
from convattn.rooms import DEFAULT, kind_of_data

__all__ = ["Options", "read"]

_DESCRIPTION = """Read every image of a data set once and say what is wrong with it: images that cannot be read,
pictures that are there twice (by their pixels, whatever the file) or in two splits, odd modes and sizes.

The data set is opened as training does it. The exit status is 1 if training would refuse it or stop: a layout or labels
that are not understood, or more than 1 % of broken training or validation images.

Examples:
    convattn data check pictures
    convattn data check pictures --output pictures.html
    convattn data check imagenet/train.tar --validation imagenet/val.tar --json
"""
_SOURCE = f"A folder with train and val, or another layout of the data page; images are {IMAGES}."


@dataclass(frozen=True)
class Options:
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR", help=_SOURCE)]
    validation: str | None = None
    """Where the validation images are, if not in the same folder: as `data.validation` of a run."""
    output: Path | None = None
    """Write a page with a contact sheet of the classes to this file (.html)."""
    json: bool = False
    """Print one JSON object."""


def read(args: Sequence[str]) -> Options:
    """The options of these words; raises UsageError for what is wrong with them."""
    action, rest = args[:1], args[1:]
    if set(action) & set(HELP_WORDS):
        rest = action
    elif action != ["check"]:
        found = f"unknown action {action[0]!r}" if action else "missing action"
        raise UsageError(f"{found}, there is check; see convattn data --help")
    kind = next((kind for word in rest if (kind := _kind(word)) != DEFAULT), DEFAULT)
    options: Options = parse_for(kind, Options, "check", rest, command="data check", description=_DESCRIPTION)
    check_page(options.output)
    return options


def _kind(word: str) -> str:
    """The task whose data a word names."""
    return DEFAULT if word.startswith("-") or not Path(word).exists() else kind_of_data(word)
