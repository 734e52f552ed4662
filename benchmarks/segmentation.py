"""Segmenters on a small backbone and on timm's ResNet-18, trained for the same time by the same recipe.

Time is the processor time of one core: each model is first timed for a few updates, and then trains for as many updates
as fit into its minutes. mIoU is that of the last model on the validation images, whole; they choose nothing. The same
words again go on with a benchmark that was stopped: what its folder holds is not trained anew.

Examples:
    python benchmarks/segmentation.py --data camvid --ignore-index 11
    python benchmarks/segmentation.py --data camvid --ignore-index 11 --minutes 2 --seeds 0 --heads semantic_fpn
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from convattn.atomic import write_atomically


@dataclass(frozen=True)
class Options:
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """CamVid or the like: images and masks in train and val."""
    ignore_index: int = 255
    """The number in masks that counts for nothing."""
    minutes: float = 40.0
    """Processor time of one core for the training of each model; 40 are 20 minutes of two cores."""
    seeds: tuple[int, ...] = (0, 1)
    """One run for each."""
    models: tuple[Literal["smt_nano", "resnet18", "resnet18_quarter"], ...] = ("smt_nano", "resnet18_quarter")
    """Backbones, from scratch: timm's ResNet-18 whole, or a quarter as wide, which costs about what smt_nano does."""
    heads: tuple[str, ...] = ("upernet", "semantic_fpn")
    """Heads, of 64 channels."""
    jobs: int = 2
    """Runs at a time, each on one core."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/segmentation")
    """Keep the runs here, a folder for each number of minutes."""


BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "smt_nano": ("smt_nano", {}),
    "resnet18": ("timm:resnet18", {}),
    "resnet18_quarter": ("timm:resnet18", {"channels": (16, 32, 64, 128)}),
}


@dataclass(frozen=True)
class Result:
    model: str
    head: str
    parameters: int
    macs: int  # at the size of the crops
    images_per_second: float
    miou: tuple[float, ...]  # by seed


def main(options: Options) -> None:
    if options.data is None:
        print("no --data: nothing is trained; name a folder with images and masks in train and val")
        return
    runs = options.output / f"{options.minutes:g}-minutes"
    cases = [*itertools.product(options.models, options.heads)]
    with Progress(console=Console(stderr=True)) as progress, ThreadPoolExecutor(options.jobs) as pool:
        bar = progress.add_task("training", total=len(cases) * (1 + len(options.seeds)))

        def found(args: list[str], kept: Path) -> dict[str, Any]:
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(kept, json.dumps(_run(args)).encode())
            progress.advance(bar)
            return json.loads(kept.read_text())

        def timed(case: tuple[str, str]) -> dict[str, Any]:
            words = [*case, str(options.data), str(options.ignore_index)]
            return found(["--time", *words], runs / f"{'-'.join(case)}.json")

        def trained(case: tuple[str, str], seed: int) -> float:
            words = [*case, str(options.data), str(options.ignore_index)]
            speed, folder = timings[case], runs / f"{'-'.join(case)}-{seed}"
            updates = max(4, round(speed["images_per_second"] * options.minutes * 60 / speed["batch_size"]))
            kept = folder.with_suffix(".json")
            return found(["--train", *words, str(updates), str(seed), str(folder)], kept)["miou"]

        timings = dict(zip(cases, pool.map(timed, cases), strict=True))
        by_seed = [[*pool.map(trained, cases, itertools.repeat(seed))] for seed in options.seeds]
    results = []
    for case, *miou in zip(cases, *by_seed, strict=True):
        speed = timings[case]
        results.append(Result(*case, speed["parameters"], speed["macs"], speed["images_per_second"], tuple(miou)))
    seeds = (f"mIoU, seed {seed}" for seed in options.seeds)
    table = Table("backbone", "head", "parameters", "MACs", "images/s", *seeds, "mean")
    for result in results:
        costs = f"{result.parameters / 1e6:.2f} M", f"{result.macs / 1e9:.2f} G", f"{result.images_per_second:.1f}"
        table.add_row(
            result.model, result.head, *costs, *(f"{value:.1f}" for value in (*result.miou, mean(result.miou)))
        )
    Console(width=140).print(table)


def _run(args: list[str]) -> dict[str, Any]:
    """This script in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *args], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _config(model: str, head: str, data: str, ignore_index: str, folder: str, seed: int, updates: int) -> Any:
    from convattn.recipes import RECIPES
    from convattn.segmentation.options import LabelOptions

    config = RECIPES["segment_finetune"]()
    task: Any = config.task
    name, arguments = BACKBONES[model]
    return replace(
        config,
        model=replace(config.model, name=name, options=arguments, pretrained=False, drop_path_rate=0.0),
        data=replace(config.data, source=data, image_size=256, workers=0),
        optimizer=replace(config.optimizer, lr=1e-3),
        schedule=replace(config.schedule, updates=updates, warmup_epochs=0, warmup_updates=max(1, updates // 20)),
        task=replace(task, head=head, width=64, labels=LabelOptions(ignore_index=int(ignore_index))),
        loop=replace(
            config.loop, device="cpu", seed=seed, early_stopping=None, validation_updates=max(1, updates // 4)
        ),
        output=replace(config.output, folder=folder, tensorboard=False),
    )


def time_updates(model: str, head: str, data: str, ignore_index: str) -> dict[str, Any]:
    """Images a second of processor time, loading included, and the size of the model."""
    import convattn
    from convattn.training.processes import Processes
    from convattn.training.run import Run
    from convattn.training.update import update

    with tempfile.TemporaryDirectory() as folder:
        config = _config(model, head, data, ignore_index, folder, 0, 100)
        run = Run(config, Path(folder), Processes(config.loop))
        run.start_epoch()
        batches = run.data.train_loader.batches(0)
        for batch in itertools.islice(batches, 2):
            update(run, [batch])
        started = time.process_time()
        images = sum(update(run, [batch]).images for batch in itertools.islice(batches, 10))
        seconds = time.process_time() - started
    costs = convattn.count(run.bare_model, (3, 256, 256))
    return {
        "images_per_second": images / seconds,
        "batch_size": config.data.batch_size,
        "parameters": costs.parameters,
        "macs": costs.macs,
    }


def train_for(
    model: str, head: str, data: str, ignore_index: str, updates: str, seed: str, folder: str
) -> dict[str, Any]:
    """Train for so many updates, evaluate on all validation images."""
    from convattn.cli.examine import examine
    from convattn.model_files import load_model
    from convattn.rooms import room
    from convattn.segmentation.options import LabelOptions
    from convattn.segmentation.sources import open_evaluation
    from convattn.training.loop import train

    config = _config(model, head, data, ignore_index, folder, int(seed), int(updates))
    train(config, resume=Path(folder).exists())
    found, task = load_model(Path(folder) / "last.safetensors"), room("segmentation")
    options = task.words.evaluation()
    labels = LabelOptions(ignore_index=int(ignore_index))
    images = open_evaluation(data, labels, classes=found.pretrained_cfg["label_names"])  # type: ignore[index, union-attr]
    looked = examine(found, task, images, task.examine(found, images, folder, options), options, told="images")
    return {"miou": looked.findings.figures()["miou"]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kind, *rest = sys.argv[1:] or [""]
    if kind == "--time":
        print(json.dumps(time_updates(*rest)))
    elif kind == "--train":
        print(json.dumps(train_for(*rest)))
    else:
        main(tyro.cli(Options, description=__doc__))
