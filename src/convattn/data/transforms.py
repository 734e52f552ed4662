"""From a PIL image to a model's input, by timm's and torchvision's transforms."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment, posterize
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomAffine
from torchvision.transforms.functional import pil_modes_mapping, to_pil_image

from convattn.data.augmentation import Augmentation

__all__ = ["PictureAlone", "Transform", "input_config", "picture_seen", "training_transform", "transforms_for"]

_LONGEST = 16  # times the short side: what is longer is not resized whole
_SUPPORT = 3  # pixels to either side that the widest filter reaches, Lanczos

Transform = Callable[[Image.Image], Tensor]  # PIL RGB -> (3, H, W) float, normalised


def training_transform(model: nn.Module, augmentation: Augmentation) -> Transform:
    """The random transform of training, ending in the size, mean and std that `model` expects."""
    config = input_config(model)
    # Bicubic throughout, as the authors of these families train; timm's own default picks one at random.
    transform = create_transform(
        input_size=config["input_size"],
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        is_training=True,
        scale=augmentation.crop_area,
        ratio=augmentation.crop_aspect,
        hflip=augmentation.horizontal_flip,
        color_jitter=augmentation.color_jitter or None,
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.random_erasing,
        re_mode="pixel",
    )
    crop = transform.transforms[0]
    crop.get_params = partial(_some_pixels, crop.get_params)
    for operation in chain.from_iterable(map(_operations, transform.transforms)):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterized
    if not (augmentation.rotation or augmentation.shift or augmentation.zoom != (1.0, 1.0)):
        return transform
    affine = RandomAffine(
        augmentation.rotation,
        translate=(augmentation.shift, augmentation.shift),
        scale=augmentation.zoom,
        interpolation=InterpolationMode.BILINEAR,
    )
    return Compose([affine, transform])


def _some_pixels(choose: Callable, image: Image.Image, *given: Any) -> tuple[int, int, int, int]:
    """timm's crop: top, left, height, width. Of an image of a few pixels it may choose none, which would be black."""
    top, left, height, width = choose(image, *given)
    return min(top, image.height - 1), min(left, image.width - 1), max(height, 1), max(width, 1)


def _operations(part: Any) -> Iterable[AugmentOp]:
    """What a policy of timm's chooses from; none where `part` is no policy."""
    if isinstance(part, AutoAugment):
        return chain.from_iterable(part.policy)
    return part.ops if isinstance(part, RandAugment | AugMixAugment) else ()


def _posterized(image: Image.Image, bits: int, **rest: Any) -> Image.Image:
    """timm's, which asks Pillow for 0 bits or fewer at the ends of its scales: that is black; Pillow 13 refuses it."""
    return posterize(image, bits, **rest) if bits > 0 else Image.new(image.mode, image.size)


def transforms_for(model: nn.Module) -> Transform:
    """The evaluation transform that the weights of `model` expect: size, crop, interpolation, mean and std.

    Args:
        model: with a `pretrained_cfg`, as every model of this package and of timm has.

    Returns:
        A callable from a PIL image to a tensor (3, H, W).
    """
    config = input_config(model)
    resize, crop, *rest = create_transform(**config, is_training=False).transforms
    if config["crop_mode"] in ("border", "squash"):
        return Compose([_Shortened(config), resize, crop, *rest])
    return Compose([_Middle(resize, crop), *rest])


class PictureAlone:
    """A transform of pictures, for pairs of which only the picture changes: the target stays as it is."""

    def __init__(self, transform: Transform):
        self.transform = transform

    def __call__(self, picture: Image.Image, target: Any) -> tuple[Tensor, Any]:
        return self.transform(picture), target


class _Middle:
    """timm's resizing and cropping; of a very long image, whose other pixels could fill the memory, only the middle."""

    def __init__(self, resize: Any, crop: CenterCrop):
        self.resize, self.crop = resize, crop

    def __call__(self, image: Image.Image) -> Image.Image:
        if max(image.size) <= _LONGEST * min(image.size):
            return self.crop(self.resize(image))
        resized = self.resize(torch.empty(1, image.height, image.width, device="meta")).shape[:0:-1]
        cropped = self.crop.size[::-1]
        corner, box = [], []
        for side, new, seen in zip(image.size, resized, cropped, strict=True):
            start = round((new - seen) / 2)  # as CenterCrop does
            first, last = start * side / new, (start + seen) * side / new
            reach = math.ceil(_SUPPORT * max(side / new, 1)) + 1  # of the filter, beyond what is seen
            corner.append((max(0, math.floor(first) - reach), min(side, math.ceil(last) + reach)))
            box.append((first - corner[-1][0], last - corner[-1][0]))
        near = image.crop((corner[0][0], corner[1][0], corner[0][1], corner[1][1]))
        resample = pil_modes_mapping[self.resize.interpolation]
        return near.resize(cropped, resample, (box[0][0], box[1][0], box[0][1], box[1][1]))


class _Shortened:
    """Shrinks the long side of a very long image to what can be told apart, where the whole image is resized.

    Otherwise resizing would need memory for billions of pixels, or make a side of none.
    """

    def __init__(self, config: dict[str, Any]):
        height, width = config["input_size"][1:]
        finer = 1 if config["crop_mode"] == "border" else _LONGEST
        self.widest, self.tallest = finer * width, finer * height  # times the other side

    def __call__(self, image: Image.Image) -> Image.Image:
        size = min(image.width, self.widest * image.height), min(image.height, self.tallest * image.width)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


def input_config(model: nn.Module) -> dict[str, Any]:
    """What images the weights of a model expect, in timm's words: `input_size`, `mean`, `std`, `interpolation`, …"""
    return resolve_data_config(pretrained_cfg=getattr(model, "pretrained_cfg", None) or {}, model=model)


def picture_seen(image: Tensor, config: Mapping[str, Any]) -> Image.Image:
    """The picture that is in a model's input (3, H, W): without its normalisation, which the model's config states."""
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return to_pil_image((image.cpu() * std + mean).clamp(0, 1))
