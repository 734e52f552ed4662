"""What the outputs of a classifier mean."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo
from torch import nn

__all__ = ["class_names", "distinct_names", "own_names"]


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


def distinct_names(model: nn.Module) -> list[str] | None:
    """The same; where several outputs are called alike, each with its number, or its synset if it is ImageNet's."""
    names = class_names(model)
    if names is None or len(set(names)) == len(names):
        return names
    codes = ImageNetInfo("imagenet-1k").label_names() if own_names(model) is None else range(len(names))
    count = Counter(names)
    return [f"{name} ({code})" if count[name] > 1 else name for name, code in zip(names, codes, strict=True)]


def own_names(model: nn.Module) -> Sequence[str] | None:
    """The names in the model's own description, if there is one for each output."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    names = cfg.get("label_names")
    return names if names and len(names) == model.num_classes else None
