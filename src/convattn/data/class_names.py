"""What the outputs of a classifier mean."""

from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo
from torch import nn

__all__ = ["class_names", "own_names"]


def class_names(model: nn.Module) -> list[str] | None:
    """What the outputs of a model mean: its own names, ImageNet's for a 1,000-class model, None if nothing is known.

    Not told by their number are the 21,841 outputs of ImageNet-22k models, whose order differs between authors.
    """
    own = own_names(model)
    if own is not None:
        return list(own)
    if model.num_classes != 1000:
        return None
    return [text.split(",")[0] for text in ImageNetInfo("imagenet-1k").label_descriptions()]


def own_names(model: nn.Module) -> Sequence[str] | None:
    """The names in the model's own description, if there is one for each output."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("label_names")
    return names if names and len(names) == model.num_classes else None
