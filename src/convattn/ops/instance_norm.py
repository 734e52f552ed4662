"""Instance norm that keeps a channels-last map channels-last."""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

__all__ = ["InstanceNorm2d"]


@register_notrace_module
class InstanceNorm2d(nn.Module):
    """(x - mean) / √(variance + eps) of every channel of every image over its positions, (B, C, H, W) -> (B, C, H, W).

    The value of `nn.InstanceNorm2d` without running statistics, which would lay the map out anew. One thing differs: a
    map of a single position, whose variance is no estimate of anything, passes as it is, where torch raises.

    Args:
        dim: channels C.
        eps: added to the variance.
        affine: learned scale and shift per channel.
    """

    def __init__(self, dim: int, eps: float = 1e-5, affine: bool = False):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] == 1:
            return x
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = exact - exact.mean((2, 3), keepdim=True)
        normed = (centred * (centred.square().mean((2, 3), keepdim=True) + self.eps).rsqrt()).to(x.dtype)
        if self.weight is None or self.bias is None:
            return normed
        return normed * self.weight[:, None, None] + self.bias[:, None, None]
