"""What an exported file says of itself: one JSON object, in the place that its format has for such texts.

    {"version": 1, "model": "smt_tiny", "format": "onnx", "precision": "fp32", "dynamic": "batch",
     "input_size": [3, 224, 224], "batch": null, "outputs": "logits", "num_classes": 1000, "channels": [],
     "reductions": [], "preprocessing": {"mean": […], "std": […], "interpolation": "bicubic", "crop_pct": 0.9,
     "crop_mode": "center"}, "label_names": [], "class_names": ["tench", …],
     "versions": {"convattn": "…", …}, "opset": 20, "checksum": "…", "own_checksum": "…"}

The checksum covers all that decides the numbers, and not this text; its own covers the rest of the text, that checksum
included. Neither is a signature. Files of earlier versions have no `own_checksum`: they open with a warning.
"""

import dataclasses
import hashlib
import json
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal, get_args

from timm.data import resolve_data_config
from torch import nn

from convattn.data.class_names import class_names, own_names
from convattn.data.preprocessing import are, check_preprocessing, short
from convattn.deploy.dynamic import Dynamic
from convattn.deploy.formats import FORMATS
from convattn.deploy.runtimes.runtime import Precision, UnreadableFile

__all__ = ["Metadata", "NoMetadata", "Outputs", "Preprocessing", "describe", "read", "seal"]

VERSION = 1
_OWN = "own_checksum"

Outputs = Literal["logits", "features", "pyramid", "tensors"]  # of a classifier, one without head, levels, anything

_LIBRARIES = {  # packages beside torch that write and run a format
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "core_ml": ("coremltools",),
    "executorch": ("executorch",),
    "tensor_rt": ("onnx", "onnxscript", "tensorrt"),
}


class NoMetadata(UnreadableFile):
    """A file does not describe itself: something else has written it."""


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared, in timm's words."""

    mean: tuple[float, ...]  # of each channel, for values 0 to 1
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str


@dataclass(frozen=True)
class Metadata:
    """What an exported file holds and how it is fed."""

    model: str
    """Its name; the class of a model that was not built by name."""
    format: str
    precision: Precision
    dynamic: Dynamic
    input_size: tuple[int, int, int]
    """Channels, height and width of the images; those of the trace where height and width are free."""
    batch: int | None
    """The only batch size that the file takes; None where it is free."""
    outputs: Outputs
    num_classes: int
    """Length of the logits; 0 where there are none."""
    channels: tuple[int, ...]
    """Of each level of a pyramid."""
    reductions: tuple[int, ...]
    """The stride of each level of a pyramid."""
    preprocessing: Preprocessing | None
    """None if the model did not say."""
    label_names: tuple[str, ...]
    """Names of the classes as the training data called them; empty if the model has none of its own."""
    class_names: tuple[str, ...]
    """The same for people, ImageNet's too; empty if nothing is known."""
    versions: dict[str, str]
    """Of this package, torch and the runtime's libraries."""
    opset: int | None
    """Of ONNX; None elsewhere."""
    checksum: str = ""
    """The runtime's `digest` of the file, once it is sealed."""

    def to_json(self) -> str:
        """All fields, the version of the layout and the checksum of both as a JSON object."""
        entry = {"version": VERSION, **dataclasses.asdict(self)}
        return json.dumps({**entry, _OWN: _checksum(entry)})


def describe(
    model: nn.Module,
    *,
    input_size: tuple[int, int, int],
    precision: Precision,
    dynamic: Dynamic,
    format: str,
    batch: int,
) -> Metadata:
    """The metadata of a file that is to hold `model`.

    Args:
        model: the model that is exported, or its fused form.
        input_size: (channels, height, width) of the images that it is traced on.
        precision: of the file.
        dynamic: what the file leaves free.
        format: a name in `FORMATS`.
        batch: how many images it is traced on; the file takes no other number where `dynamic` is "none".
    """
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, reductions = _levels(model)
    num_classes = 0 if channels else getattr(model, "num_classes", None)
    outputs: Outputs = (
        "pyramid" if channels else "tensors" if num_classes is None else "logits" if num_classes else "features"
    )
    return Metadata(
        model=(getattr(model, "built_as", None) or {}).get("name") or cfg.get("architecture") or type(model).__name__,
        format=format,
        precision=precision,
        dynamic=dynamic,
        input_size=input_size,
        batch=batch if dynamic == "none" else None,
        outputs=outputs,
        num_classes=num_classes or 0,
        channels=channels,
        reductions=reductions,
        preprocessing=_preprocessing(cfg) if cfg else None,
        label_names=tuple((own_names(model) or ()) if num_classes else ()),
        class_names=tuple((class_names(model) or ()) if num_classes else ()),
        versions=_versions(format),
        opset=getattr(FORMATS[format], "OPSET", None),
    )


def seal(format: str, path: Path, metadata: Metadata) -> None:
    """Write `metadata` into the file at `path`, with the checksum of what the file holds."""
    runtime = FORMATS[format]
    runtime.write_metadata(path, dataclasses.replace(metadata, checksum=runtime.digest(path)).to_json())


def read(format: str, path: Path) -> Metadata:
    """What a sealed file says of itself.

    Raises:
        NoMetadata: if it says nothing.
        UnreadableFile: if it cannot be read, or the text is damaged, of another version, or belongs to other contents.
        MissingExtra: if the library of the format is not installed.
    """
    runtime = FORMATS[format]
    text = runtime.read_metadata(path)
    if text is None:
        raise NoMetadata(
            f"{path}: says nothing about its model, as convattn did not write it; export the model with convattn"
        )
    entry = _entry(path, text)
    metadata = _parse(path, entry)
    if metadata.format != format:
        raise UnreadableFile(f"{path}: describes itself as {metadata.format!r} and is {format!r}; export it again")
    if runtime.digest(path) != metadata.checksum:
        raise UnreadableFile(
            f"{path}: its contents were changed after export, the checksum does not fit; export it again"
        )
    if _OWN not in entry:
        warnings.warn(
            f"{path}: an earlier convattn wrote it, without a checksum of what it says of its images and classes; "
            "export it again to have that checked",
            stacklevel=3,
        )
    elif entry[_OWN] != _checksum(entry):
        raise UnreadableFile(
            f"{path}: its description was changed after export, its own checksum does not fit; export it again"
        )
    return metadata


def _levels(model: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and reductions of what a `features_only` model returns; nothing for any other model."""
    info: Any = getattr(model, "feature_info", None)
    if not callable(getattr(info, "channels", None)):  # a classifier has a plain list
        return (), ()
    return tuple(info.channels()), tuple(info.reduction())


def _preprocessing(cfg: dict[str, Any]) -> Preprocessing:
    config = resolve_data_config(pretrained_cfg=cfg)
    return _checked(
        Preprocessing(
            *(tuple(config["mean"]), tuple(config["std"])),
            *(config["interpolation"], config["crop_pct"], config["crop_mode"]),
        )
    )


def _versions(format: str) -> dict[str, str]:
    versions = {}
    for package in ("convattn", "torch", "timm", *_LIBRARIES.get(format, ())):
        try:
            versions[package] = installed_version(package)
        except PackageNotFoundError:  # a file can be written without what runs it
            continue
    return versions


def _checksum(entry: dict[str, Any]) -> str:
    """SHA-256 of a description, but for the entry that holds this."""
    covered = {key: value for key, value in entry.items() if key != _OWN}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _entry(path: Path, text: str) -> dict[str, Any]:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or "version" not in entry:
        raise UnreadableFile(f"{path}: its description is damaged; export it again")
    if entry["version"] != VERSION:
        raise UnreadableFile(
            f"{path}: its description has version {short(entry['version'])} and this convattn reads {VERSION}; "
            "update convattn or export the file again"
        )
    return entry


def _parse(path: Path, entry: dict[str, Any]) -> Metadata:
    try:
        return _from_entry(entry)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnreadableFile(
            f"{path}: its description is damaged ({type(error).__name__}: {error}); export it again"
        ) from None


def _from_entry(entry: dict[str, Any]) -> Metadata:
    preprocessing = entry["preprocessing"]
    if preprocessing is not None:
        preprocessing = _checked(
            Preprocessing(
                mean=tuple(preprocessing["mean"]),
                std=tuple(preprocessing["std"]),
                interpolation=_text(preprocessing["interpolation"]),
                crop_pct=preprocessing["crop_pct"],
                crop_mode=_text(preprocessing["crop_mode"]),
            )
        )
    channels, height, width = entry["input_size"]
    crop = {} if preprocessing is None else {"crop_pct": preprocessing.crop_pct}
    check_preprocessing({"input_size": (channels, height, width), **crop})
    metadata = Metadata(
        model=_text(entry["model"]),
        format=_text(entry["format"]),
        precision=_one_of(entry["precision"], Precision),
        dynamic=_one_of(entry["dynamic"], Dynamic),
        input_size=(channels, height, width),
        batch=None if entry["batch"] is None else _whole(entry["batch"], 1),
        outputs=_one_of(entry["outputs"], Outputs),
        num_classes=_whole(entry["num_classes"], 0),
        channels=tuple(_whole(width, 1) for width in entry["channels"]),
        reductions=tuple(_whole(stride, 1) for stride in entry["reductions"]),
        preprocessing=preprocessing,
        label_names=tuple(map(_text, entry["label_names"])),
        class_names=tuple(map(_text, entry["class_names"])),
        versions={_text(name): _text(number) for name, number in entry["versions"].items()},
        opset=None if entry["opset"] is None else _whole(entry["opset"], 1),
        checksum=_text(entry["checksum"]),
    )
    for names in (metadata.label_names, metadata.class_names):
        if names and len(names) != metadata.num_classes:
            raise ValueError(f"{len(names)} names of {metadata.num_classes} classes")
    if len(metadata.channels) != len(metadata.reductions) or bool(metadata.channels) != (metadata.outputs == "pyramid"):
        raise ValueError(f"{metadata.outputs} with channels {metadata.channels} and reductions {metadata.reductions}")
    return metadata


def _checked(preprocessing: Preprocessing) -> Preprocessing:
    check_preprocessing(vars(preprocessing))
    return preprocessing


def _whole(value: Any, least: int) -> int:
    if not are([value], int) or value < least:
        raise ValueError(f"{short(value)} is no whole number from {least}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _one_of(value: Any, choices: Any) -> Any:
    if value not in get_args(choices):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(choices))}")
    return value
