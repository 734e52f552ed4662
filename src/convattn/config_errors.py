"""What is said of a configuration that makes no sense."""

import math

__all__ = ["ConfigError", "RunFolderError", "check", "check_finite"]


class ConfigError(ValueError):
    """A configuration that makes no sense, or names a field that does not exist."""


class RunFolderError(ConfigError):
    """What stands in the folder of a run, or has become of its images, does not let it go on; no field is wrong."""


def check(holds: bool, message: str) -> None:
    """Raise ConfigError unless it holds."""
    if not holds:
        raise ConfigError(message)


def check_finite(part: str, **values: float | None) -> None:
    """Raise ConfigError for infinities in the fields of a part of a configuration."""
    for name, value in values.items():
        check(value is None or not math.isinf(value), f"{part}.{name} {value} must be a finite number")
