"""What `convattn export` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from convattn.cli.arguments import UsageError, check_at_least
from convattn.cli.options.of_task import parse_for_task
from convattn.deploy.suffixes import SUFFIXES
from convattn.size_option import SizeOption

__all__ = ["Options", "read"]

_DESCRIPTION = """Write a model to a file for another runtime, read it back and compare the numbers.

The format follows the suffix, or --format. The file is kept only if it agrees with the model: outputs on photographs
and on random numbers at every size that it promises to take, and, with --evaluate, its figure on images whose
truth is known.

Examples:
    convattn export runs/photos photos.onnx
    convattn export smt_tiny smt_tiny.pt2 --pretrained --dynamic all
    convattn export runs/photos photos.onnx --image-size 64 96 --photographs holiday --json
    convattn export runs/photos photos.xml --precision bf16 --evaluate photos/val --max-drop 1
    convattn export runs/photos photos.xml --precision int8 --calibration photos/train --evaluate photos/val
"""
_PATH = (
    f"File to write; its suffix says the format: {', '.join(dict.fromkeys(SUFFIXES.values()))}. An older one is "
    "replaced once the new one agrees."
)
_FORMAT = f"Name of the format, where the suffix does not tell: {', '.join(SUFFIXES)}."


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model file (.safetensors), or a model's name (`timm:NAME` for timm's)."""
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH", help=_PATH)]
    format: Annotated[str | None, tyro.conf.arg(help=_FORMAT)] = None
    precision: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """Of the file's arithmetic; which of them a format can have stands on the export page."""
    calibration: Path | None = None
    """For int8: folder of images like those to come."""
    pretrained: bool = False
    """Load the authors' weights when MODEL is a name."""
    image_size: SizeOption = None
    """Side, HEIGHT WIDTH or CHANNELS HEIGHT WIDTH to trace and check at; by default what the weights expect."""
    dynamic: Literal["none", "batch", "all"] | None = None
    """What may change when the file is used: nothing, the batch size, or batch, height and width. By default the batch
    size where the format can leave it free."""
    photographs: Path | None = None
    """Folder of images to compare on, beside those of this package."""
    tolerance: float | None = None
    """Largest relative error that counts as agreement; by default that of the precision, see the export page."""
    evaluate: str | None = None
    """Images as `convattn eval` takes them: the first metric (top-1 of a classifier) of the model and of the file."""
    max_drop: float | None = None
    """With --evaluate: by how much that metric may get worse, in its unit; 0.5 by default."""
    json: bool = False
    """Print the report as JSON, also of a file that was not kept."""


def read(args: Sequence[str]) -> Any:
    """The options of these words, with those of the model's task; raises UsageError for what is wrong with them."""
    options = parse_for_task(Options, "export", args, command="export", description=_DESCRIPTION)
    if options.max_drop is not None and options.evaluate is None:
        raise UsageError("--max-drop has no effect without --evaluate DIR")
    check_at_least(0, options, "max_drop")
    return options
