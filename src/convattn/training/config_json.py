"""A run's configuration as JSON and back; what does not fit is named."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from convattn.config_errors import ConfigError
from convattn.json_text import with_tuples
from convattn.nearest import nearest
from convattn.rooms import DEFAULT, KINDS, words_of
from convattn.task import TaskOptions
from convattn.training.config import RunConfig

__all__ = ["config_from_json", "config_to_json", "flat", "read_json"]

_LONGEST = 2**24  # bytes of a configuration, which has some 3,000
_DEEPEST = 100  # lists and objects inside one another; a configuration has four


def config_to_json(config: RunConfig) -> str:
    """Every field of the configuration, indented."""
    content = dataclasses.asdict(config)
    content["task"] = {"kind": config.task.kind, **content["task"]}
    return json.dumps(content, indent=2) + "\n"


def config_from_json(text: str) -> RunConfig:
    """The configuration that `config_to_json` wrote; fields left out take their defaults.

    Raises:
        ConfigError: if the text is no JSON, a field does not exist (naming the nearest), or a value is of another type
            or out of range.
    """
    try:
        content = _with_task(read_json(text))
        return _build(RunConfig, content, "")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"not a configuration: {error}") from None


def read_json(text: str | bytes) -> Any:
    """JSON as the standard has it; ValueError also for NaN, numbers without end, and what is too deep or too long."""
    if len(text) > _LONGEST:
        raise ValueError(f"{len(text):,} bytes are too many")
    try:
        content = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [content]
    for _ in range(_DEEPEST):
        level = [part for outer in level for part in _parts(outer)]
        if not level:
            return content
    raise ValueError("nested too deep")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names; an empty one stays a value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _with_task(content: Any) -> Any:
    """A configuration of an earlier version with its fields where they are now."""
    if not isinstance(content, dict) or "task" in content:
        return content
    content = {part: dict(fields) if isinstance(fields, dict) else fields for part, fields in content.items()}
    for old, new in words_of().training.moved.items():
        part, _, name = old.rpartition(".")
        fields = content.get(part) if part else content
        if isinstance(fields, dict) and name in fields:
            content.setdefault("task", {})[new] = fields.pop(name)
    return content


def _parts(content: Any) -> Iterable[Any]:
    if isinstance(content, dict):
        return content.values()
    return content if isinstance(content, list) else ()


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _build(kind: Any, content: Any, prefix: str) -> Any:
    if not isinstance(content, dict):
        raise ConfigError(
            f"{prefix.rstrip('.') or 'configuration'} {_shortened(content)} must be an object with fields"
        )
    if kind is TaskOptions:
        content = dict(content)
        named = content.pop("kind", DEFAULT)
        if named not in KINDS:
            raise ConfigError(f"{prefix}kind {_shortened(named)} is unknown; {nearest(str(named), KINDS)}")
        kind = words_of(named).training
    hints = {field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
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
        kinds = [kind for kind in arguments if kind is not type(None)]
        fitting = [kind for kind in kinds if (typing.get_origin(kind) is tuple) == isinstance(value, list)]
        return _value((fitting or kinds)[0], value, name)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} {_shortened(value)} is unknown; choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and arguments[-1] is Ellipsis:
        if not isinstance(value, list):
            raise ConfigError(f"{name} {_shortened(value)} must be a list")
        return tuple(_value(arguments[0], entry, name) for entry in value)
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ConfigError(f"{name} {_shortened(value)} must be a list of {len(arguments)} numbers")
        return tuple(_value(kind, entry, name) for kind, entry in zip(arguments, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} {_shortened(value)} must be an object")
        return with_tuples(value)
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} {_shortened(value)} must be {hint.__name__}")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{name} {_shortened(value)} is too large")
    return value


def _shortened(value: Any) -> str:
    """What is shown of a value that may be of any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
