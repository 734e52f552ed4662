"""One model in detail: by name, from a run folder or a model file, or an exported file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convattn.backbones.registry import create_model
from convattn.bench.count import Count, count
from convattn.cli.arguments import UsageError
from convattn.cli.console import console, plain, print_table, say
from convattn.data.class_names import own_names
from convattn.data.preprocessing import PREPROCESSING
from convattn.deploy.load import describe_exported, exported_suffixes
from convattn.deploy.metadata import Metadata
from convattn.json_text import json_text
from convattn.model_files import open_model, read_metadata
from convattn.shown import brief, shown
from convattn.sizes import Size, input_shape
from convattn.task import Table
from convattn.weights.fetch import weights_folder
from convattn.weights.records import OFFICIAL_WEIGHTS, PUBLISHED_RESULTS, OfficialWeights, PublishedResult

__all__ = ["show"]

_MOST_NAMES = 10  # of classes in a line
_FREE = {
    "none": "takes {batch} images at once, of this size only",
    "batch": "takes any number of images at once, of this size only",
    "all": "takes any number of images at once, of any size",
}


def show(name: str, image_size: Size | None, *, is_place: bool, as_json: bool) -> int:
    """Print what a model is made of, by its name or by its place (`is_place`); returns the exit status."""
    path = Path(name)
    if is_place and path.suffix in exported_suffixes():
        if image_size is not None:
            raise ValueError(f"{name}: an exported file is not counted; take the model that it was made from")
        return _show_exported(path, as_json)
    if is_place:
        return _show_model(name, open_model(name), _of_file(path), image_size, as_json)
    with torch.device("meta"):
        model = create_model(name)
    architecture = name.partition(".")[0]
    published = {
        "weights": [asdict(record) for record in OFFICIAL_WEIGHTS.get(architecture, ())],
        "results": [asdict(record) for record in PUBLISHED_RESULTS.get(architecture, ())],
    }
    status = _show_model(name, model, published, image_size, as_json)
    if not as_json:
        _say_published(architecture)
    return status


def _of_file(path: Path) -> dict[str, Any]:
    """What only the file knows of its model."""
    path = path / "best.safetensors" if path.is_dir() else path
    described = read_metadata(path)
    return {
        "architecture": described["name"],
        "options": described["options"],
        "surgery": described.get("surgery", []),
        "metrics": described.get("metrics", {}),
        "file": str(path),
        "file_mib": _mib(path),
    }


def _show_model(name: str, model: nn.Module, more: Mapping[str, Any], size: Size | None, as_json: bool) -> int:
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    try:
        channels, height, width = input_shape(model, size, "--image-size")
    except ValueError as error:
        raise UsageError(str(error)) from None
    cost = count(model, (channels, height, width))
    found = {
        "name": name,
        "num_classes": getattr(model, "num_classes", 0),
        "class_names": list(own_names(model) or ()),
        "input": {key: cfg[key] for key in (*PREPROCESSING, "num_classes") if key in cfg and key != "label_names"},
        "levels": _levels(model),
        "surgery": getattr(model, "surgery", []),
        **more,
        **asdict(cost),
    }
    if as_json:
        print(json_text(found, indent=2))
        return 0
    kind = f"{found['architecture']} ({type(model).__name__})" if "architecture" in found else type(model).__name__
    console().print(plain(name, "bold"), f" {shown(kind)}, {found['num_classes']} classes")
    if options := found.get("options"):
        say(f"options {', '.join(f'{key}={value}' for key, value in options.items())}")
    for line in (_input((channels, height, width), cfg), *_classes(found["class_names"])):
        say(line)
    print_table(_parts_table(cost))
    say(f"parameters {cost.parameters:,}   multiply-adds {cost.macs:,}   activations {cost.activations:,}")
    for level in found["levels"]:
        say(f"level at stride {level['reduction']}: {level['num_chs']} channels ({level['module']})")
    if remark := getattr(model, "remark", ""):
        say(remark)
    _say_surgery(found["surgery"])
    if metrics := found.get("metrics"):
        say(f"stored with the weights: {', '.join(f'{key} {value:g}' for key, value in metrics.items())}")
    if "file" in found:
        say(f"weights {found['file']}, {_types(model)}, {found['file_mib']:.1f} MiB")
    return 0


def _show_exported(path: Path, as_json: bool) -> int:
    """What an exported file says of itself; nothing of it is run, so one for another machine is described too."""
    format, known = describe_exported(path)
    found = {"name": str(path), "format": format, "file_mib": _mib(path)} | (asdict(known) if known else {})
    if as_json:
        print(json_text(found, indent=2))
        return 0
    console().print(plain(str(path), "bold"), f" {format}, {found['file_mib']:.1f} MiB")
    if known is None:
        say("was not written by convattn: its input, preprocessing and classes are unknown")
        return 0
    for line in _lines_of_exported(known):
        say(line)
    return 0


def _lines_of_exported(known: Metadata) -> Iterator[str]:
    gives = f"the levels of a pyramid: {', '.join(known.outputs)}" if known.channels else ", ".join(known.outputs)
    classes = known.details.get("num_classes")
    task = f" for {known.task}{f' into {classes:,} classes' if classes else ''}" if known.task else ""
    yield f"{known.model} in {known.precision}{task}, gives {gives}"
    prepared = asdict(known.preprocessing) if known.preprocessing else None
    yield _input(known.input_size, prepared)
    yield _FREE[known.dynamic].format(batch=known.batch)
    yield from _classes(known.details.get("class_names", ()))
    for channels, stride in zip(known.channels, known.reductions, strict=True):
        yield f"level at stride {stride}: {channels} channels"
    versions = ", ".join(f"{package} {version}" for package, version in known.versions.items())
    yield f"written by {versions}" + (f", opset {known.opset}" if known.opset else "")
    yield "parameters and multiply-adds are those of the model that it was made from; the file does not count them"


def _input(size: Sequence[int], cfg: Mapping[str, Any] | None) -> str:
    words = f"input {' x '.join(map(str, size))}"
    if cfg is None:
        return f"{words}; the file does not say how images are prepared"
    mean, std = (", ".join(f"{value:g}" for value in cfg.get(key) or ()) for key in ("mean", "std"))
    crop = f"crop ratio {cfg.get('crop_pct')} ({cfg.get('crop_mode')})"
    return f"{words}, {cfg.get('interpolation')} interpolation, {crop}, mean {mean}, deviation {std}"


def _classes(names: Sequence[str]) -> list[str]:
    """A line where the classes have names, or none."""
    return [f"classes {brief(names, _MOST_NAMES)}"] if names else []


def _levels(model: nn.Module) -> list[dict[str, Any]]:
    info = getattr(model, "feature_info", [])
    return [{key: level[key] for key in ("reduction", "num_chs", "module")} for level in info]


def _types(model: nn.Module) -> str:
    """The types of a model's weights: "float32"."""
    kinds = dict.fromkeys(str(weight.dtype).removeprefix("torch.") for weight in model.parameters())
    return " and ".join(kinds) or "no weights"


def _mib(path: Path) -> float:
    """Of a file, with the weights that OpenVINO puts beside it, or of all that is in a folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    beside = path.with_suffix(".bin")
    files += [beside] if path.suffix == ".xml" and beside.is_file() else []
    return sum(file.stat().st_size for file in files) / 2**20


def _say_published(architecture: str) -> None:
    weights, results = OFFICIAL_WEIGHTS.get(architecture, ()), PUBLISHED_RESULTS.get(architecture, ())
    for record in weights:
        for line in _published(record):
            say(line)
    if not weights and not architecture.startswith("timm:"):
        say("no published weights")
    for result in results:
        say(f"without a file: {_scores(result)} at {result.image_size} pixels (published: {result.source})")


def _published(record: OfficialWeights) -> list[str]:
    """What is known of a file and how one comes by it."""
    licence = (
        f"licence {record.license}" if record.license else "licence not recorded here, see the authors' repository"
    )
    if record.by_hand:
        way = [f"    by hand from {record.url}", f"    into {weights_folder()} as {record.file_name}"]
    else:
        way = [f"    {record.url}"] + ([f"    copy: {record.mirror}"] if record.mirror else [])
    scores = f"{_scores(record)} (published: {record.source})"
    about = f"weights {record.tag}: {record.num_classes} classes at {record.image_size} pixels, {scores}, {licence}"
    return [about, *way]


def _scores(record: OfficialWeights | PublishedResult) -> str:
    accuracies = [f"{name} {top} %" for name, top in (("top-1", record.top1), ("top-5", record.top5)) if top]
    return ", ".join(accuracies) or "no accuracy published"


def _parts_table(cost: Count) -> Table:
    rows = tuple(
        (row.name, " x ".join(map(str, row.output_shape[1:])), f"{row.parameters:,}", f"{row.macs:,}")
        for row in cost.rows
    )
    return Table("Parts", ("part", "output", "parameters", "multiply-adds"), rows, frozenset({1, 2, 3}))


def _say_surgery(surgery: Sequence[Mapping[str, Any]]) -> None:
    """What was attached and replaced, one row a place; what was set by hand, a line each."""
    rows = []
    for entry in (entry for entry in surgery if "mixer" in entry):
        given = ", ".join(f"{key}={value}" for key, value in entry["options"].items()) or "-"
        words = (entry["kind"], entry["place"], entry["mixer"], given, entry.get("init", "-"))
        rows.append((*words, str(entry["channels"]), f"{entry['parameters']:,}"))
    if rows:
        columns = ("surgery", "place", "mixer", "options", "start", "channels", "parameters")
        print_table(Table("Surgery", columns, tuple(rows), frozenset({5, 6})))
    for entry in surgery:
        if entry["kind"] == "set":
            say(f"set by hand: {'.'.join(filter(None, (entry['place'], entry['name'])))} = {entry['value']}")
        elif entry["kind"] == "tie":
            say(f"one tensor under several names: {', '.join(entry['names'])}")
