"""Vision backbones in which convolution and attention work together."""

from convattn import backbones as _backbones  # registers every family  # noqa: F401
from convattn.backbones.registry import create_model, list_models
from convattn.weights.official import load_official, to_official

__all__ = ["create_model", "list_models", "load_official", "to_official"]
