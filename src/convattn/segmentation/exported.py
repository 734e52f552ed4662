"""What an exported file has to say of a segmenter, and how often two forms of one agree: the part of the room that
`convattn.deploy` asks for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from convattn.data.preprocessing import are, check_preprocessing, short

__all__ = ["agreement", "check_description", "describe"]

_KEPT = ("label_names", "label_colours", "scale", "ignore_index", "reduce_zero_label")


def describe(model: nn.Module) -> dict[str, Any]:
    """The number of its classes, their names and colours, how large images are seen, and what masks mean."""
    cfg: Any = model.pretrained_cfg or {}
    return {"num_classes": model.num_classes} | {key: cfg[key] for key in _KEPT if cfg.get(key) is not None}


def check_description(described: Mapping[str, Any]) -> dict[str, Any]:
    """The same from a file of anybody's.

    Raises:
        ValueError, KeyError: if it is none.
    """
    count = described["num_classes"]
    if not are([count], int) or not 1 <= count <= 255:
        raise ValueError(f"num_classes {short(count)} is no whole number from 1 to 255")
    found = {key: described[key] for key in _KEPT if key in described}
    check_preprocessing(found)
    for key in ("label_names", "label_colours"):
        if key in found and len(found[key]) != count:
            raise ValueError(f"{len(found[key])} {key} of {count} classes")
    return {"num_classes": count, **{key: _as_tuple(value) for key, value in found.items()}}


def agreement(got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
    """The share of pixels that both give the same class."""
    if len(want) != 1 or want[0].ndim not in (3, 4):
        return {}
    masks = [one if one.ndim == 3 else one.argmax(1) for one in (got[0], want[0])]
    return {"same class": (masks[0] == masks[1]).double().mean().item()}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
