"""What is to be said of the images of a batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from convattn.detection.annotations import Annotations

__all__ = ["ImageTargets"]


@dataclass(frozen=True)
class ImageTargets(Sequence[Any]):
    """One entry an image: a dict of tensors to learn from, or `Annotations` to judge by, which stay on the CPU."""

    images: Sequence[Mapping[str, Tensor] | Annotations]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, moved: Any) -> Self:
        return type(self)(
            [
                {name: moved(tensor) for name, tensor in one.items()} if isinstance(one, Mapping) else one
                for one in self.images
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.images)

    def __getitem__(self, index: Any) -> Any:
        return type(self)(self.images[index]) if isinstance(index, slice) else self.images[index]
