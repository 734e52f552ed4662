"""A design as a network, without data."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from convattn.ablation.design import Design
from convattn.backbones.registry import create_model
from convattn.training.plug_ins import with_plug_ins

__all__ = ["build"]


def build(design: Design, *, meta: bool = False, **options: Any) -> nn.Module:
    """The network of a design, with further keywords of `create_model`; with `meta` on shapes alone, for counting.

    Raises:
        ValueError: if the design says that it cannot be built, or its options do not fit the model.
    """
    if design.missing:
        raise ValueError(f"{design.name} cannot be built: {design.missing}")
    with torch.device("meta") if meta else nullcontext():
        model = create_model(design.model, **{**design.options, **options})
        return with_plug_ins(model, design.plug_ins, design.model)
