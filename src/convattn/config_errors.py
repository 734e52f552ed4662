"""What is said of a configuration that makes no sense."""

import math
from collections.abc import Callable
from typing import Any

__all__ = ["ConfigError", "RunFolderError", "check", "check_each", "check_finite"]


class ConfigError(ValueError):
    """A configuration that makes no sense, or names a field that does not exist."""


class RunFolderError(ConfigError):
    """What stands in the folder of a run, or has become of its images, does not let it go on; no field is wrong."""


def check(holds: bool, message: str) -> None:
    """Raise ConfigError unless it holds."""
    if not holds:
        raise ConfigError(message)


def check_each(part: str, options: object, holds: Callable[[Any], bool], rule: str, *names: str) -> None:
    """Raise ConfigError for a field of these that is set and does not hold; `rule` says in words what it "must be"."""
    for name in names:
        value = getattr(options, name)
        check(value is None or holds(value), f"{part}.{name} {value} must be {rule}")


def check_finite(part: str, **values: float | None) -> None:
    """Raise ConfigError for infinities in the fields of a part of a configuration."""
    for name, value in values.items():
        check(value is None or not math.isinf(value), f"{part}.{name} {value} must be a finite number")
