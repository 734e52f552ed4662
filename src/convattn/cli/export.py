"""`convattn export`: a model file for another runtime, with proof."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from convattn.cli.arguments import parse
from convattn.deploy.export import export
from convattn.saved import open_model

__all__ = ["command"]

_DESCRIPTION = """Write a model to a file for another runtime, read it back and compare the numbers.

The format follows the suffix: .onnx or .pt2. The file is kept only if it agrees with the model.

Examples:
    convattn export runs/photos photos.onnx
    convattn export smt_tiny smt_tiny.pt2 --pretrained --dynamic all
    convattn export runs/photos photos.onnx --image-size 64 96 --json
"""


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model file, or a model's name (`timm:NAME` for timm's)."""
    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """File to write; its suffix says the format."""
    pretrained: bool = False
    """Load the authors' weights when MODEL is a name."""
    image_size: tuple[int, int] | None = None
    """Height and width to trace and check at; by default what the model's weights expect."""
    dynamic: Literal["none", "batch", "all"] = "batch"
    """What may change when the file is used: nothing, the batch size, or batch, height and width."""
    tolerance: float = 1e-4
    """Largest relative error that counts as agreement."""
    json: bool = False
    """Print the report as JSON."""


def command(args: list[str]) -> int:
    """Run `convattn export` with these arguments."""
    options = parse(Options, args, command="export", description=_DESCRIPTION)
    model = open_model(options.model, pretrained=options.pretrained)
    with Console(stderr=True).status(f"exporting {options.model} to {options.path} and comparing"):
        report = export(
            model,
            options.path,
            input_size=options.image_size,
            dynamic=options.dynamic,
            tolerance=options.tolerance,
        )
    if options.json:
        print(report.to_json())
        return 0
    print(f"{report.path}: {report.format}, {report.file_mib:.1f} MiB, {report.fused_parts} parts fused")
    for check in report.checks:
        print(f"  input {' x '.join(map(str, check.input_shape))}: relative error {check.relative_error:.1e}")
    print(f"largest relative error {report.max_relative_error:.1e}, tolerance {report.tolerance:.0e}")
    return 0
