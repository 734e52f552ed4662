"""The levels of a backbone, found by their stride: what heads for dense prediction stand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Level", "find_levels", "level_maps"]


@dataclass(frozen=True)
class Level:
    """One level of a pyramid."""

    index: int  # in the backbone's own count
    channels: int
    stride: int  # pixels of the image, at each side, to one of the map; odd sizes round as the backbone does


def find_levels(backbone: nn.Module, strides: Sequence[int] = (4, 8, 16, 32)) -> tuple[Level, ...]:
    """One level for each stride; of several with a stride the last.

    Args:
        backbone: with timm's `feature_info`: a model, or what `features_only=True` gives.
        strides: which.

    Raises:
        ValueError: if there is none of a stride, naming those there are.
    """
    info: Any = getattr(backbone, "feature_info", None)
    if not info:
        raise ValueError(f"{type(backbone).__name__} has no feature_info, which says what levels it has")
    rows = [dict(row) for row in (info.get_dicts() if hasattr(info, "get_dicts") else info)]
    last = {row["reduction"]: Level(at, row["num_chs"], row["reduction"]) for at, row in enumerate(rows)}
    lacking = [stride for stride in strides if stride not in last]
    if lacking:
        raise ValueError(
            f"{type(backbone).__name__} has levels of stride {', '.join(map(str, last))}; "
            f"{', '.join(map(str, strides))} are needed"
        )
    return tuple(last[stride] for stride in strides)


def level_maps(backbone: nn.Module, images: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """The maps (B, C, H', W') of these levels, for images (B, 3, H, W)."""
    indices = [level.index for level in levels]
    if hasattr(backbone, "forward_intermediates"):
        maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=indices, intermediates_only=True, stop_early=True, output_fmt="NCHW"
        )
        return maps
    maps = backbone(images)
    return [maps[index] for index in indices]
