"""`convattn eval`: the accuracy of a model on a folder of labelled images."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from torch import nn

from convattn.classification.evaluate import Evaluation, evaluate
from convattn.classification.labels import in_model_order
from convattn.cli.arguments import UsageError, parse
from convattn.data.dataset import ImageDataset
from convattn.data.loader import Samples, evaluation_loader
from convattn.data.sources import open_evaluation
from convattn.data.transforms import transforms_for
from convattn.saved import open_model
from convattn.training.config_json import config_from_json

__all__ = ["command"]

_DESCRIPTION = """Evaluate a model on labelled images, prepared as its weights expect: size, crop, interpolation.

Examples:
    convattn eval runs/pictures
    convattn eval runs/pictures --data pictures/test
    convattn eval smt_tiny --data imagenet --batch-size 64
    convattn eval timm:resnet50 --data imagenet/val --json
    convattn eval smt_tiny --data ILSVRC2012_img_val --labels ILSVRC2012_validation_ground_truth.txt
"""


@dataclass(frozen=True)
class Options:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model file, or the name of a model with published weights (`timm:NAME` for timm's)."""
    data: str | None = None
    """Folder with val/CLASS/IMAGE or test/CLASS/IMAGE, class folders, or another layout of the data page; `digits` for
    scikit-learn's test split. By default the data that the run was trained on."""
    labels: str | None = None
    """Label file of a folder without class folders, such as ImageNet's flat validation folder."""
    batch_size: int = 32
    """Images in a batch."""
    workers: int = 0
    """Processes that load images; 0 loads in this one."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the GPU if there is one."""
    json: bool = False
    """Print one JSON object."""


def command(args: list[str]) -> int:
    """Run `convattn eval` with these arguments; returns the exit status."""
    options = parse(Options, args, command="eval", description=_DESCRIPTION)
    if options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size} must be 1 or more")
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers} must be 0 or more")
    data, labels = (options.data, options.labels) if options.data else _data_of_run(Path(options.model), options.labels)
    model = open_model(options.model)
    dataset = in_model_order(open_evaluation(data, _input_side(model), labels=labels), model)
    result = _evaluate(options, model, dataset)
    if options.json:
        print(json.dumps(_as_json(result)))
    else:
        _print(result)
    for reason in result.unreadable.values():
        print(f"left out: {reason}", file=sys.stderr)
    return 0


def _data_of_run(folder: Path, labels: str | None) -> tuple[str, str | None]:
    """What the run in `folder` was validated on, and the label file of it."""
    stored = folder / "config.json"
    if not stored.is_file():
        raise UsageError(f"--data is missing, and {folder} is no run folder that would name its own")
    data = config_from_json(stored.read_text()).data
    return data.validation or data.source, labels or data.validation_labels


def _input_side(model: nn.Module) -> int:
    cfg: dict = model.pretrained_cfg or {}  # type: ignore[assignment]
    return cfg.get("input_size", (3, 32, 32))[1]


def _evaluate(options: Options, model: nn.Module, dataset: ImageDataset) -> Evaluation:
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    model = model.to(device).to(memory_format=torch.channels_last)
    loader = evaluation_loader(Samples(dataset, transforms_for(model)), options.batch_size, workers=options.workers)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(dataset))
        return evaluate(model, loader, device, on_batch=lambda images: progress.advance(task, images))


def _as_json(result: Evaluation) -> dict:
    return {
        "images": len(result.labels),
        "top1": result.top1,
        "top1_interval": result.top1_interval,
        f"top{result.topk_size}": result.top5,
        f"top{result.topk_size}_interval": result.top5_interval,
        "loss": result.loss,
        "images_per_second": result.images_per_second,
        "unreadable": list(result.unreadable),
    }


def _print(result: Evaluation) -> None:
    for name, value, (low, high) in (
        ("top-1", result.top1, result.top1_interval),
        (f"top-{result.topk_size}", result.top5, result.top5_interval),
    ):
        print(f"{name:8}{value:6.2f} %  (95 % interval {low:.2f} to {high:.2f})")
    print(f"{'loss':8}{result.loss:.4f}")
    print(f"{'images':8}{len(result.labels):,} at {result.images_per_second:,.0f} images/s")
