"""The families, one file each, and what they share."""

from convattn.backbones import smt

__all__ = ["smt"]
