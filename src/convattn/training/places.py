"""The files that a configuration names: the same from every working directory, and nothing that a stored one runs."""

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from convattn.data.sources import is_stream
from convattn.training.config import ConfigError, RunConfig
from convattn.weights.head_rows import HEAD_ROWS_WORDS

__all__ = [
    "DATA_PLACES",
    "PLACES",
    "WITHHELD",
    "check_stored_options",
    "field_of",
    "is_relative",
    "reaches_out",
    "stored_calls",
    "with_absolute_paths",
    "with_field",
]

DATA_PLACES = (
    "data.source",
    "data.validation",
    "data.validation_labels",
    "distillation.teacher",
    "distillation.unlabelled",
)
PLACES = (*DATA_PLACES, "model.head_rows", "model.pretrained_path", "output.folder")

WITHHELD = "(withheld)"  # in the place of what a stored configuration would run or fetch

_WEIGHTS = ("cache_dir", "checkpoint_path")  # options of a model that name files, beside those that begin with this:
_PRETRAINED = "pretrained"


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration, with every relative path taken from the working directory of now.

    Raises:
        ConfigError: if a path is empty, as from a variable of the shell that is not set.
    """
    for name in PLACES:
        value = field_of(config, name)
        if value == "":
            raise ConfigError(f"{name} is empty; name a place, or leave the option out")
        if value is not None and is_relative(name, value):
            config = with_field(config, name, str(Path(value).absolute()))
    return config


def is_relative(name: str, value: str) -> bool:
    """Whether a field's value is a path that depends on the working directory.

    `digits`, commands, words and names of models are none; a pattern with braces is one, unless its alternatives are
    absolute.
    """
    if value == "digits" and name.startswith("data."):
        return False
    if name == "model.head_rows" and value in HEAD_ROWS_WORDS:
        return False
    if reaches_out(name, value) or value.startswith(("/", "{/", "~")) or os.path.isabs(value):
        return False
    is_alone = len(Path(value).parts) == 1 and Path(value).suffix != ".safetensors"  # as `open_model` tells names
    return not (name == "distillation.teacher" and is_alone and not Path(value).exists())


def reaches_out(name: str, value: str) -> bool:
    """Whether a field's value is a command, an address, or a model that others keep on a hub."""
    if is_stream(value) or "://" in value:
        return True
    scheme, _, rest = value.partition(":")
    return name in ("model.name", "distillation.teacher") and scheme == "timm" and (":" in rest or "/" in rest)


def stored_calls(config: RunConfig) -> dict[str, str]:
    """The fields of a configuration whose values reach out, by their dotted names."""
    return {name: value for name, value in _texts(config) if reaches_out(name, value)}


def check_stored_options(config: RunConfig, where: str) -> None:
    """Raise ConfigError if a configuration that was read from a file has options that load weights from elsewhere."""
    named = [key for key in config.model.options if key in _WEIGHTS or key.startswith(_PRETRAINED)]
    if named:
        raise ConfigError(
            f"{where}: model.options {', '.join(named)} would load weights from wherever the file says; "
            "remove them there, or pass the configuration to convattn.training.loop.train yourself"
        )


def field_of(config: RunConfig, name: str) -> Any:
    """The value of a field by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def with_field(config: RunConfig, name: str, value: Any) -> RunConfig:
    """The configuration with one field of one part changed."""
    part, field = name.split(".")
    return replace(config, **{part: replace(getattr(config, part), **{field: value})})


def _texts(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _texts(value, f"{prefix}{field.name}.")
        elif isinstance(value, str):
            yield f"{prefix}{field.name}", value
