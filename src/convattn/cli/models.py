"""`convattn models`: what there is, and what one is made of."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from convattn.backbones.costs import COSTS
from convattn.backbones.registry import create_model, image_size_of, list_models
from convattn.bench.count import Count, count
from convattn.cli.arguments import UsageError
from convattn.cli.console import console, plain, say
from convattn.cli.options.models import Options
from convattn.nearest import nearest
from convattn.saved import open_model
from convattn.shown import shown
from convattn.weights.fetch import weights_folder
from convattn.weights.records import OFFICIAL_WEIGHTS, PUBLISHED_RESULTS, OfficialWeights, PublishedResult

__all__ = ["command"]


def command(options: Options) -> int:
    """Run `convattn models` with these options."""
    if Path(options.name).exists() or not any(mark in options.name for mark in "*?["):
        return _show(options)
    names = list_models(options.name)
    if not names:
        raise UsageError(f"no model matches {options.name!r}; {nearest(options.name, list_models())}")
    rows = [_row(name) for name in names]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("model", "weights", "pixels", "parameters", "multiply-adds", "top-1 %", "top-5 %", "origin"):
        table.add_column(title, justify="left" if title in ("model", "weights", "origin") else "right")
    for row in rows:
        records = row["weights"] + row["results"] or [{}]
        for index, record in enumerate(records):
            table.add_row(
                row["name"] if index == 0 else "",
                record.get("tag", "none published"),
                str(record.get("image_size", row["image_size"])),
                f"{row['parameters']:,}" if index == 0 else "",
                f"{row['macs'] / 1e9:.2f} G" if index == 0 else "",
                f"{record.get('top1') or '-'}",
                f"{record.get('top5') or '-'}",
                record.get("source", "-"),
            )
    console().print(table)
    return 0


def _row(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "image_size": image_size_of(name),
        **COSTS[name]._asdict(),
        **_records(name),
    }


def _records(name: str) -> dict[str, list[dict[str, Any]]]:
    """What the authors published of a model: files, and accuracies without a file."""
    return {
        "weights": [asdict(record) for record in OFFICIAL_WEIGHTS.get(name, ())],
        "results": [asdict(record) for record in PUBLISHED_RESULTS.get(name, ())],
    }


def _show(options: Options) -> int:
    model = _open(options.name)
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    channels, height, width = cfg["input_size"]
    channels = getattr(model, "in_chans", channels)
    size = options.image_size
    cost = count(model, (channels, size or height, size or width))
    architecture = options.name.partition(".")[0]
    weights, results = OFFICIAL_WEIGHTS.get(architecture, ()), PUBLISHED_RESULTS.get(architecture, ())
    levels = _levels(model)
    if options.json:
        found = {
            "name": options.name,
            "input": cfg_of_interest(cfg),
            "levels": levels,
            "surgery": getattr(model, "surgery", []),
            **_records(architecture),
        }
        print(json.dumps(found | asdict(cost), indent=2))
        return 0
    classes = getattr(model, "num_classes", 0)
    console().print(plain(options.name, "bold"), f" {type(model).__name__}, {classes} classes")
    say(
        f"input {channels} x {size or height} x {size or width}, {cfg.get('interpolation')} interpolation, "
        f"crop ratio {cfg.get('crop_pct')} ({cfg.get('crop_mode')})"
    )
    console().print(_parts_table(cost))
    say(f"parameters {cost.parameters:,}   multiply-adds {cost.macs:,}   activations {cost.activations:,}")
    for level in levels:
        say(f"level at stride {level['reduction']}: {level['num_chs']} channels ({level['module']})")
    if remark := getattr(model, "remark", ""):
        say(remark)
    if surgery := getattr(model, "surgery", []):
        console().print(_surgery_table(surgery))
    for record in weights:
        for line in _published(record).splitlines():
            say(line)
    if not weights and not options.name.startswith("timm:"):
        say("no published weights")
    for result in results:
        say(f"without a file: {_scores(result)} at {result.image_size} pixels (published: {result.source})")
    return 0


def cfg_of_interest(cfg: dict[str, Any]) -> dict[str, Any]:
    """The entries of a weight configuration that say how an image must be prepared."""
    wanted = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes")
    return {key: cfg[key] for key in wanted if key in cfg}


def _open(name: str) -> nn.Module:
    if Path(name).exists():
        return open_model(name)
    with torch.device("meta"):
        return create_model(name)


def _levels(model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", [])
    return [{key: level[key] for key in ("reduction", "num_chs", "module")} for level in info]


def _published(record: OfficialWeights) -> str:
    """What is known of a file and how one comes by it."""
    licence = (
        f"licence {record.license}" if record.license else "licence not recorded here, see the authors' repository"
    )
    if record.by_hand:
        way = f"by hand from {record.url}\n    into {weights_folder()} as {record.file_name}"
    else:
        copy = f"\n    copy: {record.mirror}" if record.mirror else ""
        way = f"{record.url}{copy}"
    return (
        f"weights {record.tag}: {record.num_classes} classes at {record.image_size} pixels, "
        f"{_scores(record)} (published: {record.source}), {licence}\n    {way}"
    )


def _scores(record: OfficialWeights | PublishedResult) -> str:
    accuracies = [f"{name} {top} %" for name, top in (("top-1", record.top1), ("top-5", record.top5)) if top]
    return ", ".join(accuracies) or "no accuracy published"


def _parts_table(cost: Count) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for title in ("output", "parameters", "multiply-adds"):
        table.add_column(title, justify="right")
    for row in cost.rows:
        shape = " x ".join(map(str, row.output_shape[1:]))
        table.add_row(shown(row.name), shape, f"{row.parameters:,}", f"{row.macs:,}")
    return table


def _surgery_table(surgery: list[dict[str, Any]]) -> Table:
    """What was attached and replaced, one row a place."""
    table = Table(box=None, pad_edge=False)
    for title in ("surgery", "place", "mixer", "options", "start"):
        table.add_column(title)
    for title in ("channels", "parameters"):
        table.add_column(title, justify="right")
    for entry in surgery:
        given = ", ".join(f"{key}={value}" for key, value in entry["options"].items())
        words = (entry["kind"], entry["place"], entry["mixer"], given or "-", entry.get("init", "-"), entry["channels"])
        table.add_row(*map(shown, words), f"{entry['parameters']:,}")
    return table
