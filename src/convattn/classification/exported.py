"""What an exported file has to say of a classifier, and how often two forms of one agree: the part of the room that
`convattn.deploy` asks for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from convattn.data.class_names import class_names, own_names
from convattn.data.preprocessing import are, short

__all__ = ["agreement", "check_description", "describe"]

_NAMES = ("label_names", "class_names")


def describe(model: nn.Module) -> dict[str, Any]:
    """The number of its classes; their names as the training data called them, and for people (ImageNet's too)."""
    return {
        "num_classes": model.num_classes,
        "label_names": tuple(own_names(model) or ()),
        "class_names": tuple(class_names(model) or ()),
    }


def check_description(described: Mapping[str, Any]) -> dict[str, Any]:
    """The same from anybody's file, ValueError or KeyError if it is none; names that there are none of are left out."""
    count = described["num_classes"]
    if not are([count], int) or count < 1:
        raise ValueError(f"num_classes {short(count)} is no whole number from 1")
    found: dict[str, Any] = {"num_classes": count}
    for key in _NAMES:
        names = described.get(key, ())
        if not are(names, str):
            raise ValueError(f"{key} {short(names)} must be texts")
        if names and len(names) != count:
            raise ValueError(f"{len(names)} names of {count} classes")
        if names:
            found[key] = tuple(names)
    return found


def agreement(got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
    """The share of images that both give the same class; of what is no row of logits nothing."""
    if len(want) != 1 or want[0].ndim != 2 or want[0].shape[1] < 2:
        return {}
    return {"same top-1": (got[0].argmax(1) == want[0].argmax(1)).double().mean().item()}
