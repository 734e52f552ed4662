"""What a detector has found in one picture, as plain arrays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convattn.detection.rasterise import Size
from convattn.extras import require

__all__ = ["Detections", "runs_of"]


@dataclass(frozen=True)
class Detections:
    """What was found, the surest first as a rule, in pixels of the picture."""

    boxes_xyxy: np.ndarray  # (n, 4) float
    scores: np.ndarray  # (n,) float, 0 to 1
    labels: np.ndarray  # (n,) int64, from 0
    size: Size
    masks: np.ndarray | None = None  # (n, H, W) bool

    @classmethod
    def of(cls, output: Mapping[str, Any], size: Size) -> "Detections":
        """What a detector gives for a picture of this height and width: tensors, boxes in the picture's pixels."""
        masks = output.get("masks")
        boxes, scores, labels = (output[name].detach().cpu().numpy() for name in ("boxes", "scores", "labels"))
        if masks is not None:
            masks = masks.detach().reshape(len(boxes), *size).cpu().numpy()
        return cls(boxes, scores, labels.astype(np.int64), size, masks)

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, kept: np.ndarray) -> "Detections":
        """Some of them, by places or by (n,) bool."""
        masks = None if self.masks is None else self.masks[kept]
        return Detections(self.boxes_xyxy[kept], self.scores[kept], self.labels[kept], self.size, masks)

    def are_above(self, score: float, labels: Collection[int] | None = None) -> np.ndarray:
        """Which have at least this score, and are of these classes, (n,) bool."""
        kept = self.scores >= score
        return kept if labels is None else kept & np.isin(self.labels, [*labels])

    def above(self, score: float, labels: Collection[int] | None = None) -> "Detections":
        """Those of at least this score, and of these classes."""
        return self.part(self.are_above(score, labels))


def runs_of(masks: np.ndarray) -> list[dict[str, Any]]:
    """Masks (n, H, W) of 0 and 1 as pycocotools holds them, an RLE each."""
    if not len(masks):
        return []
    pixels = np.ascontiguousarray(masks.transpose(0, 2, 1), dtype=np.uint8)  # down the columns
    found: list[dict[str, Any]] = require("pycocotools.mask", "detection").encode(pixels.T)
    return found
