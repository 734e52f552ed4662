"""Photometric distortion of 8-bit images: brightness, contrast, saturation and hue, as mmsegmentation's.

Each step is arithmetic in float32, clipped to 0..255 and cut off to 8 bits. Hue and saturation go through 8-bit HSV,
hue in half degrees (0 to 179), and quantise to it each time.

Source: `PhotoMetricDistortion` of mmsegmentation, after SSD (Liu et al., arXiv 1512.02325, data augmentation); HSV
after OpenCV's conversion of 8-bit colours, whose quotients are products with numbers in a table.
"""

import torch
from torch import Tensor

from convattn.data.draws import chance, uniform, whole

__all__ = ["distorted", "rgb_from_hsv", "scaled", "shifted", "to_hsv", "with_hue", "with_saturation"]

_BRIGHTNESS = 32.0
_CONTRAST = _SATURATION = (0.5, 1.5)
_HUE = (-18, 18)  # the end is never drawn
_HUES = 180
_FIXED = 2**12  # what the numbers of OpenCV's tables are whole multiples of one over


def distorted(image: Tensor) -> Tensor:
    """An image (3, H, W) uint8, RGB, with each of four properties varied in half of the cases.

    Contrast comes second or last, each in half of the cases. Draws from torch's global generator.
    """
    if chance(0.5):
        image = shifted(image, uniform(-_BRIGHTNESS, _BRIGHTNESS))
    early = chance(0.5)
    if early and chance(0.5):
        image = scaled(image, uniform(*_CONTRAST))
    if chance(0.5):
        image = with_saturation(image, uniform(*_SATURATION))
    if chance(0.5):
        image = with_hue(image, whole(*_HUE))
    if not early and chance(0.5):
        image = scaled(image, uniform(*_CONTRAST))
    return image


def shifted(image: Tensor, by: float) -> Tensor:
    """Brightness: uint8 values and a number of levels -> uint8."""
    return image.float().add_(by).clamp_(0, 255).to(torch.uint8)


def scaled(image: Tensor, by: float) -> Tensor:
    """Contrast: uint8 values and a factor -> uint8."""
    return image.float().mul_(by).clamp_(0, 255).to(torch.uint8)


def with_saturation(image: Tensor, by: float) -> Tensor:
    """An image (3, H, W) uint8 with its saturation in HSV times a factor."""
    hue, saturation, value = to_hsv(image)
    return rgb_from_hsv(hue, scaled(saturation, by), value)


def with_hue(image: Tensor, by: int) -> Tensor:
    """An image (3, H, W) uint8 with its hue in HSV turned by so many half degrees."""
    hue, saturation, value = to_hsv(image)
    return rgb_from_hsv(_turned(hue, by), saturation, value)


def _turned(hue: Tensor, by: int) -> Tensor:
    """Hues 0 to 179 by so many further on the circle."""
    turned = hue.float().add_(by % _HUES)
    return turned.sub_((turned >= _HUES).float().mul_(_HUES))


def to_hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """RGB (3, H, W) uint8 -> hue 0 to 179, saturation and value 0 to 255, each (H, W) uint8."""
    red, green, blue = image.contiguous().float()  # of one kind: mixed ones take PyTorch ten times as long
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    # Sixths of the circle: from the sector of the greatest colour (0, 2, 4) as far as the other two lie apart.
    # `lerp` between whole numbers is exact, and does not branch at each pixel as `where` does: a fifth of its time.
    sector = (red - green + 4 * spread).lerp_(blue - red + 2 * spread, (value == green).float())
    along = sector.lerp_(green - blue, (value == red).float())
    hue = _rounded(along.mul_(_shares(_HUES / 6, spread)))
    hue += (hue < 0).float().mul_(_HUES)
    saturation = _rounded(spread.mul_(_shares(255, value)))
    return hue.to(torch.uint8), saturation.to(torch.uint8), value.to(torch.uint8)


def rgb_from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Hue 0 to 179, saturation and value 0 to 255, each (H, W) -> RGB (3, H, W) uint8.

    A colour is the value less the chroma times how far it lies on the circle: 1 opposite, 0 near, linear between.
    """
    place, value = hue.float().mul_(6 / _HUES), value.float()
    chroma = saturation.float().mul_(value).mul_(1 / 255)
    away = (
        (place - 3).abs_().neg_().add_(2),  # of red, which lies at 0 and at 6
        (place - 2).abs_().sub_(1),
        (place - 4).abs_().sub_(1),
    )
    return torch.stack([_rounded(value - each.clamp_(0, 1).mul_(chroma)).to(torch.uint8) for each in away])


def _shares(number: float, of: Tensor) -> Tensor:
    """`number` over each of 1 to 255, as OpenCV's tables have it; products with whole numbers are exact then."""
    return (number * _FIXED / of.clamp(min=1)).round_().div_(_FIXED)


def _rounded(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_()
