"""How training images are varied. It needs no torch: a run's configuration holds it."""

from dataclasses import dataclass

from convattn.config_errors import check, check_finite

__all__ = ["Variation"]


@dataclass(frozen=True)
class Variation:
    """How training images with objects are varied; the defaults are the 1x schedule's of mmdetection."""

    short_sides: tuple[int, ...] = (800,)  # pixels; one is drawn for each image
    between: bool = False  # any whole number from the least to the greatest of them is drawn, as detectron2 does
    longest_side: int = 1333  # where the longer side would exceed it, it decides
    crop: float = 0.0  # how often an image is cut out of a smaller copy first, as in the 3x schedules
    flip: float = 0.5  # how often left and right are exchanged
    photometric: bool = False  # brightness, contrast, saturation, hue and the order of colours, each now and then
    mosaic: float = 0.0  # how often four images are put together
    copy_paste: float = 0.0  # how often objects of another image are put in; needs outlines
    antialias: bool = (
        False  # smooth what is made smaller, as Pillow and detectron2 do, and OpenCV and mmdetection do not
    )

    def __post_init__(self) -> None:
        check_finite("variation", crop=self.crop, flip=self.flip, mosaic=self.mosaic, copy_paste=self.copy_paste)
        check(len(self.short_sides) > 0, "variation.short_sides must name a side, as 800")
        for side in (*self.short_sides, self.longest_side):
            check(side >= 1, f"variation: a side of {side} pixels must be at least 1")
        check(
            max(self.short_sides) <= self.longest_side,
            f"variation.longest_side {self.longest_side} must not be below the short sides, {max(self.short_sides)}",
        )
        if self.between:
            check(
                len({*self.short_sides}) == 2,
                f"variation.between takes the least and the greatest short side, not {len(self.short_sides)} of them",
            )
        for name in ("crop", "flip", "mosaic", "copy_paste"):
            share = getattr(self, name)
            check(0 <= share <= 1, f"variation.{name} {share} must be between 0 and 1")
