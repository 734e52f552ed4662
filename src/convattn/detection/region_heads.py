"""The heads of R-CNN's second stage: what a region is, where its box should be, and which of its pixels are of it.

Sources: "Faster R-CNN", Ren et al., arXiv 1506.01497; "Mask R-CNN", He et al., ICCV 2017, arXiv 1703.06870.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from convattn.detection.feature_pyramid import ConvUnit, Norm

__all__ = ["BoxHead", "MaskHead"]


class BoxHead(nn.Module):
    """Convolutions, linear layers, then a class and steps to a better box; background is the last class.

    Args:
        width: channels of regions.
        num_classes: classes of objects.
        side: pixels of a region at each side.
        convs: 3×3 convolutions in front.
        layers: linear ones.
        hidden: their channels; also those of the convolutions if `conv_width` is not given.
        conv_width: channels of the convolutions.
        norm: behind each convolution.
        by_class: steps of their own for each class.
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        side: int = 7,
        convs: int = 0,
        layers: int = 2,
        hidden: int = 1024,
        conv_width: int = 256,
        norm: Norm = "none",
        by_class: bool = True,
    ):
        super().__init__()
        self.num_classes, self.by_class = num_classes, by_class
        self.shared_convs = nn.ModuleList(
            ConvUnit(width if at == 0 else conv_width, conv_width, 3, norm=norm) for at in range(convs)
        )
        flat = (conv_width if convs else width) * side * side
        self.shared_fcs = nn.ModuleList(nn.Linear(flat if at == 0 else hidden, hidden) for at in range(layers))
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * (num_classes if by_class else 1))
        for layer in self.shared_fcs:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for conv in self.shared_convs:
            _kaiming(conv)
        _small(self.fc_cls, 0.01)
        _small(self.fc_reg, 0.001)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace by fresh ones the layer that tells classes, and that of boxes if each class has its own."""
        self.num_classes = num_classes
        self.fc_cls = _small(_sized(self.fc_cls, num_classes + 1), 0.01)
        if self.by_class:
            self.fc_reg = _small(_sized(self.fc_reg, 4 * num_classes), 0.001)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (n, width, side, side) -> logits (n, classes + 1), steps (n, classes or 1, 4)."""
        for conv in self.shared_convs:
            regions = conv(regions)
        x = regions.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Four convolutions, twice the size, then a map a class.

    Args:
        width: channels of regions.
        num_classes: classes of objects.
        conv_width: channels of the convolutions.
        convs: how many.
        norm: behind each of them.
    """

    def __init__(self, width: int, num_classes: int, *, conv_width: int = 256, convs: int = 4, norm: Norm = "none"):
        super().__init__()
        self.convs = nn.ModuleList(
            ConvUnit(width if at == 0 else conv_width, conv_width, 3, norm=norm) for at in range(convs)
        )
        self.upsample = nn.ConvTranspose2d(conv_width, conv_width, 2, 2)
        self.conv_logits = nn.Conv2d(conv_width, num_classes, 1)
        _kaiming(self)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer, which has a map a class, by a fresh one."""
        old = self.conv_logits
        with old.weight.device:
            self.conv_logits = nn.Conv2d(old.in_channels, num_classes, 1, dtype=old.weight.dtype)
        _kaiming(self.conv_logits)

    def forward(self, regions: Tensor) -> Tensor:
        """Regions (n, width, s, s) -> logits (n, classes, 2s, 2s)."""
        for conv in self.convs:
            regions = conv(regions)
        return self.conv_logits(F.relu(self.upsample(regions)))


def _kaiming(part: nn.Module) -> None:
    """Start the convolutions of a part as those in front of a ReLU are, by their outputs."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _sized(old: nn.Linear, outputs: int) -> nn.Linear:
    """A layer like another, with so many outputs."""
    with old.weight.device:
        return nn.Linear(old.in_features, outputs, dtype=old.weight.dtype)


def _small(layer: nn.Linear, spread: float) -> nn.Linear:
    nn.init.normal_(layer.weight, std=spread)
    nn.init.zeros_(layer.bias)
    return layer
