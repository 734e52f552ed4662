"""The description of files that convattn wrote when classification was its only task, in the words of version 2."""

from typing import Any

from convattn.rooms import room

__all__ = ["in_version_2"]


def in_version_2(entry: dict[str, Any]) -> dict[str, Any]:
    """A description of version 1, from a file of anybody's, as one of version 2 that is checked as such.

    Raises:
        TypeError, KeyError, ValueError: if it is none.
    """
    kind, levels = entry["outputs"], len(entry["channels"])
    if kind not in ("logits", "features", "pyramid", "tensors") or (kind == "pyramid") != bool(levels):
        raise ValueError(f"{kind!r} with channels {entry['channels']}")
    names = {
        "pyramid": [f"level_{index}" for index in range(levels)],
        "tensors": [],  # it does not tell how many
    }
    details = {name: entry[name] for name in ("num_classes", "label_names", "class_names")}
    return entry | {
        "outputs": names.get(kind, ["output"]),
        "returns": {"pyramid": "list", "tensors": None}.get(kind, "tensor"),
        "task": room().kind if kind == "logits" else None,
        "details": details if kind == "logits" else {},
    }
