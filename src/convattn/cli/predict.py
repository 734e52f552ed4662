"""`convattn predict`: what a model sees in images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import tyro
from torch import nn

from convattn.cli.arguments import UsageError, parse
from convattn.cli.console import say, warn
from convattn.data.class_names import class_names
from convattn.data.images import ImageError, read_image
from convattn.data.transforms import Transform, transforms_for
from convattn.saved import open_classifier

__all__ = ["command"]

_DESCRIPTION = """Classify images. A file that cannot be read is named on standard error, and the others go on.

Examples:
    convattn predict runs/pictures cat.jpg dog.jpg
    convattn predict smt_tiny cat.jpg --top 3 --json
    convattn predict pictures.onnx cat.jpg
"""


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model file, an exported file (.onnx, .xml, .pt2, …; a .pt2 runs code of whoever wrote it), or the
    name of a model with published weights (`timm:NAME` for timm's)."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Image files."""
    top: int = 5
    """How many classes to show, the most probable first."""
    json: bool = False
    """Print one JSON list."""


def command(args: list[str]) -> int:
    """Run `convattn predict` with these arguments; returns the exit status, 1 if an image could not be read."""
    options = parse(Options, args, command="predict", description=_DESCRIPTION)
    if not options.images:
        raise UsageError("no image given; write convattn predict MODEL IMAGE...")
    if options.top < 1:
        raise UsageError(f"--top {options.top} must be 1 or more")
    model = open_classifier(options.model)
    transform, names = transforms_for(model), class_names(model)
    results, failed = [], False
    for path in options.images:
        try:
            predictions = predict(model, transform, names, path, options.top)
        except ImageError as error:
            warn(str(error))
            failed = True
            continue
        results.append({"image": path, "predictions": predictions})
        if not options.json:
            shown = ", ".join(f"{entry['class']} {100 * entry['probability']:.1f} %" for entry in predictions)
            say(f"{path}: {shown}")
    if options.json:
        print(json.dumps(results))
    return 1 if failed else 0


@torch.inference_mode()
def predict(model: nn.Module, transform: Transform, names: Sequence[str] | None, path: str, top: int) -> list[dict]:
    """The `top` most probable classes of one image file: `class` (its name, or its number as text), `probability` 0..1.

    Raises:
        ImageError: if the file cannot be read.
    """
    probabilities = model(transform(read_image(path))[None]).softmax(dim=1)[0]
    values, indices = probabilities.topk(min(top, len(probabilities)))
    return [
        {"class": str(index) if names is None else names[index], "probability": value}
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]
