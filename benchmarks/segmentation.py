"""Segmenters on a small backbone and on timm's ResNet-18, trained for the same time by the same recipe.

Time is the processor time of one core: each model is first timed for a few updates, and then trains for as many updates
as fit into its minutes. mIoU is that of the last model on the validation images, whole; they choose nothing.

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
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table


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
    models: tuple[str, ...] = ("smt_nano", "timm:resnet18")
    """Backbones, from scratch."""
    heads: tuple[str, ...] = ("upernet", "semantic_fpn")
    """Heads, of 64 channels."""
    jobs: int = 2
    """Runs at a time, each on one core."""


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
    cases = [*itertools.product(options.models, options.heads)]
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=len(cases) * (1 + len(options.seeds)))
        with ThreadPoolExecutor(options.jobs) as pool:

            def one(case: tuple[str, str]) -> Result:
                words = [*case, str(options.data), str(options.ignore_index)]
                found = _run(["--time", *words])
                progress.advance(task)
                updates = max(4, round(found["images_per_second"] * options.minutes * 60 / found["batch_size"]))
                figures = []
                for seed in options.seeds:
                    folder = Path(scratch) / f"{case[0].replace(':', '_')}-{case[1]}-{seed}"
                    figures.append(_run(["--train", *words, str(updates), str(seed), str(folder)])["miou"])
                    progress.advance(task)
                return Result(*case, found["parameters"], found["macs"], found["images_per_second"], tuple(figures))

            results = list(pool.map(one, cases))
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
    return replace(
        config,
        model=replace(config.model, name=model, pretrained=False, drop_path_rate=0.0),
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

    train(_config(model, head, data, ignore_index, folder, int(seed), int(updates)))
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
