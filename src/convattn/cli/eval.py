"""`convattn eval`: the accuracy of a model on labelled images, beside what its authors published."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from rich.table import Table
from timm.data import ImageNetInfo, resolve_data_config
from torch import nn

from convattn.backbones.registry import official_weights
from convattn.classification.evaluate import Evaluation, evaluate, wilson_interval
from convattn.classification.labels import in_model_order
from convattn.classification.real_labels import RealLabels, read_real_labels
from convattn.cli.arguments import UsageError
from convattn.cli.console import console, notes, say, warn
from convattn.cli.options.eval import Options
from convattn.data.class_names import class_names
from convattn.data.dataset import DataError, ImageDataset
from convattn.data.loader import Batch, Samples, evaluation_loader
from convattn.data.sources import open_evaluation
from convattn.data.transforms import transforms_for
from convattn.deploy.load import ExportedModel
from convattn.saved import open_classifier
from convattn.shown import shown
from convattn.training.output import check_place, holds_run, stored_config
from convattn.training.places import with_absolute_paths
from convattn.training.unreadable import check_unreadable, lost_classes
from convattn.weights.records import OfficialWeights

__all__ = ["command"]


_SYNSETS = ImageNetInfo("imagenet-1k").label_names()


@dataclass(frozen=True)
class Findings:
    """What is printed, as text or JSON."""

    options: Options
    precision: str
    protocol: dict[str, Any]
    result: Evaluation
    class_names: Sequence[str]
    described: Sequence[str]  # the same in plain words, where they are known
    real: tuple[float, int] | None  # accuracy on the ReaL labels, percent, and over how many images
    published: OfficialWeights | None
    no_published: str  # why there is none


def command(options: Options) -> int:
    """Run `convattn eval` with these options; returns the exit status."""
    source, labels = _source(options)
    model = open_classifier(options.model)
    precision = _precision(options, model)
    dataset = _open(source, labels, model)
    real_labels = _real_labels(options.real_labels, model, dataset) if options.real_labels else None
    published, no_published = _published(options.model, dataset)
    result = _evaluate(options, model, dataset, source)
    for reason in result.unreadable.values():
        warn(f"left out: {reason}")
    for name in lost_classes(dataset, result.unreadable):
        warn(f"class {name!r} is not evaluated: none of its images can be read")
    found = Findings(
        options=options,
        precision=precision,
        protocol=_protocol(model),
        result=result,
        class_names=dataset.classes,
        described=class_names(model) or dataset.classes,
        real=real_labels.accuracy(result.paths, result.predictions) if real_labels else None,
        published=published,
        no_published=no_published,
    )
    if options.json:
        print(json.dumps(_as_json(found)))
    else:
        _print(found)
    return 0


def _source(options: Options) -> tuple[str, Path | None]:
    """Where the images are and their label file, if any; by default those that the run in the folder MODEL goes by."""
    if options.data is not None:
        return options.data, options.labels
    if not holds_run(Path(options.model)):
        raise UsageError(f"--data is missing, and {options.model} is no run folder that would name its own")
    stored = stored_config(Path(options.model))
    data = with_absolute_paths(stored).data
    if data != stored.data:
        warn(f"{options.model}: stored without their folder, its images are taken from {Path.cwd()}")
    labels = Path(data.validation_labels) if data.validation_labels else None
    images = data.validation or data.source
    check_place("data.validation" if data.validation else "data.source", images, "--data")
    return images, options.labels or labels


def _precision(options: Options, model: nn.Module) -> str:
    if not isinstance(model, ExportedModel) or model.metadata is None:
        return options.precision
    own = model.metadata.precision
    if options.precision != "fp32":
        raise UsageError(
            f"--precision {options.precision} has no effect on {options.model}, which is in {own}; "
            f"export the model in {options.precision}"
        )
    return own


def _open(source: str, labels: Path | None, model: nn.Module) -> ImageDataset:
    cfg: Any = model.pretrained_cfg or {}
    return in_model_order(open_evaluation(source, cfg.get("input_size", (3, 32, 32))[1], labels=labels), model)


def _real_labels(path: Path, model: nn.Module, dataset: ImageDataset) -> RealLabels:
    """The labels, once it is sure that they will fit: before the evaluation, which may take an hour."""
    cfg: Any = model.pretrained_cfg or {}
    if model.num_classes != 1000 or list(cfg.get("label_names") or _SYNSETS) != _SYNSETS:
        raise DataError(
            "--real-labels are for a model of ImageNet's 1,000 classes in their usual order; leave them out"
        )
    labels = read_real_labels(path)
    for name in dataset.paths:
        labels.of(name)
    return labels


def _published(source: str, dataset: ImageDataset) -> tuple[OfficialWeights | None, str]:
    """The record of the authors' weights that the model holds, if its figures are over the same classes; or why not."""
    if Path(source).exists() or source.startswith("timm:"):  # as `open_model` tells names from files
        return None, "these are not the authors' weights"
    record = official_weights(source)
    if record.top1 is None:
        return None, f"the authors state no accuracy of {record.tag}"
    present = len(set(dataset.labels))
    if present < record.num_classes:
        return None, f"the data has {present:,} of the {record.num_classes:,} classes that the authors evaluate on"
    return record, ""


def _evaluate(options: Options, model: nn.Module, dataset: ImageDataset, source: str) -> Evaluation:
    """Raises UnreadableError as soon as too many images cannot be read."""
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    model = model.to(device).to(memory_format=torch.channels_last)
    samples = Samples(dataset, transforms_for(model))
    loader = evaluation_loader(samples, options.batch_size, workers=options.workers, device=device)
    # Runtimes read images as they lie in memory.
    layout = torch.contiguous_format if isinstance(model, ExportedModel) else torch.channels_last

    def bf16() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16)

    autocast: Callable[[], AbstractContextManager] = bf16 if options.precision == "bf16" else nullcontext
    unreadable: dict[str, str] = {}

    def batches() -> Iterator[Batch]:
        for batch in loader:
            unreadable.update(batch.unreadable)
            check_unreadable(unreadable, len(dataset), f"images of {source}")
            yield batch

    with Progress(console=notes(), disable=not notes().is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(dataset))
        return evaluate(
            model,
            batches(),
            device,
            autocast=autocast,
            memory_format=layout,
            on_batch=lambda images: progress.advance(task, images),
        )


def _protocol(model: nn.Module) -> dict[str, Any]:
    """How images are prepared, as `transforms_for` does it."""
    config = resolve_data_config(pretrained_cfg=model.pretrained_cfg, model=model)
    return {key: config[key] for key in ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")}


def _as_json(found: Findings) -> dict:
    result, topk = found.result, f"top{found.result.topk_size}"
    content = {
        "model": found.options.model,
        "precision": found.precision,
        "protocol": found.protocol,
        "images": len(result.labels),
        "top1": result.top1,
        "top1_interval": result.top1_interval,
        topk: result.top5,
        f"{topk}_interval": result.top5_interval,
        "real": None,
        "loss": result.loss,
        "calibration_error": result.calibration_error,
        "images_per_second": result.images_per_second,
        "model_images_per_second": result.model_images_per_second,
        "published": None,
        "unreadable": list(result.unreadable),
    }
    if found.real is not None:
        top1, images = found.real
        content["real"] = {"top1": top1, "top1_interval": wilson_interval(top1, images), "images": images}
    if found.published is not None:
        record = found.published
        content["published"] = {"top1": record.top1, "top5": record.top5, "source": record.source}
    if found.options.per_class:
        content["classes"] = [
            {
                "class": found.class_names[row.label],
                "name": found.described[row.label],
                "images": row.images,
                "top1": row.top1,
                "confused_with": None if row.confused_with is None else found.class_names[row.confused_with],
                "confused": row.confused,
            }
            for row in result.per_class()
        ]
    return content


def _print(found: Findings) -> None:
    result, protocol, published = found.result, found.protocol, found.published
    _, height, width = protocol["input_size"]
    crop = "squashed to the square" if protocol["crop_mode"] == "squash" else f"crop ratio {protocol['crop_pct']:g}"
    say(f"{'input':<13}{height} x {width}, {crop}, {protocol['interpolation']}, {found.precision}")
    lines = [
        ("top-1", result.top1, len(result.labels), published and published.top1),
        (f"top-{result.topk_size}", result.top5, len(result.labels), published and published.top5),
    ]
    if found.real is not None:
        lines.append(("ReaL top-1", *found.real, None))
    for name, value, images, theirs in lines:
        low, high = wilson_interval(value, images)
        beside = f"  published: {theirs:.2f} %" if theirs else ""
        say(f"{name:<13}{value:6.2f} %  (95 % interval {low:.2f} to {high:.2f}){beside}")
    say(f"{'loss':<13}{result.loss:.4f}")
    say(f"{'calibration':<13}{result.calibration_error:.2f} % expected error, 15 bins")
    over = f", {found.real[1]:,} with ReaL labels" if found.real is not None else ""
    say(f"{'images':<13}{len(result.labels):,}{over}")
    say(f"{'speed':<13}{result.images_per_second:,.1f} images/s, {result.model_images_per_second:,.1f} without loading")
    if published is not None:
        say(f"{'published':<13}on ImageNet-1k's 50,000 validation images: {published.source}")
    else:
        say(f"{'published':<13}none: {found.no_published}")
    if found.options.per_class:
        _print_classes(found)


def _print_classes(found: Findings) -> None:
    """The classes, the worst first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class", overflow="fold")
    for title in ("images", "top-1"):
        table.add_column(title, justify="right")
    table.add_column("most confused with")

    def called(label: int) -> str:
        name, words = found.class_names[label], found.described[label]
        return shown(name if words == name else f"{name} {words}")

    for row in sorted(found.result.per_class(), key=lambda row: row.top1):
        confused = "-" if row.confused_with is None else f"{called(row.confused_with)} ({row.confused})"
        table.add_row(called(row.label), f"{row.images:,}", f"{row.top1:.2f} %", confused)
    console().print("", table, sep="\n")
