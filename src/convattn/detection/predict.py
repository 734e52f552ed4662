"""What a detector says of a picture: boxes, classes and scores, and masks of detectors that draw them."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms

from convattn.data.colours import default_colours
from convattn.detection.detections import Detections
from convattn.detection.options import PredictionOptions
from convattn.detection.pictures import DrawnObject, with_masks, with_objects
from convattn.detection.writers import coco_results, yolo_text
from convattn.nearest import nearest
from convattn.task import Prediction

__all__ = ["ObjectPrediction", "asked_labels", "detect"]

_SAME = 0.5  # IoU above which two windows have found one object
_CUT = 2.0  # pixels from the border of a window, within which a box may go on beyond it
_KINDS = 6  # classes in a line


@dataclass(frozen=True)
class ObjectPrediction(Prediction):
    """The objects of a picture, the surest first."""

    detections: Detections
    names: tuple[str, ...]  # of the classes

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """(n, 4) float, pixels of the picture."""
        return self.detections.boxes_xyxy

    @property
    def scores(self) -> np.ndarray:
        """(n,) 0 to 1."""
        return self.detections.scores

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64: numbers of classes, from 0."""
        return self.detections.labels

    @property
    def masks(self) -> np.ndarray | None:
        """(n, H, W) bool, of detectors that draw them."""
        return self.detections.masks

    @property
    def class_names(self) -> list[str]:
        """The name of each object's class."""
        return [self.names[label] for label in self.labels]

    def as_json(self) -> dict[str, Any]:
        """`{"size": [height, width], "objects": [{"class": …, "index": …, "score": …, "box_xyxy": […]}, …]}`.

        Masks stand beside as COCO's compressed RLE, `"mask": {"size": …, "counts": …}`.
        """
        objects = []
        for row, entry in zip(self.rows(), coco_results(self.detections, 0, range(len(self.names))), strict=True):
            box = [row.pop(corner) for corner in ("x1", "y1", "x2", "y2")]
            mask = {"mask": entry["segmentation"]} if "segmentation" in entry else {}
            objects.append({**row, "box_xyxy": box, **mask})
        return {"size": [*self.detections.size], "objects": objects}

    def rows(self) -> list[dict[str, Any]]:
        """An object each."""
        found = self.detections
        return [
            {
                "class": self.names[label],
                "index": label,
                "score": score,
                **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            }
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
            )
        ]

    def line(self) -> str:
        """How many of each class, the most frequent first."""
        counts = Counter(self.class_names).most_common()
        more = f", and {len(counts) - _KINDS} more classes" if len(counts) > _KINDS else ""
        return ", ".join(f"{count} {name}" for name, count in counts[:_KINDS]) + more if counts else "nothing found"

    def draw(self, picture: Image.Image) -> Image.Image:
        """The picture with boxes, classes and scores, and with masks."""
        colours = default_colours(len(self.names))
        own = [colours[label] for label in self.labels]
        if self.masks is not None:
            picture = with_masks(picture, self.masks, own)
        texts = [f"{name} {score:.2f}" for name, score in zip(self.class_names, self.scores, strict=True)]
        return with_objects(picture, map(DrawnObject, self.boxes_xyxy, own, texts))

    def files(self) -> dict[str, bytes]:
        """YOLO's text file: `class x y width height score` a line, shares of the sides."""
        return {".txt": yolo_text(self.detections).encode()}


@torch.inference_mode()
def detect(
    model: nn.Module,
    pictures: Sequence[Image.Image],
    options: PredictionOptions,
    transform: Callable[[Image.Image], Tensor],
    names: Sequence[str],
    on_part: Callable[[float], None] = lambda pictures: None,
) -> list[ObjectPrediction]:
    """The objects in RGB pictures of any sizes.

    Args:
        model: a detector.
        pictures: of any sizes.
        options: what is shown, and whether by windows.
        transform: from a picture to the model's input (3, H, W).
        names: of the classes.
        on_part: called with how much of a picture is done.

    Raises:
        ValueError: for a class to show that there is none of.
    """
    only = asked_labels(model, options, names)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def look(views: Sequence[Image.Image]) -> list[Detections]:
        images = [transform(view).to(device, non_blocking=True) for view in views]
        sizes = [(view.height, view.width) for view in views]
        outputs = model(images, original_sizes=sizes)
        found = [Detections.of(output, size) for output, size in zip(outputs, sizes, strict=True)]
        return [one.above(options.score, only) for one in found]

    said: list[Detections] = []
    if options.tile is not None:
        for picture in pictures:
            said.append(_by_windows(look, picture, options.tile, options.overlap, on_part))
    else:
        # A processor gains nothing by images beside one another, which are padded to the largest.
        step = 1 if device.type == "cpu" else len(pictures)
        for start in range(0, len(pictures), step):
            said += look(pictures[start : start + step])
            on_part(len(pictures[start : start + step]))
    return [ObjectPrediction(found, tuple(names)) for found in said]


def asked_labels(model: nn.Module, options: PredictionOptions, names: Sequence[str]) -> list[int] | None:
    """The numbers of the classes to show; None for all. A score that shows no more than another is told.

    Raises:
        ValueError: for a class that there is none of.
    """
    for name in options.only:
        if name not in names:
            raise ValueError(f"--only {name}: the model knows no such class; {nearest(name, names)}")
    least = getattr(model, "score_threshold", 0.0)
    if options.score < least:
        warnings.warn(
            f"score {options.score:g} is below the detector's own, {least:g}: nothing that is less sure is found",
            stacklevel=3,
        )
    return [names.index(name) for name in options.only] or None


def _by_windows(
    look: Callable[[Sequence[Image.Image]], list[Detections]],
    picture: Image.Image,
    tile: int,
    overlap: float,
    on_part: Callable[[float], None],
) -> Detections:
    """What is found in the whole picture and in windows of it, each object once.

    What lies at a border of a window that is none of the picture's is cut off there; the next window has it whole if it
    is no larger than what both show, and the whole picture if it is.
    """
    corners = [
        (left, top) for top in _starts(picture.height, tile, overlap) for left in _starts(picture.width, tile, overlap)
    ]
    windows = corners if len(corners) > 1 else []
    size = picture.height, picture.width
    parts: list[tuple[int, int, Detections]] = [(0, 0, look([picture])[0])]
    on_part(1 / (len(windows) + 1))
    for left, top in windows:
        right, bottom = min(left + tile, picture.width), min(top + tile, picture.height)
        (found,) = look([picture.crop((left, top, right, bottom))])
        inner = np.array([left > 0, top > 0, right < picture.width, bottom < picture.height])
        gaps = np.abs(found.boxes_xyxy - [0, 0, right - left, bottom - top])
        parts.append((left, top, found.part(~(inner & (gaps < _CUT)).any(1))))
        on_part(1 / (len(windows) + 1))
    boxes = np.concatenate(
        [found.boxes_xyxy + np.array([left, top] * 2, found.boxes_xyxy.dtype) for left, top, found in parts]
    )
    scores, labels = (np.concatenate([getattr(found, name) for *_, found in parts]) for name in ("scores", "labels"))
    kept = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), _SAME).numpy()
    masks = None
    if parts[0][2].masks is not None:
        masks = np.zeros((len(kept), *size), bool)  # as large as the picture only once they are chosen
        within = [(left, top, mask) for left, top, found in parts for mask in found.masks]  # type: ignore[union-attr]
        for whole, at in zip(masks, kept, strict=True):
            left, top, mask = within[at]
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return Detections(boxes[kept], scores[kept], labels[kept], size, masks)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    """Where windows begin: in even steps, the last at the end."""
    if side <= tile:
        return [0]
    count = int(np.ceil((side - tile) / max(1.0, tile * (1 - overlap)))) + 1
    return np.linspace(0, side - tile, count).round().astype(int).tolist()
