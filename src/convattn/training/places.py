"""The files that a configuration names: the same from every working directory, and nothing that a stored one runs."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from convattn.config_errors import ConfigError, RunFolderError
from convattn.data.held_out import share_of
from convattn.data.sources import is_stream
from convattn.training.config import RunConfig
from convattn.weights.head_rows import HEAD_ROWS_WORDS

__all__ = [
    "WITHHELD",
    "check_stored_options",
    "data_places",
    "field_of",
    "is_relative",
    "model_fields",
    "places",
    "reaches_out",
    "stored_calls",
    "with_absolute_paths",
    "with_field",
]


def data_places(config: RunConfig) -> tuple[str, ...]:
    """The fields that name what is learnt from, dotted."""
    return ("data.source", "data.validation", *(f"task.{name}" for name in config.task.places))


def places(config: RunConfig) -> tuple[str, ...]:
    """The fields that name files or folders."""
    return (*data_places(config), "model.head_rows", "model.pretrained_path", "output.folder")


WITHHELD = "(withheld)"  # in the place of what a stored configuration would run or fetch

_WEIGHTS = ("cache_dir", "checkpoint_path")  # options of a model that name files, beside those that begin with this:
_PRETRAINED = "pretrained"


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration, with every relative path taken from the working directory of now.

    ConfigError if a path is empty, as from a variable of the shell that is not set.
    """
    for name in places(config):
        value = field_of(config, name)
        if value == "":
            raise ConfigError(f"{name} is empty; name a place, or leave the option out")
        if value is not None and is_relative(config, name, value):
            config = with_field(config, name, str(Path(value).absolute()))
    return config


def is_relative(config: RunConfig, name: str, value: str) -> bool:
    """Whether a field's value is a path that depends on the working directory.

    `digits`, commands, words and names of models are none; a pattern with braces is one, unless its alternatives are
    absolute.
    """
    if value == "digits" and name.startswith("data."):
        return False
    if name == "data.validation" and share_of(value) is not None:
        return False
    if name == "model.head_rows" and value in HEAD_ROWS_WORDS:
        return False
    if reaches_out(config, name, value) or value.startswith(("/", "{/", "~")) or os.path.isabs(value):
        return False
    is_alone = len(Path(value).parts) == 1 and Path(value).suffix != ".safetensors"  # as `open_model` tells names
    return not (name in model_fields(config) and is_alone and not Path(value).exists())


def reaches_out(config: RunConfig, name: str, value: str) -> bool:
    """Whether a field's value is a command, an address, or a model that others keep on a hub."""
    if is_stream(value) or "://" in value:
        return True
    scheme, _, rest = value.partition(":")
    return name in model_fields(config) and scheme == "timm" and (":" in rest or "/" in rest)


def model_fields(config: RunConfig) -> list[str]:
    """The fields that may be names of models."""
    return ["model.name", *(f"task.{name}" for name in config.task.model_places)]


def stored_calls(config: RunConfig) -> dict[str, str]:
    """The fields of a configuration whose values reach out, by their dotted names."""
    return {name: value for name, value in _texts(config) if reaches_out(config, name, value)}


def check_stored_options(config: RunConfig, where: str) -> None:
    """Raise RunFolderError if a configuration out of a file has options that load weights from elsewhere."""
    named = [key for key in config.model.options if key in _WEIGHTS or key.startswith(_PRETRAINED)]
    if named:
        raise RunFolderError(
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
    """The configuration with one field, by its dotted name, changed."""
    return _changed(config, name.split("."), value)


def _changed(part: Any, path: Sequence[str], value: Any) -> Any:
    name, *rest = path
    return replace(part, **{name: _changed(getattr(part, name), rest, value) if rest else value})


def _texts(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _texts(value, f"{prefix}{field.name}.")
        elif isinstance(value, str):
            yield f"{prefix}{field.name}", value
