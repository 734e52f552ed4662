"""Multi-head convolutional attention (MHCA), the convolutional mixer of Next-ViT.

Paper: "Next-ViT: Next Generation Vision Transformer for Efficient Deployment in Realistic Industrial Scenarios", Li et
al., 2022, arXiv 2207.05501. Reference code: github.com/bytedance/Next-ViT (Apache-2.0); written from a description.

    x ─ grouped 3×3 (one group a head) ─ norm ─ act ─ projection 1×1 ─ out

In spite of the name there is no attention in it: the paper reads a trained kernel as the weights of a local attention.
"""

import torch
from torch import Tensor, nn

from convattn.mixers.heads import check_head_dim
from convattn.ops.fold import fold_chain

__all__ = ["MultiHeadConvolutionalAttention"]


class MultiHeadConvolutionalAttention(nn.Module):
    """out = projection(act(norm(conv(x)))), conv a 3×3 whose groups are the heads.

    Linear cost in the number of positions, any size; a position sees its eight neighbours.

    Args:
        dim: channels C; a multiple of `head_dim`.
        head_dim: channels of a head, which is a group of the convolution (32 in every released model).
        norm_layer: called with C; a batch norm folds away in the inference form.
        act_layer: the activation.

    Raises:
        ValueError: if `head_dim` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        *,
        head_dim: int = 32,
        norm_layer: type[nn.Module] = nn.BatchNorm2d,
        act_layer: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        check_head_dim(dim, head_dim)
        self.group_conv3x3 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim // head_dim, bias=False)
        self.norm = norm_layer(dim)
        self.act = act_layer()
        self.projection = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.projection(self.act(self.norm(self.group_conv3x3(x))))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        """The inference form: batch norm folded into the grouped convolution, the projection as a linear layer."""
        return fold_chain(nn.Sequential(self.group_conv3x3, self.norm, self.act, self.projection))
