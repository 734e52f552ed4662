"""How a segmenter looks at a picture: at which size, whole or by windows, at several sizes and mirrored."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.segmentation.windows import image_logits, label_bands, resized_bands

__all__ = ["MOST_PIXELS", "Look", "look_of"]

MOST_PIXELS = 2**20  # that are looked at whole: 1024 × 1024, or a published 2048 × 512


@dataclass(frozen=True)
class Look:
    """A network, and how much of an image it sees at a time.

    Args:
        model: images (B, 3, H, W) -> logits (B, classes, H, W), or classes (B, H, W) of one with the arg max inside.
        classes: how many.
        side: height and width of windows where an image is seen by windows.
        step: from one to the next.
        always: windows for every image, of whatever size; otherwise only for those that are too large.
        fixed: the network takes images of `side` and no others; smaller ones get a black border.
        most: pixels of an image that is seen whole.
    """

    model: nn.Module
    classes: int
    side: tuple[int, int]
    step: tuple[int, int]
    always: bool = False
    fixed: bool = False
    most: int = MOST_PIXELS

    def window(self, images: Tensor) -> tuple[int, int] | None:
        """The window for images (B, 3, H, W); None where they are seen whole."""
        height, width = images.shape[-2:]
        return self.side if self.always or self.fixed or height * width > self.most else None

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, classes, H, W) float32, at their size."""
        return image_logits(self._network, images, self.window(images), self.step)

    def labels(self, images: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
        """The most probable classes (B, rows, W) uint8, top down in bands, at the size of the picture behind images."""
        return label_bands(self._network, images, size, self.window(images), self.step)

    def probabilities(self, views: Sequence[Tensor], size: tuple[int, int], *, flip: bool) -> Tensor:
        """The mean of the probabilities (B, classes, *size) over views of one picture, each mirrored too if asked.

        Args:
            views: images (B, 3, h, w) of the same pictures at several sizes.
            size: of the pictures.
            flip: look at each view mirrored as well.
        """
        total: Any = 0
        for view in views:
            for mirrored in (False, True) if flip else (False,):
                logits = self.logits(view.flip(-1) if mirrored else view)
                there = torch.cat([*resized_bands(logits, size)], dim=2).softmax(1)
                total = total + (there.flip(-1) if mirrored else there)
        return total / (len(views) * (1 + flip))

    def _network(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.fixed and (height, width) != self.side:
            images = F.pad(images, (0, self.side[1] - width, 0, self.side[0] - height))
        outputs = self.model(images)
        if outputs.ndim == 3:  # classes: as sure as can be
            outputs = F.one_hot(outputs.long(), self.classes).movedim(-1, 1).float()
        return outputs[..., :height, :width].to(torch.promote_types(outputs.dtype, torch.float32))


def look_of(model: Any, options: Any, ratio: float = 1.0) -> Look:
    """How `model` looks by the `window` and `step` of a command; by windows of two thirds apart where nothing is said.

    Args:
        model: that looks.
        options: with `window` and `step`.
        ratio: the largest at which an image is looked at: one that is seen whole is seen so at that size, too.

    Raises:
        ValueError: for a window that an exported file of one size does not take.
    """
    fixed = getattr(model, "fixed_size", None)
    side = fixed or tuple(model.pretrained_cfg["input_size"][1:])
    if options.window is not None:
        if fixed is not None and fixed != (options.window, options.window):
            raise ValueError(
                f"--window {options.window}: this file takes images of {fixed[0]} x {fixed[1]} alone; leave it out"
            )
        side = options.window, options.window
    step = tuple(options.step or math.ceil(2 * part / 3) for part in side)
    most = int(MOST_PIXELS * max(1.0, ratio) ** 2)
    always, is_fixed = options.window is not None, fixed is not None
    return Look(model, model.num_classes, side, step, always=always, fixed=is_fixed, most=most)
