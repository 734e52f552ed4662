"""What a file says of how images are prepared for its model: checked before it is computed with."""

from collections.abc import Mapping
from typing import Any

from timm.data.transforms import str_to_pil_interp

__all__ = ["PREPROCESSING", "are", "check_preprocessing", "short"]

_LABELS = ("label_names", "label_colours")
_MASKS = ("ignore_index", "reduce_zero_label")
PREPROCESSING = (
    *("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "scale", "antialias"),
    *_LABELS,
    *_MASKS,
)

_LARGEST_SIDE = 2**13  # pixels
_LARGEST_RESIZED = 2**14  # pixels of the side that the crop is taken from
_LARGEST_CROP = 1.25  # of the resized image; timm's VOLO has 1.15, with a border
_LARGEST_VALUE = 1e6  # of a mean or deviation; NaN is not within
_CROP_MODES = ("center", "squash", "border")


def check_preprocessing(cfg: Mapping[str, Any]) -> None:
    """Raise ValueError for what no images can be prepared by: entries of `PREPROCESSING`, in timm's words."""
    for key in cfg:
        if key not in PREPROCESSING:
            raise ValueError(f"pretrained_cfg has {key!r}; known are {', '.join(PREPROCESSING)}")
    size = cfg.get("input_size", (3, 1, 1))
    if not are(size, int, 3) or not all(0 < side <= _LARGEST_SIDE for side in size):
        raise ValueError(f"input_size {short(size)} must be (channels, height, width), each 1 to {_LARGEST_SIDE}")
    for key in ("mean", "std"):
        values = cfg.get(key, (1.0,))
        if not are(values, (int, float)) or not values or not all(abs(value) <= _LARGEST_VALUE for value in values):
            raise ValueError(f"{key} {short(values)} must be a finite number for each channel")
    if len(cfg.get("mean", ())) != len(cfg.get("std", ())) and {"mean", "std"} <= cfg.keys():
        raise ValueError(f"mean has {len(cfg['mean'])} values and std {len(cfg['std'])}; give one a channel")
    if not all(value > 0 for value in cfg.get("std", ())):
        raise ValueError(f"std {short(cfg['std'])} must be above 0")
    crop = cfg.get("crop_pct", 1)
    if type(crop) not in (int, float) or not 0 < crop <= _LARGEST_CROP:
        raise ValueError(f"crop_pct {short(crop)} must be above 0, at most {_LARGEST_CROP}")
    resized = max(cfg.get("input_size", (3, 1, 1))[1:]) / crop
    if resized > _LARGEST_RESIZED:
        raise ValueError(
            f"crop_pct {short(crop)} would have images resized to {resized:.0f} pixels, over {_LARGEST_RESIZED}"
        )
    mode = cfg.get("crop_mode", "center")
    if mode not in _CROP_MODES:
        raise ValueError(f"crop_mode {short(mode)} is unknown; known are {', '.join(_CROP_MODES)}")
    _check_interpolation(cfg.get("interpolation", "bicubic"))
    for key in ("antialias", "reduce_zero_label"):
        if not isinstance(cfg.get(key, False), bool):
            raise ValueError(f"{key} {short(cfg[key])} is neither true nor false")
    ignored = cfg.get("ignore_index", 255)
    if type(ignored) is not int or not 0 <= ignored <= 255:
        raise ValueError(f"ignore_index {short(ignored)} must be between 0 and 255")
    if not are(cfg.get("label_names", ()), str):
        raise ValueError("label_names must be texts")
    for colour in cfg.get("label_colours", ()):
        if not are(colour, int, 3) or not all(0 <= part <= 255 for part in colour):
            raise ValueError(f"label_colours has {short(colour)}, not red, green and blue from 0 to 255")
    scale = cfg.get("scale", (1, 1))
    if not are(scale, int, 2) or not all(1 <= side <= _LARGEST_RESIZED for side in scale):
        raise ValueError(f"scale {short(scale)} must be the longest and the shortest side, 1 to {_LARGEST_RESIZED}")


def _check_interpolation(interpolation: Any) -> None:
    try:
        if interpolation != "random":  # of timm's: bilinear or bicubic
            str_to_pil_interp(interpolation)
    except (KeyError, TypeError):
        raise ValueError(f"interpolation {short(interpolation)} is unknown to timm; bicubic is usual") from None


def are(values: Any, kind: Any, count: int | None = None) -> bool:
    """Whether `values` is a list of that kind, and of that length; a truth value is no number."""
    is_list = isinstance(values, list | tuple) and count in (None, len(values))
    return is_list and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def short(value: Any) -> str:
    """`repr` for an error of one line."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python shows
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
