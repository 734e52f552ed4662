"""Two blocks with a learned sampling grid, rows (a) and (b) of the ablation of DAS.

Paper: "DAS: A Deformable Attention to Capture Salient Information in CNNs", arXiv 2311.12091, ablation study. The text
does not fix every layer; these are our reading of it. Both displace each position by a convolution that starts at zero,
so the sample is at first the map itself.
"""

import torch
from torch import Tensor, nn

from convattn.mixers.deformable_gate import compressed_width, compression
from convattn.ops.deformable import sample_displaced
from convattn.ops.linear import Linear2d

__all__ = ["SampledFusion", "SampledGate"]


class SampledFusion(nn.Module):
    """Row (a), no gate: out = fuse([x, x read at p + d(p)]), d = conv3×3(x); (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels C.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.offset = _offsets(dim)
        self.fuse = Linear2d(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([x, sample_displaced(x, self.offset(x))], dim=1))


class SampledGate(nn.Module):
    """Row (b): out = x · sigmoid(weigh([c, c read at p + d(p)])), c the compressed map; (B, C, H, W) -> (B, C, H, W).

    Args:
        dim: channels C.
        alpha: width of the compressed map over C; above 0, at most 1.

    Raises:
        ValueError: if `alpha` is out of range.
    """

    def __init__(self, dim: int, *, alpha: float = 0.2):
        super().__init__()
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha {alpha} must be above 0 and at most 1")
        width = compressed_width(dim, alpha)
        self.compress = compression(dim, width)
        self.offset = _offsets(width)
        self.weigh = Linear2d(2 * width, dim)

    def forward(self, x: Tensor) -> Tensor:
        context = self.compress(x)
        both = torch.cat([context, sample_displaced(context, self.offset(context))], dim=1)
        return x * self.weigh(both).sigmoid().to(x.dtype)


def _offsets(dim: int) -> nn.Conv2d:
    conv = nn.Conv2d(dim, 2, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
