"""What `convattn eval` takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from convattn.cli.arguments import check_at_least, check_page
from convattn.cli.options.files import IMAGES, MODEL
from convattn.cli.options.of_task import parse_for_task

__all__ = ["Options", "read"]

_DESCRIPTION = """Evaluate a model on images of which the truth is known, prepared as its weights expect.

Examples:
    convattn eval runs/pictures
    convattn eval runs/pictures --data pictures/test --per-class --output test.html
    convattn eval smt_tiny --data imagenet --batch-size 64 --workers 8
    convattn eval smt_large.in22k_ft_in1k_384 --data imagenet --real-labels real.json --precision bf16
    convattn eval timm:resnet50 --data imagenet/val --json
    convattn eval pictures.onnx --data pictures/test
"""
_DATA = (
    "Folder with val/CLASS/IMAGE or test/CLASS/IMAGE, class folders, or another layout of the data page; `digits` for "
    f"scikit-learn's test split. By default the validation images of the run. Images are {IMAGES}."
)


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help=MODEL)]
    data: Annotated[str | None, tyro.conf.arg(help=_DATA)] = None
    batch_size: int = 32
    """Images in a batch."""
    workers: int = 0
    """Processes that load images; 0 loads in this one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model; bf16 by autocast. An exported file has the precision that it was written in."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the GPU if there is one."""
    output: Path | None = None
    """Write a page (.html) with every class, what is taken for what, and the mistakes."""
    json: bool = False
    """Print one JSON object."""


def read(args: Sequence[str]) -> Any:
    """The options of these words, with those of the model's task; raises UsageError for what is wrong with them."""
    options = parse_for_task(Options, "evaluation", args, command="eval", description=_DESCRIPTION)
    check_page(options.output)
    check_at_least(1, options, "batch_size")
    check_at_least(0, options, "workers")
    return options
