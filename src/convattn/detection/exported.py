"""What an exported file has to say of a detector, how often two forms of one agree, and how a file is used as one: the
part of the room that `convattn.deploy` asks for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from convattn.data.preprocessing import are, check_preprocessing, short
from convattn.detection.box_coder import clipped
from convattn.detection.detector import Detector
from convattn.detection.export_form import ExportForm, Numbers
from convattn.detection.masks import pasted
from convattn.detection.post_processing import stretch
from convattn.task import Pairs

__all__ = [
    "FileDetector",
    "agreement",
    "as_detector",
    "check_description",
    "describe",
    "for_export",
    "found",
    "numbers",
    "paired",
]

_KEPT = ("label_names", "scale", "antialias")
_MOST_CLASSES, _MOST_ROWS = 10_000, 10_000
_SAME = 0.5  # IoU from which two boxes of a class show the same object
_NEAR = 0.95  # IoU from which they are the same box: of less it may be the one of another anchor
_UNCERTAIN = 0.05  # a score below which nobody looks
_MASK_SIDE = 28


# Writing


def for_export(model: nn.Module) -> nn.Module:
    """What is written of a detector: tables with a fixed number of rows."""
    return ExportForm(model) if isinstance(model, Detector) else model


def numbers(model: nn.Module) -> nn.Module | None:
    """What is compared of it number by number; None of what is no such form."""
    return Numbers(model.detector) if isinstance(model, ExportForm) else None


def describe(model: nn.Module) -> dict[str, Any]:
    """The number of its classes and their names, how large images are seen, how many rows there are, masks or not."""
    found: Any = model
    detector: Any = getattr(model, "detector", model)
    cfg: Any = found.pretrained_cfg or {}
    return {
        "num_classes": found.num_classes,
        "has_masks": found.has_masks,
        "max_detections": detector.max_detections,
        "score_threshold": float(detector.score_threshold),
    } | {key: cfg[key] for key in _KEPT if cfg.get(key) is not None}


def check_description(described: Mapping[str, Any]) -> dict[str, Any]:
    """The same from a file of anybody's.

    Raises:
        ValueError, KeyError: if it is none.
    """
    for name, most in (("num_classes", _MOST_CLASSES), ("max_detections", _MOST_ROWS)):
        if not are([described[name]], int) or not 1 <= described[name] <= most:
            raise ValueError(f"{name} {short(described[name])} is no whole number from 1 to {most}")
    if not isinstance(described["has_masks"], bool):
        raise ValueError(f"has_masks {short(described['has_masks'])} is neither true nor false")
    least = described["score_threshold"]
    if not are([least], (int, float)) or not 0 <= least <= 1:
        raise ValueError(f"score_threshold {short(least)} is no number from 0 to 1")
    kept = {key: described[key] for key in _KEPT if key in described}
    check_preprocessing(kept)
    if "label_names" in kept and len(kept["label_names"]) != described["num_classes"]:
        raise ValueError(f"{len(kept['label_names'])} label_names of {described['num_classes']} classes")
    plain = ("num_classes", "has_masks", "max_detections", "score_threshold")
    tuples = {key: value if isinstance(value, bool) else tuple(value) for key, value in kept.items()}
    return {key: described[key] for key in plain} | tuples


# Comparing


def paired(got: Sequence[Tensor], want: Sequence[Tensor], exact: bool = True) -> Pairs | None:
    """The rows of two tables that are the same box, side by side; None of what are no such tables.

    The surest row chooses first: of those of its class whose IoU with it is 0.95 or more the one whose IoU and score
    are nearest. What has no partner counts by its score: at the threshold rounding decides who is there.

    Args:
        got, want: the tables.
        exact: that all rows count. In arithmetic of less than 32 bits those with a score below 0.05 on both sides do
            not: which of thousands of places that hold nothing stand there is decided in the last digits.
    """
    if not _are_tables(got) or not _are_tables(want):
        return None
    return _pairs(got, want, _NEAR, 0.0 if exact else _UNCERTAIN)


def _pairs(got: Sequence[Tensor], want: Sequence[Tensor], least: float, counted: float = 0.0) -> Pairs:
    mine: list[list[Tensor]] = []
    yours: list[list[Tensor]] = []
    total = shared = 0.0
    for image in range(len(want[0])):
        ours, theirs = [one[image] for one in got], [one[image] for one in want]
        rows, partners = _partners(ours, theirs, least)
        sure = (ours[1][rows] >= counted) | (theirs[1][partners] >= counted)
        rows, partners = rows[sure], partners[sure]
        total += sum(float(one[one >= counted].sum()) for one in (ours[1], theirs[1]))
        shared += sum(float(one[one >= counted].sum()) for one in (ours[1][rows], theirs[1][partners]))
        mine.append([one[rows] for one in ours])
        yours.append([one[partners] for one in theirs])
    ours, theirs = ([torch.cat(parts)[None] for parts in zip(*images, strict=True)] for images in (mine, yours))
    scales = [None, 1.0, None, 1.0][: len(want)]  # boxes, scores, labels, masks
    return Pairs(ours, theirs, shared / total if total else 1.0, scales)


def agreement(got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
    """How alike what two forms found is, by title; nothing where neither found anything sure enough to be looked at.

    Of all rows with a score of 0.05 or more: the share that has a partner with an IoU of 0.5 or more; then, of those
    with one, the mean IoU of the boxes, 1 less the mean difference of the scores, and the mean IoU of the masks where
    there are some.
    """
    if not _are_tables(got) or not _are_tables(want):
        return {}
    mine, yours = ([one[0], one[1].where(one[1] >= _UNCERTAIN, 0.0), *one[2:]] for one in (got, want))
    count = int((mine[1] > 0).sum() + (yours[1] > 0).sum())
    if not count:
        return {}
    pairs = _pairs(mine, yours, _SAME)
    ours, theirs = ([one[0].double() for one in side] for side in (pairs.got, pairs.want))
    found = {"same detections": 2 * len(ours[1]) / count}
    if not len(ours[1]):
        return found
    found["boxes"] = box_iou(_grown(ours[0]), _grown(theirs[0])).diagonal().mean().item()
    found["scores"] = 1 - (ours[1] - theirs[1]).abs().mean().item()
    if len(ours) > 3:
        inside, outside = (ours[3] >= 0.5) & (theirs[3] >= 0.5), (ours[3] >= 0.5) | (theirs[3] >= 0.5)
        whole = outside.sum((1, 2)).clamp(min=1)
        ratio = (inside.sum((1, 2)) / whole).where(outside.any(2).any(1), 1.0)  # two empty masks are alike
        found["masks"] = ratio.double().mean().item()
    return found


def _are_tables(outputs: Sequence[Tensor]) -> bool:
    """Whether these are boxes, scores and labels, and masks perhaps."""
    if len(outputs) not in (3, 4):
        return False
    boxes, scores, labels, *masks = outputs
    rows = scores.shape
    return (
        scores.ndim == 2
        and boxes.shape == (*rows, 4)
        and labels.shape == rows
        and not labels.is_floating_point()
        and all(one.shape == (*rows, _MASK_SIDE, _MASK_SIDE) for one in masks)
    )


def _partners(ours: Sequence[Tensor], theirs: Sequence[Tensor], least: float) -> tuple[Tensor, Tensor]:
    """Numbers of rows of two tables (n, …) with that IoU, (k,) each; every row is in one pair at most."""
    (mine,), (yours,) = ((table[1] > 0).nonzero(as_tuple=True) for table in (ours, theirs))
    overlap = box_iou(_grown(ours[0][mine]), _grown(theirs[0][yours]))
    same = (ours[2][mine][:, None] == theirs[2][yours]) & (overlap >= least)
    likeness = overlap - (ours[1][mine][:, None] - theirs[1][yours]).abs().double()
    likeness = likeness.where(same, -torch.inf)
    rows, partners = [], []
    for row in ours[1][mine].argsort(descending=True, stable=True).tolist():
        best = int(likeness[row].argmax()) if len(yours) else 0
        if not len(yours) or likeness[row, best] == -torch.inf:
            continue
        rows.append(row)
        partners.append(best)
        likeness[:, best] = -torch.inf
    return mine[rows], yours[partners]


def _grown(boxes: Tensor) -> Tensor:
    """Boxes half a pixel larger at each side: those without an area would overlap nothing, not even themselves.

    Corners that have crossed, as those of learnt proposals may, change places.
    """
    first, last = boxes.double().unflatten(-1, (2, 2)).unbind(-2)
    return torch.cat([torch.minimum(first, last) - 0.5, torch.maximum(first, last) + 0.5], -1)


# Using


def as_detector(model: nn.Module) -> nn.Module:
    """What is called as a detector is: itself, or a file or form of one so that it can be."""
    return model if isinstance(model, Detector | FileDetector) else FileDetector(model)


class FileDetector(nn.Module):
    """An exported detector that is called as the one it was made from.

    A file for one size is given smaller images with a border of zeros at their right and bottom; larger ones are made
    smaller until they fit, bilinear with antialiasing. A file for any size is given each image as it is.

    Args:
        file: what `load_exported` gives of a detector, or an `ExportForm`.
    """

    def __init__(self, file: nn.Module):
        super().__init__()
        self.file = file
        self.eval()

    @torch.no_grad()
    def forward(
        self, images: Sequence[Tensor] | Tensor, original_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Images (3, H, W) of any sizes, or (B, 3, H, W) -> what is found in each, as `Detector.detections` gives it.

        Raises:
            ValueError: for another number of sizes, or images that the file does not take.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        originals = [*original_sizes] if original_sizes is not None else sizes
        if len(originals) != len(sizes):
            raise ValueError(f"{len(originals)} original sizes for {len(sizes)} images; give one each")
        frame = self.frame
        results = []
        for image, size, original in zip(images, sizes, originals, strict=True):
            seen, inside = (image, size) if frame is None else _framed(image, frame)
            results += found(self.file(seen[None]), [inside], [original])
        return results

    @property
    def frame(self) -> tuple[int, int] | None:
        """Height and width of the only images that the file takes; None where they are free."""
        size: tuple[int, int] | None = getattr(self.file, "fixed_size", None)
        return size


def found(
    outputs: Mapping[str, Tensor],
    sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]] | None = None,
) -> list[dict[str, Tensor]]:
    """What is found in each image, as `Detector.detections` gives it, from the tables of a file.

    Args:
        outputs: as `ExportForm` gives them.
        sizes: height and width of each image within what the file was given: boxes are cut off there.
        original_sizes: of the pictures behind, at whose size everything is given; `sizes` by default.
    """
    results = []
    for image, (size, original) in enumerate(zip(sizes, original_sizes or sizes, strict=True)):
        there = outputs["labels"][image] >= 0
        boxes = clipped(outputs["boxes"][image][there], size)
        boxes = boxes / stretch(size, original, boxes)
        one = {"boxes": boxes, "scores": outputs["scores"][image][there], "labels": outputs["labels"][image][there]}
        if "masks" in outputs:
            # The mask is of the whole box, also where that goes on beyond the picture.
            whole = outputs["boxes"][image][there] / stretch(size, original, boxes)
            one["masks"] = pasted(outputs["masks"][image][there], whole, original)
        results.append(one)
    return results


def _framed(image: Tensor, frame: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """An image (3, H, W) in the upper left corner of one of another size, and how large it is in there."""
    height, width = image.shape[1:]
    ratio = min(1.0, frame[0] / height, frame[1] / width)
    size = (height, width)
    if ratio < 1:
        size = max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))
        size = min(size[0], frame[0]), min(size[1], frame[1])
        image = nn.functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return nn.functional.pad(image, (0, frame[1] - size[1], 0, frame[0] - size[0])), size
