"""The label maps of a batch whose pictures are of several sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["LabelMaps", "collate"]


@dataclass(frozen=True)
class LabelMaps:
    """Label maps (H, W) of any sizes, one an image: a target of `convattn.task`."""

    maps: list[Tensor]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """The same on another device."""
        return type(self)([labels.to(device, non_blocking=non_blocking) for labels in self.maps])

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""
        return type(self)([labels.pin_memory() for labels in self.maps])

    def __getitem__(self, images: slice) -> Self:
        return type(self)(self.maps[images])

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.maps)


def collate(maps: list[Any]) -> Tensor | LabelMaps:
    """One tensor (B, H, W) where they are of one size."""
    if len({labels.shape for labels in maps}) > 1:
        return LabelMaps(maps)
    return torch.utils.data.default_collate(maps)
