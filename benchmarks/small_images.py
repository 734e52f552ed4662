"""The smallest model of every family, and a plain ResNet, trained for the same time by the same recipe.

Time is the processor time of one core, so that the table does not depend on what else the machine does: each model is
first timed for a few updates, and then sees as many images as fit into its minutes, spread evenly over whole epochs.
Accuracy is that of the last model on all test images.

Examples:
    python benchmarks/small_images.py --data cifar10
    python benchmarks/small_images.py --data cifar10 --minutes 2 --seeds 0 --only smt_nano resnet18
"""

import csv
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

_SUFFIX = "_small_images"


@dataclass(frozen=True)
class Options:
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """CIFAR-10 or the like: DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE."""
    minutes: float = 5.0
    """Processor time of one core for the training of each model."""
    seeds: tuple[int, ...] = (0, 1)
    """One run for each."""
    only: tuple[str, ...] = ()
    """Recipes without `_small_images` behind them; all by default."""
    jobs: int = 2
    """Runs at a time, each on one core."""


@dataclass(frozen=True)
class Result:
    name: str
    parameters: int
    macs: int
    images_per_second: float
    epochs: float
    top1: tuple[float, ...]  # by seed


def main(options: Options) -> None:
    if options.data is None:
        print("no --data: nothing is trained; name a folder with train/CLASS/IMAGE and test/CLASS/IMAGE")
        return
    from convattn.recipes import RECIPES

    names = options.only or [name.removesuffix(_SUFFIX) for name in RECIPES if name.endswith(_SUFFIX)]
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=len(names) * (1 + len(options.seeds)))
        with ThreadPoolExecutor(options.jobs) as pool:

            def one(name: str) -> Result:
                found = _run(["--time", name, str(options.data)])
                progress.advance(task)
                budget = round(found["images_per_second"] * options.minutes * 60)
                top1 = []
                for seed in options.seeds:
                    folder = Path(scratch) / f"{name}-{seed}"
                    trained = _run(["--train", name, str(options.data), str(budget), str(seed), str(folder)])
                    top1.append(trained["top1"])
                    progress.advance(task)
                speed = trained["images"] / trained["seconds"]
                return Result(name, found["parameters"], found["macs"], speed, trained["epochs"], tuple(top1))

            results = list(pool.map(one, names))
    _print(options, sorted(results, key=lambda result: -mean(result.top1)))


def _print(options: Options, results: list[Result]) -> None:
    table = Table(
        "model", "parameters", "MACs", "images/s", "epochs", *(f"top-1, seed {s}" for s in options.seeds), "mean"
    )
    for result in results:
        accuracies = (f"{value:.1f}" for value in (*result.top1, mean(result.top1)))
        figures = (f"{result.parameters / 1e6:.2f} M", f"{result.macs / 1e6:.1f} M", f"{result.images_per_second:.0f}")
        table.add_row(result.name, *figures, f"{result.epochs:.2f}", *accuracies)
    Console(width=140).print(table)


def _run(args: list[str]) -> dict:
    """This script in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *args], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_updates(name: str, data: str) -> dict:
    """Images a second of processor time, loading included, and the size of the model."""
    import convattn
    from convattn.training.processes import Processes
    from convattn.training.run import Run
    from convattn.training.update import update

    config = _config(name, data, 0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder), Processes(config.loop))
        run.start_epoch()
        batches = run.data.train_loader.batches(0)
        for batch in itertools.islice(batches, 3):
            update(run, [batch])
        started = time.process_time()
        images = sum(update(run, [batch]).images for batch in itertools.islice(batches, 25))
        seconds = time.process_time() - started
    costs = convattn.count(run.bare_model, (3, 32, 32))
    return {"images_per_second": images / seconds, "parameters": costs.parameters, "macs": costs.macs}


def train_for(name: str, data: str, budget: int, seed: int, folder: Path) -> dict:
    """Train on `budget` images, evaluate on all test images."""
    from convattn.classification.evaluate import evaluate
    from convattn.data.loader import Samples, evaluation_loader
    from convattn.data.sources import open_data
    from convattn.data.transforms import PictureAlone, transforms_for
    from convattn.model_files import load_model
    from convattn.training.loop import train

    files = open_data(data, "train")
    epochs = math.ceil(budget / len(files.paths))
    folder.mkdir()
    _write_list(folder / "train.csv", files, budget // epochs)
    _write_list(folder / "val.csv", open_data(data, "test"), 1000)
    config = _config(name, str(folder), seed)
    schedule = replace(config.schedule, epochs=epochs, warmup_epochs=0.1 * epochs)
    output = replace(config.output, folder=str(folder / "run"), tensorboard=False)
    started = time.process_time()
    train(replace(config, schedule=schedule, output=output), console=Console(quiet=True))
    seconds = time.process_time() - started
    model = load_model(folder / "run" / "last.safetensors")
    result = evaluate(
        model, evaluation_loader(Samples(open_data(data, "test"), PictureAlone(transforms_for(model))), 256)
    )
    images = epochs * (budget // epochs)
    return {"top1": result.top1, "images": images, "epochs": images / len(files.paths), "seconds": seconds}


def _config(name: str, data: str, seed: int):
    from convattn.recipes import RECIPES

    config = RECIPES[name + _SUFFIX]()
    loop = replace(config.loop, seed=seed, device="cpu")
    return replace(config, data=replace(config.data, source=data), loop=loop)


def _write_list(path: Path, files, count: int) -> None:
    """The first so many images, the classes in turn."""
    by_class: dict[int, list[str]] = {}
    for file, label in zip(files.paths, files.labels, strict=True):
        by_class.setdefault(label, []).append(file)

    def in_turn() -> Iterator[tuple[str, str]]:
        for row in itertools.zip_longest(*by_class.values()):
            for label, file in zip(by_class, row, strict=True):
                if file is not None:
                    yield str(Path(file).resolve()), files.classes[label]

    with open(path, "w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "label"])
        writer.writerows(itertools.islice(in_turn(), count))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--time"]:
        print(json.dumps(time_updates(*sys.argv[2:])))
    elif sys.argv[1:2] == ["--train"]:
        name, data, budget, seed, folder = sys.argv[2:]
        print(json.dumps(train_for(name, data, int(budget), int(seed), Path(folder))))
    else:
        main(tyro.cli(Options, description=__doc__))
