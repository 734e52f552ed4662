"""A look through images with objects before training: what `convattn data check` asks of detection."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw

from convattn.data.check import (
    DataCheck,
    Opened,
    Seen,
    Sheet,
    SplitCheck,
    examined,
    facts_of,
    pixels_told,
    sheets_of,
    some_of,
    telling,
)
from convattn.data.colours import default_colours
from convattn.data.dataset import DataError
from convattn.data.files import listing
from convattn.data.images import ImageError, decode_with_mode
from convattn.detection.annotations import Annotations
from convattn.detection.dataset import DetectionImages, OtherSize
from convattn.detection.layout import ALONE, Layout
from convattn.detection.matching import SIZES, box_overlaps
from convattn.detection.options import CheckOptions
from convattn.detection.pictures import DrawnObject, with_objects
from convattn.detection.rasterise import box_of
from convattn.detection.sources import layout_of, open_training, recognises
from convattn.task import Table

__all__ = [
    "SIDE",
    "DetectionCheck",
    "DetectionSplit",
    "check_data",
    "drawn",
    "open_splits",
    "picture",
    "recognises",
]

SIDE = 320  # pixels of a picture on the contact sheet
_TINY = 2.0  # pixels of a side, below which a box is odd
_APART = 0.5  # IoU of a box and that of its outline, below which they are
_FEW = 10  # objects of a class, below which it is told
_OTHER_SIZE = "of another size than annotated"


@dataclass(frozen=True)
class DetectionSplit(SplitCheck):
    """What one split holds; `classes` are objects of each, without crowds."""

    holding: Mapping[str, int] = field(default_factory=dict)  # images in which a class has objects
    sizes: Mapping[str, int] = field(default_factory=dict)  # objects that are small, medium, large, by COCO's areas
    sides: tuple[float, float, float] = (0, 0, 0)  # the root of a box's area: smallest, median, greatest, pixels
    a_picture: tuple[float, float, float] = (0, 0, 0)  # objects in an image: fewest, median, most
    crowds: int = 0  # areas that are neither learnt nor judged
    without: int = 0  # images without an object
    passed_over: Sequence[str] = ()  # annotations that mean nothing, a line for each reason

    def as_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""
        content = super().as_json()
        holding = content.pop("holding")
        content["classes"] = {name: {"objects": count, "images": holding[name]} for name, count in self.classes.items()}
        content["kinds"] = {kind: [*self.kinds.values()].count(kind) for kind in dict.fromkeys(self.kinds.values())}
        return content


@dataclass(frozen=True)
class DetectionCheck(DataCheck):
    """What was found in images with objects."""

    broken: ClassVar[str] = "cannot be learnt from"
    contradiction: ClassVar[str] = "with different objects"

    def class_table(self, most: int | None = None) -> Table:
        """The objects of each class, and in how many images they are."""
        splits: Mapping[str, Any] = self.splits
        rows = []
        for name in some_of(next(iter(splits.values())).classes, most):
            cells = ((f"{check.classes[name]:,}", f"{check.holding[name]:,}") for check in splits.values())
            rows.append((name, *(text for pair in cells for text in pair)))
        columns = ("class", *(text for split in splits for text in (f"{split}: objects", "images")))
        return Table("Classes", columns, tuple(rows), frozenset(range(1, len(columns))))


@dataclass(frozen=True)
class _SeenObjects(Seen):
    objects: Annotations | None = None


def open_splits(
    source: str | Path, validation: str | Path | None = None, options: CheckOptions | None = None
) -> Opened:
    """Open images with objects as training does, and the test images where they are beside.

    Where training would refuse them, that is among the problems, and the splits that can be read are looked at.

    Raises:
        DataError: if nothing can be looked at.
    """
    masks = options is not None and options.masks
    notes: list[str] = []
    problems: list[str] = []
    splits: dict[str, DetectionImages] = {}
    with telling(notes):
        layout = layout_of(source)
        try:
            splits["train"], splits["val"] = open_training(source, masks=masks, validation=validation)
        except DataError as error:
            problems.append(str(error))
            splits = _whatever_is_there(layout, masks)
        first = next(iter(splits.values()))
        if "test" in layout.splits and all(data.where != str(layout.splits["test"]) for data in splits.values()):
            try:
                splits["test"] = layout.read("test", first.classes, masks=masks)
            except DataError as error:
                notes.append(f"the test images are not looked at: {error}")
    return Opened({**splits}, problems, notes)


def check_data(opened: Opened, on_images: Callable[[int], None] | None = None) -> DetectionCheck:
    """Read and decode every image once, on all processors, beside what is annotated in it.

    Args:
        opened: the splits, and what is known of them already.
        on_images: called with a number of images that are done.
    """
    found = examined(opened.splits, _look, on_images)
    checks = {split: _split(data, found.seen[split]) for split, data in opened.splits.items()}
    notes = [*dict.fromkeys(opened.notes)]
    for split, check in checks.items():
        notes += _to_know(split, check)
    first = next(iter(opened.splits))
    return DetectionCheck.of(opened, found, checks, _sheets(first, checks[first], found.seen[first]), notes)


def picture(data: DetectionImages, index: int) -> Image.Image:
    """An image as the contact sheet shows it, with boxes, names and outlines; ImageError if it cannot be read."""
    image = data.read(index)
    with suppress(OtherSize):
        return drawn(image, data.annotations(index, image.size), data.classes)
    image.thumbnail((SIDE, SIDE))
    return image


def drawn(image: Image.Image, objects: Annotations, classes: Sequence[str], side: int = SIDE) -> Image.Image:
    """A small copy of a picture, `side` pixels at most, with its objects in colours of their classes, crowds grey."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    ratio, colours = np.array([small.width / image.width, small.height / image.height]), default_colours(len(classes))
    draw, boxes = ImageDraw.Draw(small), []
    for at in range(len(objects)):
        crowd, label = objects.crowd[at], objects.labels[at]
        colour = "grey" if crowd else colours[label]
        outline = None if objects.outlines is None else objects.outlines[at]
        for points in () if outline is None or isinstance(outline, bytes) else outline:
            draw.line([*(points * np.tile(ratio, len(points) // 2)), *(points[:2] * ratio)], fill=colour)
        boxes.append(DrawnObject(objects.boxes_xyxy[at] * np.tile(ratio, 2), colour, classes[label], bool(crowd)))
    return with_objects(small, boxes)


def _whatever_is_there(layout: Layout, masks: bool) -> dict[str, DetectionImages]:
    """The splits that a run would learn from and be judged by, as far as they can be read, under the same classes."""
    found: dict[str, DetectionImages] = {}
    reasons = []
    for split in ("train", "val", ALONE):
        if split in layout.splits:
            try:
                known = next(iter(found.values())).classes if found else layout.classes([split])
                found[split] = layout.read(split, known, masks=masks)
            except DataError as error:
                reasons.append(error)
    if not found:
        raise reasons[0] if reasons else DataError(f"{next(iter(layout.splits.values()))}: neither train nor val")
    return found


def _look(data: DetectionImages, index: int) -> _SeenObjects:
    try:
        image, mode = decode_with_mode(data.read_bytes(index), data.paths[index])
    except ImageError as error:
        return _SeenObjects(str(error), DataCheck.broken)
    seen = pixels_told(image, mode)
    try:
        objects = data.annotations(index, image.size)
    except OtherSize as error:
        return _SeenObjects(str(error), _OTHER_SIZE, **seen)
    rows = np.column_stack([objects.labels, objects.crowd, objects.boxes_xyxy.round(1) + 0.0])
    said = hashlib.blake2b(rows[np.lexsort(rows.T)].tobytes(), digest_size=16).digest()
    return _SeenObjects(**seen, said=said, oddities=_oddities(objects), objects=objects)


def _oddities(objects: Annotations) -> list[str]:
    """What is odd about the objects of an image."""
    found = []
    sides = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    tiny = int((sides.min(1, initial=np.inf) < _TINY).sum())
    if tiny:
        found.append(f"{tiny} boxes narrower or lower than {_TINY:g} pixels")
    polygons = [] if objects.outlines is None else [*enumerate(objects.outlines)]
    around = [(at, box_of(outline, objects.size)) for at, outline in polygons if not isinstance(outline, bytes)]
    if around:
        places, boxes = zip(*around, strict=True)
        overlaps = box_overlaps(np.array(boxes), objects.boxes_xyxy, np.zeros(len(objects), bool))
        apart = int((overlaps[np.arange(len(places)), [*places]] < _APART).sum())
        if apart:
            found.append(f"{apart} boxes that are not those of their outlines")
    return found


def _split(data: DetectionImages, seen: Sequence[Any]) -> DetectionSplit:
    known = [one.objects for one in seen if one.objects is not None]
    own = [~objects.crowd for objects in known]
    labels = [objects.labels[kept] for objects, kept in zip(known, own, strict=True)]
    boxes = np.concatenate([np.zeros((0, 4)), *(each.boxes_xyxy[kept] for each, kept in zip(known, own, strict=True))])
    areas = np.concatenate([np.zeros(0), *(each.areas[kept] for each, kept in zip(known, own, strict=True))])
    classes = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(data.classes))
    holding = np.bincount(np.concatenate([np.zeros(0, np.int64), *map(np.unique, labels)]), minlength=len(data.classes))
    edges = [*SIZES.items()][1:]
    return DetectionSplit(
        classes=dict(zip(data.classes, classes.tolist(), strict=True)),
        holding=dict(zip(data.classes, holding.tolist(), strict=True)),
        sizes={name: int(((areas >= low) & (areas < high)).sum()) for name, (low, high) in edges},
        sides=_spread(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))),
        a_picture=_spread(np.array([len(each) for each in labels])),
        crowds=sum(int(objects.crowd.sum()) for objects in known),
        without=sum(not len(each) for each in labels),
        passed_over=data.problems,
        **facts_of(data, seen),
    )


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    return (float(values.min()), float(np.median(values)), float(values.max())) if len(values) else (0, 0, 0)


def _to_know(split: str, check: DetectionSplit) -> list[str]:
    """How large objects are, and which classes hardly have one."""
    total, (least, median, most) = sum(check.classes.values()), check.sides
    sizes = ", ".join(f"{count:,} {name}" for name, count in check.sizes.items())
    lines = [
        f"{split}: {total:,} objects ({sizes}, by COCO's 32² and 96² pixels), {least:.0f} to {most:.0f} pixels large, "
        f"half of them below {median:.0f}; {check.a_picture[0]:.0f} to {check.a_picture[2]:.0f} in an image"
    ]
    if check.crowds:
        lines.append(f"{split}: {check.crowds:,} crowds or difficult objects, neither learnt nor judged")
    if check.without:
        lines.append(f"{split}: {check.without:,} images without an object")
    absent = [name for name, count in check.classes.items() if not count]
    rare = [f"{name} {count}" for name, count in check.classes.items() if 0 < count < _FEW]
    if absent:
        lines.append(f"{split}: no object of {listing(absent, 12)}, so that nothing is known of it here")
    if rare:
        lines.append(f"{split}: fewer than {_FEW} objects: {listing(rare, 12)}")
    return lines


def _sheets(split: str, check: DetectionSplit, seen: Sequence[Any]) -> list[Sheet]:
    classes = len(check.classes)
    labels = [np.zeros(0, np.int64) if one.objects is None else one.objects.labels for one in seen]
    counts = np.stack([np.bincount(each, minlength=classes) for each in labels])
    return sheets_of(
        split,
        check,
        counts,
        lambda name: f"{check.classes[name]:,} objects in {check.holding[name]:,} images; where it has the most",
    )
