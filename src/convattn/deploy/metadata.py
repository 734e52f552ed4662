"""What an exported file says of itself: one JSON object, in the place that its format has for such texts.

    {"version": 2, "model": "smt_tiny", "format": "onnx", "precision": "fp32", "dynamic": "batch",
     "input_size": [3, 224, 224], "batch": null, "outputs": ["output"], "returns": "tensor", "channels": [],
     "reductions": [], "preprocessing": {"mean": […], "std": […], "interpolation": "bicubic", "crop_pct": 0.9,
     "crop_mode": "center"}, "task": "…", "details": {"num_classes": 1000, …},
     "versions": {"convattn": "…", …}, "opset": 20, "checksum": "…", "own_checksum": "…"}

The details are the words of the task's room: what it says of the model here, and checks when the file is read.

The checksum covers all that decides the numbers, and not this text; its own covers the rest of the text, that checksum
included. Neither is a signature. The first files of version 1 have no `own_checksum`: they open with a warning.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Literal, get_args

from timm.data import resolve_data_config
from torch import Tensor, nn

from convattn.data.preprocessing import are, check_preprocessing, short
from convattn.deploy.dynamic import Dynamic
from convattn.deploy.formats import formats
from convattn.deploy.runtimes.runtime import Precision, UnreadableFile, is_pyramid, output_names
from convattn.deploy.version_1 import in_version_2
from convattn.rooms import KINDS, kind_of, room

__all__ = ["Metadata", "NoMetadata", "Preprocessing", "describe", "read", "seal"]

VERSION = 2
_OWN = "own_checksum"

Returns = Literal["tensor", "list", "dict"]


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

    def __post_init__(self) -> None:
        check_preprocessing(vars(self))


@dataclass(frozen=True)
class Metadata:
    """What an exported file holds and how it is fed."""

    model: str  # its name; the class of a model that was not built by name
    format: str
    precision: Precision
    dynamic: Dynamic
    input_size: tuple[int, int, int]  # channels, height and width; those of the trace where height and width are free
    batch: int | None  # the only batch size that the file takes; None where it is free
    outputs: tuple[str, ...]  # their names in order
    returns: Returns | None  # in what the model gives them; None where a file of version 1 does not tell
    channels: tuple[int, ...]  # of each level of a pyramid
    reductions: tuple[int, ...]  # the stride of each level of a pyramid
    preprocessing: Preprocessing | None  # None if the model did not say
    task: str | None  # the kind of its room; None of a network without a head
    details: dict[str, Any]  # what the room says of it
    versions: dict[str, str]  # of this package, torch and the runtime's libraries
    opset: int | None  # of ONNX; None elsewhere
    checksum: str = ""  # the runtime's `digest` of the file, once it is sealed

    def to_json(self) -> str:
        """All fields, the version of the layout and the checksum of both as a JSON object."""
        entry = {"version": VERSION, **dataclasses.asdict(self)}
        return json.dumps({**entry, _OWN: _checksum(entry)})


def describe(
    model: nn.Module,
    outputs: Any,
    *,
    input_size: tuple[int, int, int],
    precision: Precision,
    dynamic: Dynamic,
    format: str,
    batch: int,
) -> Metadata:
    """The metadata of a file that is to hold `model`, which gives `outputs` for the images that it is traced on.

    `batch` is how many these are; the file takes no other number where `dynamic` is "none".
    """
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    info: Any = model.feature_info if is_pyramid(model) else None
    kind = None if info else kind_of(model)
    return Metadata(
        model=(getattr(model, "built_as", None) or {}).get("name") or cfg.get("architecture") or type(model).__name__,
        format=format,
        precision=precision,
        dynamic=dynamic,
        input_size=input_size,
        batch=batch if dynamic == "none" else None,
        outputs=output_names(outputs, "level" if info else "output"),
        returns="tensor" if isinstance(outputs, Tensor) else "dict" if isinstance(outputs, Mapping) else "list",
        channels=tuple(info.channels()) if info else (),
        reductions=tuple(info.reduction()) if info else (),
        preprocessing=_preprocessing(resolve_data_config(pretrained_cfg=cfg)) if cfg else None,
        task=kind,
        details=_details(kind, room(kind).describe(model)) if kind else {},
        versions=_versions(format),
        opset=getattr(formats()[format], "OPSET", None),
    )


def seal(format: str, path: Path, metadata: Metadata) -> None:
    """Write `metadata` into the file at `path`, with the checksum of what the file holds."""
    runtime = formats()[format]
    runtime.write_metadata(path, dataclasses.replace(metadata, checksum=runtime.digest(path)).to_json())


def read(format: str, path: Path) -> Metadata:
    """What a sealed file says of itself.

    Raises:
        NoMetadata: if it says nothing.
        UnreadableFile: if it cannot be read, or the text is damaged, of another version, or belongs to other contents.
        MissingExtra: if the library of the format is not installed.
    """
    runtime = formats()[format]
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


def _details(kind: str, described: Any) -> dict[str, Any]:
    """As they are read, whoever says so."""
    if not isinstance(described, Mapping):
        raise TypeError(f"details {short(described)} are no texts and numbers by name")
    return dict(room(kind).check_description(described))


def _preprocessing(told: Mapping[str, Any]) -> Preprocessing:
    return Preprocessing(
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
        interpolation=_text(told["interpolation"]),
        crop_pct=told["crop_pct"],
        crop_mode=_text(told["crop_mode"]),
    )


def _versions(format: str) -> dict[str, str]:
    versions = {}
    for package in ("convattn", "torch", "timm", *formats()[format].LIBRARIES):
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
    if entry["version"] not in (1, VERSION):
        raise UnreadableFile(
            f"{path}: its description has version {short(entry['version'])} and this convattn reads up to {VERSION}; "
            "update convattn or export the file again"
        )
    return entry


def _parse(path: Path, entry: dict[str, Any]) -> Metadata:
    kind = entry.get("task")
    if isinstance(kind, str) and kind not in KINDS:
        raise UnreadableFile(
            f"{path}: its task {short(kind)} is unknown to this version; known are {', '.join(KINDS)}; update convattn"
        )
    try:
        return _from_entry(in_version_2(entry) if entry["version"] == 1 else entry)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnreadableFile(
            f"{path}: its description is damaged ({type(error).__name__}: {error}); export it again"
        ) from None


def _from_entry(entry: dict[str, Any]) -> Metadata:
    preprocessing = None if entry["preprocessing"] is None else _preprocessing(entry["preprocessing"])
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
        outputs=tuple(map(_text, entry["outputs"])),
        returns=None if entry["returns"] is None else _one_of(entry["returns"], Returns),
        channels=tuple(_whole(width, 1) for width in entry["channels"]),
        reductions=tuple(_whole(stride, 1) for stride in entry["reductions"]),
        preprocessing=preprocessing,
        task=None if entry["task"] is None else _text(entry["task"]),
        details={} if entry["task"] is None else _details(entry["task"], entry["details"]),
        versions={_text(name): _text(number) for name, number in entry["versions"].items()},
        opset=None if entry["opset"] is None else _whole(entry["opset"], 1),
        checksum=_text(entry["checksum"]),
    )
    names, levels = metadata.outputs, metadata.channels
    if len(set(names)) < len(names) or (metadata.returns is not None and not names):
        raise ValueError(f"outputs {short(names)} are not one name each")
    if metadata.returns == "tensor" and len(names) != 1:
        raise ValueError(f"one tensor with {len(names)} names")
    if len(levels) != len(metadata.reductions) or (levels and len(names) != len(levels)):
        raise ValueError(f"{short(names)} with channels {levels} and reductions {metadata.reductions}")
    return metadata


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
