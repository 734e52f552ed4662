"""A run's configuration as JSON and back; what does not fit is named."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from convattn.backbones.registry import nearest
from convattn.training.config import ConfigError, RunConfig

__all__ = ["config_from_json", "config_to_json"]


def config_to_json(config: RunConfig) -> str:
    """Every field of the configuration, indented."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def config_from_json(text: str) -> RunConfig:
    """The configuration that `config_to_json` wrote; fields left out take their defaults.

    Raises:
        ConfigError: if the text is no JSON, a field does not exist (naming the nearest), or a value is of another type
            or out of range.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not a configuration: {error}") from None
    return _build(RunConfig, content, "")


def _build(kind: Any, content: Any, prefix: str) -> Any:
    if not isinstance(content, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'configuration'} {content!r} must be an object with fields")
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in hints:
            raise ConfigError(f"unknown field {prefix}{name}; {nearest(name, hints)}")
    values = {name: _value(hints[name], value, f"{prefix}{name}") for name, value in content.items()}
    try:
        return kind(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _value(hint: Any, value: Any, name: str) -> Any:
    """`value` as JSON gave it, turned into the field's type; lists become tuples."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{name}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _value(next(kind for kind in arguments if kind is not type(None)), value, name)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} {value!r} is unknown; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and arguments[-1] is Ellipsis:
        if not isinstance(value, list):
            raise ConfigError(f"{name} {value!r} must be a list")
        return tuple(_value(arguments[0], entry, name) for entry in value)
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ConfigError(f"{name} {value!r} must be a list of {len(arguments)} numbers")
        return tuple(_value(kind, entry, name) for kind, entry in zip(arguments, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} {value!r} must be an object")
        return {key: _with_tuples(entry) for key, entry in value.items()}
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} {value!r} must be {hint.__name__}")
    return value


def _with_tuples(value: Any) -> Any:
    return tuple(_with_tuples(entry) for entry in value) if isinstance(value, list) else value
