"""The families, one file each, and what they share."""

from convattn.backbones import cotnet, das, das_mobilenet, groupmixformer, hybrid, next_vit, smt

__all__ = ["cotnet", "das", "das_mobilenet", "groupmixformer", "hybrid", "next_vit", "smt"]
