"""JSON that every program reads, and what was written as JSON."""

import json
from typing import Any

__all__ = ["json_text", "with_tuples"]


def json_text(value: Any, **how: Any) -> str:
    """Plain data as JSON, `how` as `json.dumps` takes it, with null for a number that is not finite.

    JSON has none, and `NaN` is an error to most readers.
    """
    return json.dumps(_finite(value), allow_nan=False, **how)


def with_tuples(value: Any) -> Any:
    """What was read from JSON, with tuples for its lists: JSON knows lists only, we give tuples."""
    if isinstance(value, dict):
        return {key: with_tuples(entry) for key, entry in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
