"""Networks of one task, trained from scratch for the same time by the same recipe.

Time is the processor time of one core, so that the table hardly depends on what else the machine does: each network
is first timed for a few updates, and then trains for as many updates as fit into its minutes. Figures are those of the
last model on the validation images; they choose nothing. The same words again go on with a benchmark that was stopped.

Examples:
    python benchmarks/equal_time.py small-images --data cifar10
    python benchmarks/equal_time.py segmenters --data camvid --ignore-index 11
    python benchmarks/equal_time.py detectors --data coco_tiny --only atss mask_rcnn
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from convattn.atomic import write_atomically

if TYPE_CHECKING:
    from convattn.training.config import RunConfig

_WARM_UP, _TIMED = 2, 12  # updates


@dataclass(frozen=True)
class Suite(ABC):
    """What is trained, and for how long."""

    figures: ClassVar[tuple[str, ...]]  # names of metrics
    validations: ClassVar[int] = 1  # in a run: points of its curve

    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The images; nothing is trained without."""
    minutes: float = 5.0
    """Processor time of one core for the training of each network."""
    seeds: tuple[int, ...] = (0,)
    """One run for each."""
    only: tuple[str, ...] = ()
    """Names of the table; all by default."""
    jobs: int = 2
    """Runs at a time, each on one core."""
    output: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/equal_time")
    """Keep the runs here; `convattn runs` draws their curves."""

    @abstractmethod
    def configs(self) -> dict[str, RunConfig]:
        """The run of each network, but for its length, seed and folder."""


@dataclass(frozen=True)
class SmallImages(Suite):
    """The smallest model of every family, and plain ResNets: CIFAR-10 or the like in train and test."""

    figures = ("top1",)

    def configs(self) -> dict[str, RunConfig]:
        """The recipes that share everything but the model."""
        from convattn.recipes import RECIPES

        ours = {
            name.removesuffix("_small_images"): build() for name, build in RECIPES.items() if "small_images" in name
        }
        return {name: _at(config, self.data) for name, config in ours.items()}


@dataclass(frozen=True)
class Segmenters(Suite):
    """Heads of 64 channels on a small backbone, and on a ResNet-18 a quarter as wide, which costs about as much."""

    figures = ("miou",)
    validations = 4

    minutes: float = 40.0
    """Processor time of one core for the training of each network; 40 are 20 minutes of two cores."""
    seeds: tuple[int, ...] = (0, 1)
    """One run for each."""
    ignore_index: int = 255
    """The number in masks that counts for nothing."""

    def configs(self) -> dict[str, RunConfig]:
        """Crops of 256 pixels."""
        from convattn.recipes import RECIPES
        from convattn.segmentation.options import LabelOptions

        recipe = RECIPES["segment_finetune"]()
        found = {}
        backbones = {"smt_nano": ("smt_nano", {}), "resnet18": ("timm:resnet18", {"channels": (16, 32, 64, 128)})}
        for (backbone, (model, options)), head in itertools.product(backbones.items(), ("upernet", "semantic_fpn")):
            task: Any = replace(recipe.task, head=head, width=64, labels=LabelOptions(ignore_index=self.ignore_index))  # type: ignore[call-arg]
            config = replace(recipe, task=task, model=replace(recipe.model, name=model, options=options))
            config = replace(config, optimizer=replace(recipe.optimizer, lr=1e-3))
            found[f"{backbone}-{head}"] = _at(config, self.data, image_size=256)
        return found


@dataclass(frozen=True)
class Detectors(Suite):
    """Every detector on a small backbone learns photographs in COCO's layout by heart.

    The photographs that are learnt are also those it is judged by: this shows that a detector learns what it is told,
    and says nothing of other photographs.
    """

    figures = ("box_ap", "box_ap50", "mask_ap")
    validations = 6

    minutes: float = 60.0
    """Processor time of one core for the training of each network."""
    backbone: str = "smt_nano"
    """From scratch."""
    side: int = 256
    """Short side at which photographs are seen, pixels."""

    def configs(self) -> dict[str, RunConfig]:
        """Necks and heads of 96 channels, 128 of DINO."""
        from convattn.detection.options import DetectionOptions
        from convattn.detection.variation import Variation
        from convattn.recipes import RECIPES

        recipe, longest = RECIPES["detect_finetune"](), round(self.side * 4 / 3)
        variation = Variation(short_sides=(self.side,), longest_side=longest, flip=0.0)
        dense, regions = dict(width=96), dict(width=96, hidden=256)
        options: dict[Any, Any] = {
            **dict.fromkeys(("retinanet", "atss"), dense),
            **dict.fromkeys(("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn"), regions),
            "sparse_rcnn": dict(regions, proposals=100, layers=3),
            "dino_nano": {},
        }
        learnt = str(self.data / "annotations" / "instances_train2017.json") if self.data else None
        found = {}
        for name, own in options.items():
            task = DetectionOptions(detector=name, scale=(longest, self.side), variation=variation, **own)
            config = replace(recipe, task=task, model=replace(recipe.model, name=self.backbone))
            lr = 4e-4 if name in ("sparse_rcnn", "dino_nano") else 1e-3
            optimizer, loop = replace(recipe.optimizer, lr=lr, weight_decay=0.0), replace(recipe.loop, ema_decay=None)
            config = replace(config, optimizer=optimizer, loop=loop)
            found[name] = _at(config, self.data, validation=learnt, batch_size=4)
        return found


def _at(config: RunConfig, data: Path | None, **about_data: Any) -> RunConfig:
    """A run from scratch on one core, which stops at its end."""
    return replace(
        config,
        model=replace(config.model, pretrained=False, drop_path_rate=0.0),
        data=replace(config.data, source=str(data), workers=0, **about_data),
        loop=replace(config.loop, device="cpu", early_stopping=None),
        output=replace(config.output, tensorboard=False),
    )


def main(suite: Suite) -> None:
    if suite.data is None:
        print("no --data: nothing is trained")
        return
    folder = suite.output / f"{type(suite).__name__.lower()}-{suite.minutes:g}-minutes"
    folder.mkdir(parents=True, exist_ok=True)
    configs = suite.configs()
    if unknown := {*suite.only} - {*configs}:
        raise SystemExit(f"--only {' '.join(unknown)} is unknown; choose of {', '.join(configs)}")
    configs = {name: configs[name] for name in suite.only or configs}
    runs = [*itertools.product(suite.seeds, configs)]
    with Progress(console=Console(stderr=True)) as progress, ThreadPoolExecutor(suite.jobs) as pool:
        bar = progress.add_task("training", total=len(configs) + len(runs))

        def told(part: str, config: RunConfig, place: Path) -> dict[str, Any]:
            from convattn.training.config_json import config_to_json

            if not place.exists():
                words = [part, config_to_json(config), str(place.with_suffix(""))]
                write_atomically(place, json.dumps(_in_a_process(words)).encode())
            progress.advance(bar)
            return json.loads(place.read_text())

        def timed(name: str) -> dict[str, Any]:
            return told("--time", configs[name], folder / f"{name}.json")

        costs = dict(zip(configs, pool.map(timed, configs), strict=True))

        def trained(run: tuple[int, str]) -> dict[str, Any]:
            seed, name = run
            config = configs[name]
            images = costs[name]["images_per_second"] * suite.minutes * 60
            updates = max(suite.validations, round(images / config.data.batch_size))
            lasting = replace(
                config,
                schedule=replace(
                    config.schedule, updates=updates, warmup_epochs=0, warmup_updates=max(1, updates // 20)
                ),
                loop=replace(config.loop, seed=seed, validation_updates=-(-updates // suite.validations)),
            )
            return told("--train", lasting, folder / f"{name}-{seed}.json")

        figures = dict(zip(runs, pool.map(trained, runs), strict=True))
    columns = [(figure, seed) for figure in suite.figures for seed in suite.seeds]
    table = Table(
        "network", "parameters", "MACs", "images/s", "images seen", *(f"{name}, seed {seed}" for name, seed in columns)
    )
    first = suite.figures[0]
    for name in sorted(configs, key=lambda name: -mean(figures[seed, name][first] for seed in suite.seeds)):
        cost = costs[name]
        sizes = f"{cost['parameters'] / 1e6:.2f} M", f"{cost['macs'] / 1e9:.3f} G", f"{cost['images_per_second']:.1f}"
        cells = (figures[seed, name].get(figure) for figure, seed in columns)
        images = f"{figures[suite.seeds[0], name]['step'] * configs[name].data.batch_size:,}"
        table.add_row(name, *sizes, images, *("–" if value is None else f"{value:.1f}" for value in cells))
    Console(width=160).print(table)


def _in_a_process(words: list[str]) -> dict[str, Any]:
    """This script in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} {words[-1]}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def time_updates(config: RunConfig) -> dict[str, Any]:
    """Images a second of processor time, loading included, and the size of the model."""
    import convattn
    from convattn.training.processes import Processes
    from convattn.training.run import Run
    from convattn.training.update import update

    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, Path(folder), Processes(config.loop))
        run.start_epoch()
        batches = run.data.train_loader.batches(0)
        for batch in itertools.islice(batches, _WARM_UP):
            update(run, [batch])
        started = time.process_time()
        images = sum(update(run, [batch]).images for batch in itertools.islice(batches, _TIMED))
        seconds = time.process_time() - started
    costs = convattn.count(run.bare_model, run.bare_model.pretrained_cfg["input_size"])
    return {"images_per_second": images / seconds, "parameters": costs.parameters, "macs": costs.macs}


def train_for(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The last line of a run's log: its epochs, and figures of the validation images."""
    from convattn.training.loop import train

    train(replace(config, output=replace(config.output, folder=str(folder))), resume=folder.exists())
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1:2] in (["--time"], ["--train"]):
        from convattn.training.config_json import config_from_json

        part, said, place = sys.argv[1:]
        run = config_from_json(said)
        print(json.dumps(time_updates(run) if part == "--time" else train_for(run, Path(place))))
    else:
        main(tyro.cli(SmallImages | Segmenters | Detectors, default=SmallImages(), description=__doc__))
