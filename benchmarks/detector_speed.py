"""RetinaNet and Faster R-CNN on a ResNet-50, beside torchvision's own: a training step, and inference.

Both see the same two random images with the same boxes; repeats take turns. The share of what is neither backbone, neck
nor heads' layers (anchors, targets, losses, suppression) is what is left when these are timed by themselves.

Examples:
    python benchmarks/detector_speed.py
    python benchmarks/detector_speed.py --detectors retinanet --repeats 9 --threads 2
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.models import detection as theirs

import convattn

DETECTORS = {"retinanet": theirs.retinanet_resnet50_fpn, "faster_rcnn": theirs.fasterrcnn_resnet50_fpn}
CLASSES = 80


@dataclass(frozen=True)
class Options:
    detectors: tuple[str, ...] = ("retinanet", "faster_rcnn")
    """Which."""
    size: tuple[int, int] = (480, 640)
    """Height and width of the images."""
    images: int = 2
    """In a batch."""
    objects: int = 7
    """In an image: COCO's mean."""
    repeats: int = 7
    """Of each, of which the median counts."""
    threads: int = 2
    """That compute."""


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    table = Table("detector", "what", "ours", "torchvision", "ratio", "outside layers")
    for name in options.detectors:
        pair = {"ours": _ours(name), "torchvision": _theirs(name, options.size)}
        for what, step in (("training step", _training_step), ("inference", _inference)):
            torch.manual_seed(0)
            runs = {who: step(model, who == "torchvision", options) for who, model in pair.items()}
            runs["layers"] = _layers(pair["ours"], what == "training step", options)
            times = _interleaved(runs, options.repeats)
            table.add_row(
                name,
                what,
                *(f"{1000 * times[who]:,.0f} ms" for who in pair),
                f"{times['ours'] / times['torchvision']:.2f}",
                f"{100 * max(0.0, 1 - times['layers'] / times['ours']):.0f} %",
            )
    Console(width=110).print(table)


def _ours(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = convattn.create_detector("timm:resnet50", name, CLASSES)  # type: ignore[arg-type]
    return model.to(memory_format=torch.channels_last)


def _theirs(name: str, size: tuple[int, int]) -> nn.Module:
    model: Any = DETECTORS[name](
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        trainable_backbone_layers=None,
        min_size=min(size),
        max_size=max(size),
    )
    return model.to(memory_format=torch.channels_last)


def _batch(is_theirs: bool, options: Options) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    height, width = options.size
    images = [torch.rand(3, height, width, generator=generator) for _ in range(options.images)]
    targets = []
    for _ in range(options.images):
        corners = torch.rand(options.objects, 2, generator=generator) * torch.tensor([width - 210.0, height - 210.0])
        sides = 10 + 200 * torch.rand(options.objects, 2, generator=generator)
        labels = torch.randint(CLASSES, (options.objects,), generator=generator) + int(is_theirs)
        targets.append({"boxes": torch.cat([corners, corners + sides], 1), "labels": labels})
    return images, targets


def _training_step(model: Any, is_theirs: bool, options: Options) -> Callable[[], None]:
    images, targets = _batch(is_theirs, options)
    optimizer = torch.optim.SGD(model.parameters(), 1e-5)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()

    return step


def _inference(model: Any, is_theirs: bool, options: Options) -> Callable[[], None]:
    images, _ = _batch(is_theirs, options)

    def run() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    return run


def _layers(model: Any, training: bool, options: Options) -> Callable[[], None]:
    """Ours without all that is computed beside the layers: as many regions as are learnt from, or are looked at."""
    images, _ = _batch(False, options)
    pixels = torch.stack(images).to(memory_format=torch.channels_last)
    regions: dict[str, int] = {}
    if hasattr(model, "rpn_head"):
        regions = dict(regions=512 if training else 1000)

    def run() -> None:
        model.train(training)
        with torch.enable_grad() if training else torch.inference_mode():
            maps = model.products(pixels, **regions)
            if training:
                sum(each.float().mean() for each in maps).backward()
                model.zero_grad()

    return run


def _interleaved(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns, behind one that does not count."""
    times: dict[str, list[float]] = {who: [] for who in runs}
    for repeat in range(repeats + 1):
        for who, run in runs.items():
            started = time.perf_counter()
            run()
            if repeat:
                times[who].append(time.perf_counter() - started)
    return {who: median(each) for who, each in times.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
