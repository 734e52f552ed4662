"""A look through images with masks before training: what `convattn data check` asks of segmentation."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

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
from convattn.data.dataset import DataError
from convattn.data.files import listing
from convattn.data.images import ImageError, decode_with_mode
from convattn.segmentation.dataset import MaskedImages
from convattn.segmentation.masks import MaskError, UnknownLabel
from convattn.segmentation.meaning import mask_code
from convattn.segmentation.options import IGNORED, CheckOptions, LabelOptions
from convattn.segmentation.pairs import ALONE, Layout
from convattn.segmentation.pictures import overlaid
from convattn.segmentation.sources import class_table, layout_of, open_training, recognises
from convattn.shown import shown
from convattn.task import Table

__all__ = ["SIDE", "MaskCheck", "MaskedSplit", "check_data", "open_splits", "picture", "recognises"]

SIDE = 240  # pixels of a picture on the contact sheet
_RARE = 0.001  # share of the pixels below which a class is rare
_WITHOUT_COUNTS = "no pixel counts"


@dataclass(frozen=True)
class MaskedSplit(SplitCheck):
    """What one split holds; `classes` are pixels of each."""

    holding: Mapping[str, int] = field(default_factory=dict)  # images in which a class has pixels
    ignored: int = 0  # pixels that count for nothing

    @property
    def shares(self) -> dict[str, float]:
        """Of the pixels that count, 0 to 1 for each class."""
        total = max(1, sum(self.classes.values()))
        return {name: pixels / total for name, pixels in self.classes.items()}

    @property
    def ignored_share(self) -> float:
        """Of all pixels of readable masks, 0 to 1."""
        return self.ignored / max(1, self.ignored + sum(self.classes.values()))

    def as_json(self) -> dict[str, Any]:
        """As plain numbers and texts."""
        shares, content = self.shares, super().as_json()
        del content["holding"]
        content["classes"] = {
            name: {"pixels": pixels, "share": shares[name], "images": self.holding[name]}
            for name, pixels in self.classes.items()
        }
        content["ignored_share"] = self.ignored_share
        content["kinds"] = {kind: [*self.kinds.values()].count(kind) for kind in dict.fromkeys(self.kinds.values())}
        return content


@dataclass(frozen=True)
class MaskCheck(DataCheck):
    """What was found in images with masks."""

    broken: ClassVar[str] = "cannot be learnt from"
    contradiction: ClassVar[str] = "with different masks"

    def class_table(self, most: int | None = None) -> Table:
        """The share of each class of the pixels, and in how many images it is."""
        splits: Mapping[str, Any] = self.splits
        names = some_of(next(iter(splits.values())).classes, most)
        shares = {split: check.shares for split, check in splits.items()}
        rows = []
        for name in names:
            cells = (
                (f"{100 * shares[split][name]:.2f} %", f"{check.holding[name]:,}") for split, check in splits.items()
            )
            rows.append((name, *(text for pair in cells for text in pair)))
        ignored = ((f"{100 * check.ignored_share:.2f} %", "") for check in splits.values())
        rows.append(("(counts for nothing)", *(text for pair in ignored for text in pair)))
        columns = ("class", *(text for split in splits for text in (f"{split}: pixels", "images")))
        return Table("Classes", columns, tuple(rows), frozenset(range(1, len(columns))))


@dataclass(frozen=True)
class _SeenMask(Seen):
    counts: np.ndarray | None = None  # (classes + 1,) pixels of each class, then those that count for nothing


def open_splits(
    source: str | Path, validation: str | Path | None = None, options: CheckOptions | None = None
) -> Opened:
    """Open images and masks as training does, and the test images where they are beside.

    Where training would refuse them, that is among the problems, and the splits that are there are looked at.

    Raises:
        DataError: if nothing can be looked at.
    """
    labels = LabelOptions() if options is None else options.labels
    notes: list[str] = []
    problems: list[str] = []
    splits: dict[str, MaskedImages] = {}
    with telling(notes):
        layout = layout_of(source)
        try:
            splits["train"], splits["val"] = open_training(source, labels, validation=validation)
        except DataError as error:
            problems.append(str(error))
            splits = _whatever_is_there(layout, labels)
        if "test" in layout and all(data.pairs.where != str(layout.places["test"][0]) for data in splits.values()):
            try:
                splits["test"] = MaskedImages(layout.pairs("test"), next(iter(splits.values())).code)
            except DataError as error:
                notes.append(f"the test images are not looked at: {error}")
    notes += [f"{split}: its images have no masks and are not looked at" for split in layout.unmasked]
    return Opened({**splits}, problems, notes)


def check_data(opened: Opened, on_images: Callable[[int], None] | None = None) -> MaskCheck:
    """Read and decode every image and every mask once, on all processors.

    Args:
        opened: the splits, and what is known of them already.
        on_images: called with a number of images that are done.
    """
    found = examined(opened.splits, _look, on_images)
    checks = {split: _split(data, found.seen[split]) for split, data in opened.splits.items()}
    notes = [*dict.fromkeys(opened.notes)]
    for split, check in checks.items():
        notes += _classes_to_know(split, check)
    first, data = next(iter(opened.splits.items()))
    colours = dict(zip(data.classes, data.colours, strict=True))
    return MaskCheck.of(
        opened, found, checks, _sheets(first, checks[first], _counts(data, found.seen[first])), notes, colours=colours
    )


def picture(data: MaskedImages, index: int) -> Image.Image:
    """An image with the classes' colours laid over it, alone where its mask says nothing; ImageError without one."""
    image = data.read(index)
    with suppress(ImageError):
        labels, _ = data.known_labels(index, image.size)
        return overlaid(image, labels, data.colours)
    return image


def _whatever_is_there(layout: Layout, labels: LabelOptions) -> dict[str, MaskedImages]:
    """The splits that a run would learn from and be judged by, as far as they have masks, under the same classes."""
    pairs, reasons = {}, []
    for split in ("train", "val", ALONE):
        if split in layout:
            try:
                pairs[split] = layout.pairs(split)
            except DataError as error:
                reasons.append(error)
    if not pairs:
        raise reasons[0] if reasons else DataError(f"{shown(layout.root)}: neither train nor val has images with masks")
    for each in pairs.values():
        each.tell()
    table = class_table(layout, labels, [*pairs.values()])
    assert table is not None  # pairs were given
    code = mask_code(table, labels)
    return {split: MaskedImages(each, code) for split, each in pairs.items()}


def _look(data: MaskedImages, index: int) -> _SeenMask:
    try:
        image, mode = decode_with_mode(data.read_bytes(index), data.paths[index])
    except ImageError as error:
        return _SeenMask(str(error), DataCheck.broken)
    seen = pixels_told(image, mode)
    try:
        labels, problem = data.known_labels(index, image.size)
    except MaskError as error:
        return _SeenMask(str(error), error.kind, **seen)
    except ImageError as error:
        return _SeenMask(str(error), DataCheck.broken, **seen)
    every = np.bincount(labels.ravel(), minlength=IGNORED + 1)
    counts = np.append(every[: len(data.classes)], every[IGNORED])
    nothing = not problem and not counts[:-1].any()
    return _SeenMask(
        problem,
        UnknownLabel.kind,
        **seen,
        said=hashlib.blake2b(labels.tobytes(), digest_size=16).digest(),
        oddities=(_WITHOUT_COUNTS,) if nothing else (),
        counts=counts,
    )


def _split(data: MaskedImages, seen: Sequence[Any]) -> MaskedSplit:
    counts = _counts(data, seen)
    pixels, holding = counts.sum(0).tolist(), (counts > 0).sum(0).tolist()
    return MaskedSplit(
        classes=dict(zip(data.classes, pixels, strict=False)),
        holding=dict(zip(data.classes, holding, strict=False)),
        ignored=pixels[-1],
        **facts_of(data, seen),
    )


def _counts(data: MaskedImages, seen: Sequence[Any]) -> np.ndarray:
    """(images, classes + 1) pixels; none of images whose mask could not be read."""
    nothing = np.zeros(len(data.classes) + 1, dtype=np.int64)
    return np.stack([nothing if one.counts is None else one.counts for one in seen])


def _classes_to_know(split: str, check: MaskedSplit) -> list[str]:
    """What is hardly there, or not at all."""
    lines = []
    absent = [name for name, pixels in check.classes.items() if not pixels]
    rare = [f"{name} {100 * share:.3f} %" for name, share in check.shares.items() if 0 < share < _RARE]
    if absent:
        lines.append(f"{split}: no pixel of {listing(absent, 12)}, so that nothing is known of it here")
    if rare:
        lines.append(f"{split}: below {100 * _RARE:g} % of the pixels: {listing(rare, 12)}")
    return lines


def _sheets(split: str, check: MaskedSplit, counts: np.ndarray) -> list[Sheet]:
    return sheets_of(
        split,
        check,
        counts / np.maximum(1, counts.sum(1, keepdims=True)),
        lambda name: (
            f"{100 * check.shares[name]:.2f} % of the pixels, in {check.holding[name]:,} images; where it has the most"
        ),
    )
