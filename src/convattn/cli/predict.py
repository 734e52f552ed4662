"""`convattn predict`: what a model sees in images."""

import json
from collections.abc import Sequence

import torch
from torch import nn

from convattn.cli.console import say, warn
from convattn.cli.options.predict import Options
from convattn.data.class_names import class_names
from convattn.data.images import ImageError, read_image
from convattn.data.transforms import Transform, transforms_for
from convattn.saved import open_classifier

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn predict` with these options; returns the exit status, 1 if an image could not be read."""
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
