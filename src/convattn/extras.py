"""Optional packages: imported where they are needed, with an error that names what to install."""

import importlib
from types import ModuleType

__all__ = ["MissingExtra", "require"]


class MissingExtra(ImportError):
    """An optional package is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import and return `module`, which the optional dependencies `extra` install; MissingExtra names the group."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise MissingExtra(f'{error.name} is not installed; run: pip install "convattn[{extra}]"') from None
