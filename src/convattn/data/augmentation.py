"""How training images are varied: the options. `transforms.py` makes the transform of them."""

import math
from dataclasses import dataclass

from convattn.library_words import are_trusted

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """How a training image is varied before it reaches the model."""

    crop_area: tuple[float, float] = (0.08, 1.0)
    """Random crop: share of the image's area, from and to; (1, 1) with `crop_aspect` (1, 1) crops nothing."""
    crop_aspect: tuple[float, float] = (0.75, 1.3333)
    """Random crop: width over height, from and to."""
    horizontal_flip: float = 0.5
    """Probability of mirroring left and right; 0 where the side matters, as in writing."""
    rotation: float = 0.0
    """Random rotation up to so many degrees either way."""
    shift: float = 0.0
    """Random shift up to this share of the image's side."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Random enlargement, from and to."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; not together with `auto_augment`."""
    auto_augment: str | None = None
    """Policy in timm's words, such as `rand-m9-mstd0.5-inc1` for RandAugment."""
    random_erasing: float = 0.0
    """Probability of overwriting a random rectangle with noise."""

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "random_erasing", "shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must be between 0 and 1")
        for name in ("crop_area", "crop_aspect", "zoom"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} {low} to {high} must be positive, finite and rising")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area up to {self.crop_area[1]} must stay within the image: 1 or less")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation {self.rotation} must be between 0 and 180 degrees")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter {self.color_jitter} must be between 0 and 1")
        if self.color_jitter and self.auto_augment:
            raise ValueError(
                f"color_jitter {self.color_jitter} has no effect beside auto_augment {self.auto_augment!r}; "
                "set one of them"
            )
        if self.auto_augment is not None and not are_trusted():
            _check_policy(self.auto_augment)


def _check_policy(policy: str) -> None:
    """Ask timm, which takes a second to import."""
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    makers = {  # by the first word of their description
        "rand": rand_augment_transform,
        "augmix": augment_and_mix_transform,
        **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), auto_augment_transform),
    }
    try:
        makers[policy.partition("-")[0]](policy, {})
    except (AssertionError, ValueError, KeyError):  # what timm makes of words that it does not know
        raise ValueError(f"auto_augment {policy!r} is unknown; write for example rand-m9-mstd0.5-inc1") from None
