"""What `convattn predict` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from convattn.atomic import check_writable
from convattn.cli.arguments import UsageError, check_at_least
from convattn.cli.options.files import IMAGES, MODEL
from convattn.cli.options.of_task import parse_for_task

__all__ = ["TABLES", "Options", "read"]

TABLES = (".csv", ".jsonl")

_DESCRIPTION = """What a model says of images. A file that cannot be read is named on standard error; the others go on.

Examples:
    convattn predict runs/pictures cat.jpg dog.jpg
    convattn predict runs/pictures photos --output photos.csv
    convattn predict runs/pictures "photos/2026-*/*.jpg" --output drawn
    convattn predict smt_tiny cat.jpg --top 3 --json
    convattn predict pictures.onnx list.csv --output found.jsonl
"""
_IMAGES = f"Image files ({IMAGES}), folders of them, patterns, or lists of files."


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...", help=_IMAGES)]
    batch_size: int = 16
    """Images in a batch."""
    output: Path | None = None
    """Write a table (.csv, .jsonl), or into a folder: each image with what was found drawn into it, masks as PNG
    files, and predictions.json with all of it."""
    json: bool = False
    """Print one JSON list."""


def read(args: Sequence[str]) -> Any:
    """The options of these words, with those of the model's task; raises UsageError for what is wrong with them."""
    options = parse_for_task(Options, "prediction", args, command="predict", description=_DESCRIPTION)
    if not options.images:
        raise UsageError("no image given; write convattn predict MODEL IMAGE...")
    check_at_least(1, options, "batch_size")
    place: Path | None = options.output
    if place is not None:
        is_table = place.suffix in TABLES
        if place.is_dir() if is_table else place.suffix or place.is_file():
            raise UsageError(f"--output {place} is neither a table ({', '.join(TABLES)}) nor a folder")
        check_writable(place.parent if is_table else place)
    return options
