"""Which keywords of `create_model` say what the network is, and which only where its weights come from or lie."""

import inspect
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import build_model_with_cfg

__all__ = ["is_network_option", "network_options"]

# What timm's factories keep for themselves, read from their signatures: whatever they do not name reaches the network.
_OF_FACTORIES = {
    name for factory in (timm.create_model, build_model_with_cfg) for name in inspect.signature(factory).parameters
}
_OF_PLACEMENT = {"device", "dtype"}
_OURS = {"name", "pretrained_path", "head_rows", "classes"}


def is_network_option(option: str) -> bool:
    """Whether `option` describes the network: a model built with it and without it may differ in what it computes."""
    return option not in _OF_FACTORIES | _OF_PLACEMENT | _OURS


def network_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that describe the network."""
    return {option: value for option, value in options.items() if is_network_option(option)}
