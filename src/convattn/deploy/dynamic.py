"""Which axes of a model's input an exported file leaves free."""

from typing import Any, Literal

from torch.export import Dim

__all__ = ["Dynamic", "dynamic_shapes", "free_axes"]

Dynamic = Literal["none", "batch", "all"]  # nothing, the batch size, or batch, height and width


def free_axes(dynamic: Dynamic) -> tuple[int, ...]:
    """The axes of images (B, C, H, W) that are left free."""
    return {"none": (), "batch": (0,), "all": (0, 2, 3)}[dynamic]


def dynamic_shapes(dynamic: Dynamic) -> tuple[dict[int, Any]] | None:
    """What `torch.export` is told about the one input of a model, images (B, C, H, W)."""
    free = free_axes(dynamic)
    return (dict.fromkeys(free, Dim.AUTO),) if free else None
