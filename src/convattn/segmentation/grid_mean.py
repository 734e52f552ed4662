"""Means of a map over the cells of a coarse grid, of maps of any size and in every runtime."""

import torch
from torch import Tensor, nn

__all__ = ["GridMean"]


class GridMean(nn.AdaptiveAvgPool2d):
    """(B, C, H, W) -> (B, C, side, side): cell i of a side of length n is the mean over floor(i n / side) up to
    ceil((i + 1) n / side). Cells overlap where sides do not divide, and repeat positions where a map is smaller.
    """

    def graph_form(self) -> nn.Module:
        """The same in products, since ONNX knows means over a grid for sizes that are known and divide alone."""
        return GridMeanByProducts(self.output_size)  # type: ignore[arg-type]


class GridMeanByProducts(nn.Module):
    """`GridMean` as a product of each side with the shares of its positions in the cells."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._shares(length, x) for length in x.shape[2:])
        return rows @ x @ columns.T

    def _shares(self, length: int, like: Tensor) -> Tensor:
        """(side, length): of each position in each cell."""
        cells = torch.arange(self.side, device=like.device)[:, None]
        positions = torch.arange(length, device=like.device)
        start, end = cells * length // self.side, ((cells + 1) * length + self.side - 1) // self.side
        inside = (positions >= start) & (positions < end)
        return inside.to(like.dtype) / (end - start)
