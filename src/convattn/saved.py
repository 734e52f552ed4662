"""Model files: one `.safetensors` with the weights and, as JSON in its metadata, what is needed to rebuild it.

The entry `convattn` of the metadata is

    {"format": 1, "name": "smt_nano", "options": {…}, "num_classes": 10,
     "pretrained_cfg": {…}, "surgery": [], "metrics": {…}}

`surgery` is the table of what `attach` and `replace` put in. `pretrained_cfg` holds what preprocessing needs (size,
crop, interpolation, mean, std) and the names of the classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from convattn.atomic import write_atomically
from convattn.backbones.pyramid import Pyramid
from convattn.backbones.registry import create_model
from convattn.deploy.load import exported_suffixes, load_exported
from convattn.surgery import replay
from convattn.weights.read import CheckpointError

__all__ = ["FORMAT", "label_names", "load_model", "open_classifier", "open_model", "read_metadata", "save_model"]

FORMAT = 1

_KEY = "convattn"
_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "label_names")
_BEST = "best.safetensors"  # the model file of a run folder


def save_model(model: nn.Module, path: str | Path, *, metrics: Mapping[str, float] | None = None) -> None:
    """Write `model` to one `.safetensors` file, atomically.

    Args:
        model: built by `create_model`; its weights and buffers are stored as they are, whatever the device.
        path: ends in `.safetensors`.
        metrics: figures to keep beside the weights.

    Raises:
        CheckpointError: if the model was not built by `create_model`, or with an option that JSON cannot hold, or is a
            fused one.
        OSError: if the disk is full or the folder cannot be written; a file that was there survives.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a model file ends in .safetensors; write to {path.with_suffix('.safetensors')}")
    metadata = {_KEY: json.dumps(_description(model, metrics or {}))}
    # Safetensors holds contiguous tensors only; on loading, channels-last weights take the model's layout again.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load_model(path: str | Path) -> nn.Module:
    """The model in a file written by `save_model`, or the best one of a run folder; in eval mode, on the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or needs a newer version of this package.
    """
    path = _model_file(Path(path))
    described = read_metadata(path)
    options = {key: _as_tuple(value) for key, value in described["options"].items()}
    try:
        model = create_model(described["name"], **options)
        model = replay(model, [_with_tuples(entry) for entry in described.get("surgery", ())])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: its model {described['name']!r} cannot be built: {error}") from None
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()[1:2]]
        raise CheckpointError(f"{path}: the weights do not fit {described['name']}: {' '.join(first)}") from None
    _describe_input(model, described["pretrained_cfg"])
    return model.eval()


def open_model(source: str | Path, num_classes: int | None = None, pretrained: bool = True) -> nn.Module:
    """A model from wherever it is, in eval mode.

    Args:
        source: a run folder, a model file, an exported file (`load_exported`), or a model's name (`timm:NAME` for
            timm's).
        num_classes: give the model a fresh head of so many classes, if it has another number.
        pretrained: with a name, load the published weights.

    Raises:
        CheckpointError, UnreadableFile: if a file cannot be read, or is missing. ValueError: for an unknown name,
            naming the nearest; for a fresh head on an exported file.
    """
    path = Path(source)
    if path.suffix in exported_suffixes():
        return _open_exported(path, num_classes)
    is_name = str(source).startswith("timm:") or (len(path.parts) == 1 and path.suffix != ".safetensors")
    if is_name and not path.exists():
        return create_model(str(source), pretrained, num_classes).eval()
    model: Any = load_model(path)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
        model.built_as["options"]["num_classes"] = num_classes
        model.pretrained_cfg["num_classes"] = num_classes
        model.pretrained_cfg.pop("label_names", None)
    return model


def open_classifier(source: str | Path) -> nn.Module:
    """A model that has classes, from wherever it is (`open_model`), in eval mode.

    Raises:
        ValueError: if it has none, being a backbone alone or a pyramid. As `open_model` otherwise.
    """
    model = open_model(source)
    if not model.num_classes:
        raise ValueError(f"{source}: outputs no classes; take a model with a classifier")
    return model


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a model file says of its model, without reading the weights.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or of an unknown format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged or cut short ({error})") from None
    if text is None:
        raise CheckpointError(
            f"{path}: weights without a description of their model; "
            "name the model and load them with create_model(NAME, pretrained_path=FILE)"
        )
    try:
        described = json.loads(text)
    except json.JSONDecodeError:
        raise CheckpointError(f"{path}: the description of the model is damaged") from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        raise CheckpointError(
            f"{path}: format {found!r} is unknown; this version reads format {FORMAT}; update convattn"
        )
    lacking = {"name", "options", "pretrained_cfg"} - described.keys()
    if lacking:
        raise CheckpointError(f"{path}: the description of the model lacks {', '.join(sorted(lacking))}")
    return described


def label_names(path: str | Path) -> list[str]:
    """The names of a model file's classes; none where it has none, or the file is of another kind."""
    try:
        return list(read_metadata(path)["pretrained_cfg"].get("label_names") or ())
    except CheckpointError:
        return []


def _description(model: nn.Module, metrics: Mapping[str, float]) -> dict[str, Any]:
    built_as = getattr(model, "built_as", None)
    if built_as is None:
        raise CheckpointError(
            f"{type(model).__name__} was not built by convattn.create_model, so no file can rebuild it"
        )
    if hasattr(model, "fusion_report"):
        raise CheckpointError(
            f"a fused {built_as['name']} cannot be rebuilt from a file; save the model that it was made from"
        )
    options = {**built_as["options"], **_head(model)}
    for option, value in options.items():
        try:
            json.dumps(value)
        except TypeError:
            raise CheckpointError(
                f"option {option}={value!r} of {built_as['name']} cannot be written to a model file"
            ) from None
    surgery = getattr(model, "surgery", [])
    for entry in surgery:
        try:
            json.dumps(entry)
        except TypeError:
            raise CheckpointError(
                f"options {entry['options']} of {entry['mixer']} at {entry['place']} cannot be written to a model file"
            ) from None
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return {
        "format": FORMAT,
        "name": built_as["name"],
        "options": options,
        "num_classes": getattr(model, "num_classes", 0),
        "pretrained_cfg": {key: cfg[key] for key in _PREPROCESSING if cfg.get(key) is not None},
        "surgery": surgery,
        "metrics": dict(metrics),
    }


def _head(model: nn.Module) -> dict[str, Any]:
    """The options of the head as it is now: `reset_classifier` may have changed it since the model was built."""
    head = {"num_classes": model.num_classes} if hasattr(model, "num_classes") else {}
    pool = model.head.global_pool.pool_type if isinstance(model, Pyramid) else "avg"
    return head if pool == "avg" else {**head, "global_pool": pool}


def _describe_input(model: nn.Module, described: Mapping[str, Any]) -> None:
    cfg = {**(model.pretrained_cfg or {}), **{key: _as_tuple(value) for key, value in described.items()}}  # type: ignore[dict-item]
    cfg["num_classes"] = getattr(model, "num_classes", 0)
    model.pretrained_cfg = model.default_cfg = cfg  # type: ignore[assignment]


def _open_exported(path: Path, num_classes: int | None) -> nn.Module:
    model = load_exported(path)
    if num_classes is not None and num_classes != model.num_classes:
        raise ValueError(
            f"{path}: an exported file keeps its {model.num_classes} classes and cannot take {num_classes}; "
            "take the model that it was made from"
        )
    return model


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    if not (path / _BEST).is_file():
        raise CheckpointError(f"{path}: no {_BEST} in this folder; give a run folder or a model file")
    return path / _BEST


def _with_tuples(entry: Any) -> Any:
    """An entry of the surgery's table, its options as they were given."""
    if not isinstance(entry, dict) or not isinstance(entry.get("options"), dict):
        raise ValueError(f"entry {entry} of the surgery is damaged")
    return {**entry, "options": {key: _as_tuple(value) for key, value in entry["options"].items()}}


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(entry) for entry in value) if isinstance(value, list) else value
