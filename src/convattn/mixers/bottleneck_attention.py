"""BAM: one gate from a squeezed channel branch and a dilated spatial branch, added to the map.

Paper: "BAM: Bottleneck Attention Module", Park, Woo, Lee, Kweon, BMVC 2018, arXiv 1807.06514. Reference code:
github.com/Jongchan/attention-module (MIT); written from a description of it. The layers are those of the code, with the
norm inside the channel branch; the paper adds the two branches in front of the sigmoid, the code multiplies them.

    x ─ mean ─ C→C/r ─ norm ─ ReLU ─ →C ────────────────┐
    x ─ 1×1 C→C/r ─ [3×3 dilated] × 2 ─ 1×1 →1 ────────── + ─ sigmoid ─ x · (1 + ·)
"""

from copy import deepcopy

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["BottleneckAttention"]


class BottleneckAttention(nn.Module):
    """out = x · (1 + sigmoid(channel(x) + spatial(x))); (B, C, H, W) -> (B, C, H, W).

    In training the norm of the channel branch needs two images or more.

    Args:
        dim: channels C.
        reduction_ratio: C over the width inside the branches; at most C.
        dilation: of the 3×3 convolutions of the spatial branch.
        combine: "sum" as in the paper, "product" as in the released code.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(self, dim: int, *, reduction_ratio: int = 16, dilation: int = 4, combine: str = "sum"):
        super().__init__()
        if not 1 <= reduction_ratio <= dim:
            raise ValueError(f"reduction_ratio {reduction_ratio} must be from 1 to the {dim} channels")
        if dilation < 1:
            raise ValueError(f"dilation {dilation} must be 1 or more")
        if combine not in ("sum", "product"):
            raise ValueError(f"combine {combine!r} is unknown; choose sum or product")
        width = dim // reduction_ratio
        self.combine = combine
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(dim, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, dim),
        )
        self.spatial = nn.Sequential(
            *_conv_norm_act(dim, width, 1, 1),
            *_conv_norm_act(width, width, 3, dilation),
            *_conv_norm_act(width, width, 3, dilation),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        channel, spatial = self.channel(x)[:, :, None, None], self.spatial(x)
        logits = channel + spatial if self.combine == "sum" else channel * spatial
        return x * (1 + logits.sigmoid())

    def fused(self) -> nn.Module:
        """The inference form: batch norms folded into the layers before them."""
        form = deepcopy(self)
        for branch in (form.channel, form.spatial):
            for index in range(1, len(branch)):
                layer, norm = branch[index - 1], branch[index]
                if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
                    branch[index - 1], branch[index] = fuse_linear_bn_eval(layer, norm), nn.Identity()
                elif isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    branch[index - 1], branch[index] = fuse_conv_bn_eval(layer, norm), nn.Identity()
        return form


def _conv_norm_act(in_channels: int, out_channels: int, kernel_size: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]
