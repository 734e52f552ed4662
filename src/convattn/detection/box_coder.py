"""A box as a step from another: how far its centre lies, and how much larger it is.

Source: "Rich feature hierarchies", Girshick et al., CVPR 2014, arXiv 1311.2524, appendix C.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BoxCoder", "clipped"]

_MOST_LOG = abs(math.log(16 / 1000))  # of how much a side may grow or shrink


@dataclass(frozen=True)
class BoxCoder:
    """Steps, divided by their usual spread.

    Args:
        deviations: the spread of dx, dy, dw and dh.
        means: taken off before that.
        shrinks_freely: a side may shrink by any factor (detectron2); otherwise by 62.5 at most, as it may grow.
    """

    deviations: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    means: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    shrinks_freely: bool = False

    def encode(self, from_xyxy: Tensor, to_xyxy: Tensor) -> Tensor:
        """The steps (n, 4) from boxes (n, 4) to others."""
        size, wanted = _sizes(from_xyxy), _sizes(to_xyxy)
        centre, there = _centres(from_xyxy), _centres(to_xyxy)
        steps = torch.cat([(there - centre) / size, (wanted / size).log()], -1)
        return (steps - steps.new_tensor(self.means)) / steps.new_tensor(self.deviations)

    def decode(self, from_xyxy: Tensor, steps: Tensor, size: tuple[int, int] | Tensor | None = None) -> Tensor:
        """Where steps (…, 4) lead from boxes (…, 4), that are broadcast.

        Args:
            from_xyxy: where they begin.
            steps: as a network gives them.
            size: height and width that boxes are cut at; a tensor (…, 2) where they differ; none by default.
        """
        steps = steps * steps.new_tensor(self.deviations) + steps.new_tensor(self.means)
        growth = steps[..., 2:].clamp(None if self.shrinks_freely else -_MOST_LOG, _MOST_LOG)
        before = _sizes(from_xyxy)
        centre, half = _centres(from_xyxy) + steps[..., :2] * before, before * growth.exp() / 2
        boxes = torch.cat([centre - half, centre + half], -1)
        return boxes if size is None else clipped(boxes, size)


def clipped(boxes_xyxy: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Boxes (…, 4) cut at an image of that height and width."""
    height, width = (
        (boxes_xyxy.new_tensor(float(side)) for side in size) if isinstance(size, tuple) else size.unbind(-1)
    )
    most = torch.stack(torch.broadcast_tensors(width, height, width, height), -1)
    return torch.minimum(boxes_xyxy.clamp(min=0), most)


def _sizes(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
