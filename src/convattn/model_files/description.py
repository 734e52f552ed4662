"""What a model file says of its model: read as data from anybody, and taken only so far as it describes a network.

The entry `convattn` of the metadata is JSON:

    {"format": 1, "name": "smt_nano", "options": {…}, "num_classes": 10,
     "pretrained_cfg": {…}, "surgery": [], "metrics": {…}}

`surgery` is the table of what was done to the model after it was built: rows of `attach` and `replace`; and, which
older versions refuse, numbers and texts that were set by hand, one tensor under several names, and buffers that lie
beside the weights though no state dict holds them:

    {"kind": "set", "place": "norm", "name": "eps", "value": 0.001}
    {"kind": "tie", "names": ["a.weight", "b.weight"]}
    {"kind": "buffers", "names": ["attn.positions"]}

`pretrained_cfg` holds what preprocessing needs (size, crop, interpolation, mean, std) and the names of the classes.
"""

import json
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from convattn.backbones.registry import is_network_option
from convattn.data.preprocessing import PREPROCESSING, are, check_preprocessing, short
from convattn.model_files.facts import is_plain
from convattn.rooms import room
from convattn.weights.read import CheckpointError, check_name

__all__ = ["FORMAT", "KEY", "check_description", "label_names", "preprocessing_of", "read_metadata"]

FORMAT = 1
KEY = "convattn"

_LONGEST = 16 * 2**20  # characters of the description
_LARGEST = 2**16  # of a number in it, where the file does not hold as many weights
_LARGEST_FLOAT = sys.float_info.max  # an integer may be above every float
_DEEPEST = 16  # lists in lists
_ROWS = {"kind": str, "place": str, "mixer": str, "init": str, "layout": str, "options": dict, "channels": int}
_ROWS |= {"name": str, "names": list}  # and the types of what is in it


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a model file says of its model, without reading the weights.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind, or of an unknown format, or says what no
            description of a network says.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    check_name(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged or cut short ({error})") from None
    if text is None:
        raise CheckpointError(
            f"{path}: weights without a description of their model; "
            "name the model and load them with create_model(NAME, pretrained_path=FILE)"
        )
    if len(text) > _LONGEST:
        raise CheckpointError(f"{path}: the description of the model has {len(text):,} characters, over {_LONGEST:,}")
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the description of the model is damaged") from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        raise CheckpointError(
            f"{path}: format {short(found)} is unknown; this version reads format {FORMAT}; update convattn"
        )
    lacking = {"name", "options", "pretrained_cfg"} - described.keys()
    if lacking:
        raise CheckpointError(f"{path}: the description of the model lacks {', '.join(sorted(lacking))}")
    try:
        check_description(described, weights)
    except ValueError as error:
        raise CheckpointError(f"{path}: the description of the model is not taken: {error}") from None
    _check_label_names(path, described)
    return described


def label_names(path: str | Path) -> list[str]:
    """The names of a model file's classes; none where it has none, or the file is of another kind."""
    try:
        return list(read_metadata(path)["pretrained_cfg"].get("label_names") or ())
    except CheckpointError:
        return []


def check_description(described: Mapping[str, Any], weights: int) -> None:
    """Refuse what does not describe a network, or one that cannot be meant.

    Args:
        weights: how many numbers the file holds; no honest description counts anything beyond.

    Raises:
        ValueError: naming the entry, its value and what is taken.
    """
    if described.get("task") is not None:
        room(str(described["task"]))
    if not isinstance(described["name"], str):
        raise ValueError(f"name {described['name']!r} must be a text")
    for entry, kind in (("options", dict), ("pretrained_cfg", dict), ("surgery", list), ("metrics", dict)):
        value = described.get(entry, kind())
        if not isinstance(value, kind):
            raise ValueError(f"{entry} is a {type(value).__name__}, not a {kind.__name__}")
    for option, value in described["options"].items():
        if not is_network_option(option):
            raise ValueError(f"option {option} says where weights come from or lie, not what the network is")
        _check_sizes(value, f"option {option}", max(weights, _LARGEST))
    for row, entry in enumerate(described.get("surgery", ())):
        if isinstance(entry, dict):
            _check_entry(entry, row, max(weights, _LARGEST))
    for name, value in described.get("metrics", {}).items():
        if type(value) not in (int, float) or _LARGEST_FLOAT < abs(value) < math.inf:
            raise ValueError(f"metric {name}={short(value)} must be a number")
    classes = described.get("num_classes", 0)
    if type(classes) is not int or classes < 0:
        raise ValueError(f"num_classes {short(classes)} must be 0 (no head) or more")
    check_preprocessing(described["pretrained_cfg"])


def preprocessing_of(cfg: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The part of a model's `pretrained_cfg` that is kept in its file; names of classes only where each has one."""
    kept = {key: cfg[key] for key in PREPROCESSING if cfg.get(key) is not None}
    for key in ("label_names", "label_colours"):
        if key in kept and len(kept[key]) != num_classes:
            del kept[key]  # of a head that was there before
    return kept


def _check_sizes(value: Any, what: str, largest: int, depth: int = 0) -> None:
    """Refuse numbers that would fill the memory before anything could be compared with the file."""
    if depth > _DEEPEST:
        raise ValueError(f"{what} is nested more than {_DEEPEST} times")
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            _check_sizes(entry, what, largest, depth + 1)
    elif isinstance(value, int | float) and largest < abs(value) < math.inf:
        raise ValueError(f"{what} has {short(value)}, more than a network of the size of this file's weights can have")


def _check_entry(entry: Mapping[str, Any], row: int, largest: int) -> None:
    for key, kind in _ROWS.items():
        if key in entry and type(entry[key]) is not kind:
            raise ValueError(f"entry {row} of the surgery has {key}={short(entry[key])}, not a {kind.__name__}")
    for part in ("options", "value"):
        _check_sizes(entry.get(part), f"{part} of entry {row} of the surgery", largest)
    if not 0 < entry.get("channels", 1) <= largest:
        raise ValueError(f"entry {row} of the surgery has {entry['channels']} channels")
    if not is_plain(entry.get("value")) or not are(entry.get("names", ()), str):
        raise ValueError(f"entry {row} of the surgery has a value or names of another kind")
    for key, known in (("init", ("identity", "paper")), ("layout", ("NCHW", "NHWC", "tokens"))):
        if entry.get(key, known[0]) not in known:
            raise ValueError(f"entry {row} of the surgery has {key} {short(entry[key])}; known are {', '.join(known)}")


def _check_label_names(path: Path, described: Mapping[str, Any]) -> None:
    """Leave out names that are not as many as the classes: older versions kept those of a head that was replaced."""
    cfg, classes = described["pretrained_cfg"], described.get("num_classes", 0)
    if "label_names" in cfg and len(cfg["label_names"]) != classes:
        warnings.warn(f"{path}: {len(cfg.pop('label_names'))} names of {classes} classes are left out", stacklevel=3)
