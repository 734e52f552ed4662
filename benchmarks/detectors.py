"""Every detector on a nano backbone learns a folder of photographs by heart, from scratch: how far, in how long.

The photographs that are learnt are also those it is judged by: this shows that a detector learns what it is told, and
says nothing of other photographs. Time is that of this machine, validation left out.

Examples:
    python benchmarks/detectors.py --data coco_tiny
    python benchmarks/detectors.py --data coco_tiny --detectors atss mask_rcnn --epochs 60 --page curves.html
"""

import json
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from rich.console import Console
from rich.table import Table

from convattn.detection.options import DetectorName


@dataclass(frozen=True)
class Options:
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A folder in COCO's layout, with `annotations/instances_train2017.json`."""
    detectors: tuple[DetectorName, ...] = tuple(name for name in get_args(DetectorName) if name != "dino")
    """Which."""
    backbone: str = "smt_nano"
    """From scratch."""
    epochs: int = 150
    """Over the training photographs."""
    batch_size: int = 4
    """Photographs of an update."""
    side: int = 256
    """Short side at which they are seen, pixels."""
    page: Path | None = None
    """Write the curves to this file (.html)."""


def main(options: Options) -> None:
    if options.data is None:
        print("no --data: nothing is trained; name a folder in COCO's layout")
        return
    from convattn.cli.main import main as convattn_command
    from convattn.training.loop import train

    rows = []
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for detector in options.detectors:
            folder = train(_config(options, detector, Path(scratch) / detector))
            log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            rows.append((detector, log))
        if options.page is not None:
            convattn_command(["runs", scratch, "--output", str(options.page)])
    table = Table("detector", "minutes", "epochs to box AP 50", "box AP", "box AP50", "mask AP")
    for detector, log in rows:
        reached = next((str(entry["epoch"]) for entry in log if entry["box_ap"] > 50), "–")
        minutes = sum(entry["seconds"] for entry in log) / 60
        last = log[-1]
        mask = f"{last['mask_ap']:.1f}" if "mask_ap" in last else "–"
        figures = f"{last['box_ap']:.1f}", f"{last['box_ap50']:.1f}", mask
        table.add_row(detector, f"{minutes:.1f}", reached, *figures)
    Console(width=110).print(table)


def _config(options: Options, detector: DetectorName, folder: Path) -> Any:
    from convattn.detection.options import DetectionOptions
    from convattn.detection.variation import Variation
    from convattn.recipes import RECIPES

    config, data = RECIPES["detect_finetune"](), options.data
    assert data is not None
    longest = round(options.side * 4 / 3)
    by_queries = detector in ("sparse_rcnn", "dino_nano")
    task = DetectionOptions(
        detector=detector,
        width=None if detector == "dino_nano" else 96,
        scale=(longest, options.side),
        variation=Variation(short_sides=(options.side,), longest_side=longest),
        **(dict(hidden=256) if "rcnn" in detector else {}),
        **(dict(proposals=100, layers=3) if detector == "sparse_rcnn" else {}),
    )
    return replace(
        config,
        model=replace(config.model, name=options.backbone, pretrained=False, drop_path_rate=0.0),
        data=replace(
            config.data,
            source=str(data),
            validation=str(data / "annotations" / "instances_train2017.json"),
            batch_size=options.batch_size,
        ),
        optimizer=replace(config.optimizer, lr=4e-4 if by_queries else 1e-3, weight_decay=0.0),
        schedule=replace(config.schedule, epochs=options.epochs, warmup_epochs=options.epochs / 30),
        task=task,
        loop=replace(
            config.loop,
            device="cpu",
            early_stopping=None,
            ema_decay=None,
            validation_epochs=max(1, options.epochs // 6),
        ),
        output=replace(config.output, folder=str(folder), tensorboard=False),
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
