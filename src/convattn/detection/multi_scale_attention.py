"""Deformable attention over the levels of a pyramid as a layer: queries choose where they look.

Source: "Deformable DETR", Zhu et al., ICLR 2021, arXiv 2010.04159, section 4.1 and appendix A.4.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convattn.ops.deformable_attention import Sampling, deformable_attention

__all__ = ["MultiScaleAttention"]


class MultiScaleAttention(nn.Module):
    """Each query reads `points` places of each level in each head, near its reference.

    It starts by looking in the direction of its head, one to `points` pixels away, at all levels alike.

    Args:
        dim: channels of queries and maps.
        heads: how many; they divide `dim`.
        levels: of the pyramid.
        points: places a level and head.
        sampling: implementation, as in `deformable_attention`.

    Raises:
        ValueError: if the heads do not divide the channels.
    """

    def __init__(self, dim: int, heads: int = 8, levels: int = 4, points: int = 4, sampling: Sampling = "auto"):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels; take a divisor of {dim}")
        self.heads, self.levels, self.points, self.sampling = heads, levels, points, sampling
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' rule."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads, dtype=torch.float64) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float64)[:, None]
        there = (direction[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(there.reshape(-1))

    def forward(
        self,
        query: Tensor,
        position: Tensor,
        value: Tensor,
        references: Tensor,
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
    ) -> Tensor:
        """What the queries see, (B, queries, dim).

        Args:
            query: (B, queries, dim).
            position: added to the queries where they choose places and weights, of the same shape.
            value: the pixels of all levels, (B, Σ h·w, dim).
            references: for each level the place (x, y) that a query looks around, or the box (x, y, w, h) that it looks
                into, 0 to 1, (B, queries, levels, 2 or 4).
            sizes: height and width of each level.
            padding: true for pixels of no image, (B, Σ h·w).
        """
        places, weights = self.looks(query + position, references, sizes)
        pixels = self.value_proj(value)
        if padding is not None:
            pixels = pixels.masked_fill(padding[..., None], 0.0)
        pixels = pixels.unflatten(2, (self.heads, -1))
        return self.output_proj(deformable_attention(pixels, sizes, places, weights, sampling=self.sampling))

    def looks(self, query: Tensor, references: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Where queries look and how much that counts: (B, queries, heads, levels, points, 2) and without the last."""
        by_place = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(2, (*by_place, 2))
        exact = torch.promote_types(query.dtype, torch.float32)
        logits = self.attention_weights(query).to(exact).unflatten(2, (self.heads, -1))
        weights = logits.softmax(-1).unflatten(3, by_place[1:])
        centres = references[:, :, None, :, None, :2].to(exact)
        if references.shape[-1] == 2:
            scale = torch.tensor([(width, height) for height, width in sizes], dtype=exact, device=query.device)
            return centres + offsets / scale[:, None], weights
        return centres + offsets / self.points * references[:, :, None, :, None, 2:].to(exact) * 0.5, weights

    def kernel_macs(self, inputs: tuple[Tensor, ...], output: Tensor) -> int:
        """The products with the weights of places; what it takes to read between pixels is not counted."""
        return output.numel() * self.levels * self.points

    def graph_form(self) -> "MultiScaleAttention":
        """For graph runtimes: sampling by an operator that they know."""
        form = copy.deepcopy(self)
        form.sampling = "grid_sample"
        return form
