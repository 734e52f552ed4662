"""Which axes of a model's input an exported file leaves free."""

from typing import Any, Literal

from torch.export import Dim

__all__ = ["Dynamic", "dynamic_shapes"]

Dynamic = Literal["none", "batch", "all"]  # nothing, the batch size, or batch, height and width


def dynamic_shapes(dynamic: Dynamic) -> tuple[dict[int, Any]] | None:
    """What `torch.export` is told about the one input of a model, images (B, C, H, W)."""
    free = {"none": (), "batch": (0,), "all": (0, 2, 3)}[dynamic]
    return (dict.fromkeys(free, Dim.AUTO),) if free else None
