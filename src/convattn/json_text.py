"""JSON that every program reads."""

import json
from typing import Any

__all__ = ["json_text"]


def json_text(value: Any, **how: Any) -> str:
    """A value as JSON, with null for a number that is not finite: JSON has none, and `NaN` is an error to most readers.

    Args:
        value: plain data.
        **how: of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **how)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
