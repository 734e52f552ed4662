"""The blocks that Next-ViT's paper sets against its convolution block, in the same place: (B, C, H, W) -> (B, C, H, W).

Each is what the field calls by that name, with its own norm and activation. (The comparison is table 7 of the paper.)
"""

from timm.layers import ConvMlp, DropPath, LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from convattn.mixers.efficient_attention import EfficientAttention

__all__ = ["BottleneckBlock", "ConvNeXtStyleBlock", "TransformerStyleBlock"]


class BottleneckBlock(Bottleneck):
    """ResNet's bottleneck: 1×1 to a quarter of the width, 3×3, 1×1 back, each with batch norm; ReLU."""

    def __init__(self, dim: int, drop_path: float = 0.0):
        super().__init__(dim, dim // self.expansion, drop_path=DropPath(drop_path))


class ConvNeXtStyleBlock(ConvNeXtBlock):
    """ConvNeXt's block without layer scale: depthwise 7×7, layer norm, a GELU MLP of four times the width."""

    def __init__(self, dim: int, drop_path: float = 0.0):
        super().__init__(dim, ls_init_value=None, drop_path=drop_path)


class TransformerStyleBlock(nn.Module):
    """x + attention(norm(x)) over all positions, then x + mlp(norm(x)) with a GELU MLP of four times the width."""

    def __init__(self, dim: int, head_dim: int, drop_path: float = 0.0):
        super().__init__()
        self.norm1 = LayerNorm2d(dim)
        self.attention = EfficientAttention(dim, head_dim=head_dim)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = ConvMlp(dim, 4 * dim, act_layer=nn.GELU)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.drop_path1(self.attention(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))
