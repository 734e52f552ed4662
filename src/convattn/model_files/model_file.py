"""Writing models to files and opening them: one `.safetensors` with the weights, and in its metadata a description."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from convattn.atomic import write_atomically
from convattn.backbones.registry import create_model
from convattn.deploy.load import exported_suffixes, load_exported
from convattn.deploy.runtimes.runtime import CannotRunHere, UnreadableFile
from convattn.extras import MissingExtra
from convattn.json_text import with_tuples
from convattn.model_configuration import is_configuration
from convattn.model_files.description import FORMAT, KEY, check_description, preprocessing_of, read_metadata
from convattn.model_files.facts import saved_tensors
from convattn.model_files.rebuild import Misfit, find_recipe, with_weights
from convattn.rooms import kind_of
from convattn.weights.errors import WeightsNote
from convattn.weights.load import not_finite
from convattn.weights.read import CheckpointError

__all__ = ["build_within", "check_can_be_saved", "is_place", "load_model", "open_model", "save_model", "stored_kind"]

_BEST = "best.safetensors"  # the model file of a run folder


def save_model(model: nn.Module, path: str | Path, *, metrics: Mapping[str, float] | None = None) -> None:
    """Write `model` to one `.safetensors` file, atomically.

    What `load_model` will build is compared with `model` first: a file is written only if it computes the same.

    Args:
        model: built by `create_model`; its weights and buffers are stored as they are, whatever the device. Names of
            classes are kept where there is one for each.
        path: ends in `.safetensors`.
        metrics: figures to keep beside the weights.

    Raises:
        CheckpointError: if the model was not built by `create_model`, or with an option that JSON cannot hold, is a
            fused one, or was changed by hand in a way that no file can hold (a hook, another layer), naming the place.
        OSError: if the disk is full or the folder cannot be written; a file that was there survives.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a model file ends in .safetensors; write to {path.with_suffix('.safetensors')}")
    model = _bare(model)
    recipe, buffers = _recipe(model)
    tensors = _tensors({**saved_tensors(model), **buffers})
    described = _description(model, recipe, metrics or {})
    _check_readable(described, sum(tensor.numel() for tensor in tensors.values()))
    write_atomically(path, safetensors.torch.save(tensors, {KEY: json.dumps(described)}))


def check_can_be_saved(model: nn.Module) -> None:
    """Refuse, by the same CheckpointError, what `save_model` would refuse, before hours are spent on it."""
    _recipe(_bare(model))


def load_model(path: str | Path) -> nn.Module:
    """The model in a file written by `save_model`, or the best one of a run folder; in eval mode, on the CPU.

    Weights have the types that they were saved in. Nothing else is read, nothing fetched, whatever the file says.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or needs a newer version of this package.
    """
    path = _model_file(Path(path))
    described = read_metadata(path)
    name = described["name"]
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from None
    try:
        model = with_weights(described, tensors)
    except Misfit as error:
        raise CheckpointError(f"{path}: the weights do not fit {name}: {error}") from None
    except Exception as error:  # anything at all may stand in a file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: its model {name!r} cannot be built: {reason}") from None
    _describe_input(model, described["pretrained_cfg"])
    for note in not_finite(model, model.state_dict()):
        warnings.warn(f"{path}: {note}", WeightsNote, stacklevel=2)
    return model.eval()


def build_within(built_as: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model of a description from another kind of file, bounded by the weights beside it as that of a model file.

    Raises:
        ValueError: if an option describes no network, or one that the weights do not fill. As `create_model` otherwise.
    """
    described = {**built_as, "pretrained_cfg": {}}
    check_description(described, sum(tensor.numel() for tensor in tensors.values()))
    return with_weights(described, tensors)


def open_model(source: str | Path, num_classes: int | None = None, pretrained: bool = True) -> nn.Module:
    """A model from wherever it is, in eval mode.

    Args:
        source: a run folder, a model file, an exported file (`load_exported`), or a model's name (`timm:NAME` for
            timm's, FILE.json for one with options).
        num_classes: give the model a fresh head of so many classes, if it has another number.
        pretrained: with a name, load the published weights.

    Raises:
        CheckpointError, UnreadableFile: if a file cannot be read, or is missing. ValueError: for an unknown name,
            naming the nearest; for a fresh head on an exported file.
    """
    path = Path(source)
    if not is_place(source):
        return create_model(str(source), pretrained, num_classes).eval()
    if path.suffix in exported_suffixes():
        return _open_exported(path, num_classes)
    model: Any = load_model(path)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
        model.pretrained_cfg["num_classes"] = num_classes
        model.pretrained_cfg.pop("label_names", None)
    return model


def is_place(source: str | Path) -> bool:
    """Whether a model is told by where it is, there or not, and not by its name."""
    path, text = Path(source), str(source)
    if is_configuration(text):
        return False
    looks_like_one = os.sep in text or path.suffix in (".safetensors", *exported_suffixes())
    return path.exists() or (looks_like_one and not text.startswith("timm:"))


def stored_kind(source: str) -> str | None:
    """The task of the model that a run folder, a model file or an exported file holds; None for anything else."""
    path = Path(source)
    try:
        if path.suffix in exported_suffixes() and path.exists():
            return kind_of(load_exported(path))
        return read_metadata(_model_file(path)).get("task") if path.exists() else None
    except (CheckpointError, UnreadableFile, CannotRunHere, MissingExtra, ValueError, OSError):  # told as it is opened
        return None


def _check_kind(model: Any) -> None:
    """Refuse what no description can hold, before anything is built to compare with."""
    name = model.built_as["name"]
    if hasattr(model, "fusion_report"):
        raise CheckpointError(f"a fused {name} cannot be rebuilt from a file; save the model that it was made from")
    for option, value in model.built_as["options"].items():
        if not _is_json(value):
            raise CheckpointError(f"option {option}={value!r} of {name} cannot be written to a model file")
    for entry in getattr(model, "surgery", []):
        if not _is_json(entry):
            raise CheckpointError(
                f"options {entry['options']} of {entry['mixer']} at {entry['place']} cannot be written to a model file"
            )


def _recipe(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What builds the model again, and the buffers that it needs besides its state dict."""
    _check_kind(model)
    name = model.built_as["name"]
    try:
        recipe, buffers, differences = find_recipe(model)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{name} is not saved, since it cannot be built again: {reason}") from error
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise CheckpointError(
            f"{name} is not saved, since no file would bring it back: {differences[0]}{more}; "
            "undo the change, or keep the weights alone: torch.save(model.state_dict(), FILE)"
        )
    return recipe, buffers


def _description(model: nn.Module, recipe: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    classes: Any = getattr(model, "num_classes", 0)
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return {
        "format": FORMAT,
        **recipe,
        "num_classes": classes,
        "pretrained_cfg": preprocessing_of(cfg, classes),
        "metrics": dict(metrics),
    }


def _check_readable(described: Mapping[str, Any], weights: int) -> None:
    try:
        check_description(json.loads(json.dumps(described)), weights)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{described['name']} is not saved: no file says of a model that {error}") from None


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights as safetensors holds them: contiguous, each in memory of its own.

    On loading, channels-last weights take the model's layout again, and tied ones are tied again.
    """
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in values.items():
        if not isinstance(value, Tensor) or value.is_meta or type(value.detach()) is not Tensor:
            kind = "tensor without memory" if isinstance(value, Tensor) and value.is_meta else type(value).__name__
            raise CheckpointError(f"{name} is a {kind}; a model file holds whole tensors only")
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in taken else tensor
        taken.add(memory)
    return tensors


def _bare(model: Any) -> nn.Module:
    """The model that `create_model` built, inside what `torch.compile`, DDP and averages wrap around it.

    Those run it and no more; what somebody else has put around a model computes something, which no file holds.
    """
    inner = model
    while "built_as" not in vars(inner):
        children = vars(inner)["_modules"]
        name = next((name for name in ("_orig_mod", "module") if children.get(name) is not None), None)
        if name is None:
            raise CheckpointError(
                f"{type(model).__name__} was not built by convattn.create_model, so no file can rebuild it"
            )
        if reason := _computes(inner):
            raise CheckpointError(
                f"{type(inner).__name__} {reason}, which no file holds; save the model in it, its .{name}"
            )
        inner = children[name]
    return inner


def _computes(wrapper: nn.Module) -> str | None:
    """What a wrapper does beside running what is in it, for people; None for those of libraries."""
    if wrapper._forward_hooks or wrapper._forward_pre_hooks:
        return "has a forward hook"
    library = type(wrapper).forward.__module__.partition(".")[0]
    is_known = library in ("accelerate", "deepspeed", "timm", "torch") and len(wrapper._modules) == 1
    return None if is_known else "computes something of its own"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _describe_input(model: nn.Module, described: Mapping[str, Any]) -> None:
    cfg = {**(model.pretrained_cfg or {}), **{key: with_tuples(value) for key, value in described.items()}}  # type: ignore[dict-item]
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
