"""What every reader of annotations hands over, and which of it counts: one rule for all formats.

An annotation is passed over, and told, if its box is not finite, has no width or height or lies outside its image, if
its class or its image is unknown, if it says again what another does, or if its outline means nothing where outlines
are asked for. Where more than a tenth of the annotations are so, or the boxes look as if they were in another format,
the data are refused.
"""

import os
import warnings
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convattn.data.dataset import DataError, DataWarning
from convattn.data.images import MAX_PIXELS
from convattn.data.names import Names
from convattn.detection.annotations import Outlines
from convattn.detection.dataset import DetectionImages, Objects
from convattn.detection.rasterise import Outline
from convattn.shown import shown

__all__ = ["AREA_NOT_STATED", "Collector", "Convention", "names_in", "tell"]

AREA_NOT_STATED = float("nan")
_MOST_INVALID = 0.1  # share of the annotations of a split
_MOST_MISSING = 0.01  # share of the images that may not be there, as of those that cannot be read
_NAMED = 3  # examples in a line
_AGAIN = "it says again what another does"  # however many: nothing is lost with them
_NO_OUTLINE = "it has no outline"
_LEAST_MISREAD = 0.25  # share of the boxes that do not fit as they are promised
_FITS = 0.99  # share that fits otherwise
_SLACK = 1.0  # pixels by which a box may reach over the border without a word
_RELATIVE_SLACK = 0.005  # of a side


@dataclass(frozen=True)
class Convention:
    """How a format writes a box, and how else people write one."""

    promised: str  # in words
    otherwise: str
    as_otherwise: Callable[[np.ndarray], np.ndarray]  # boxes x1, y1, x2, y2 (n, 4) as they are if read the other way


class Collector:
    """Takes the images and objects of a split as a reader finds them.

    Args:
        where: the file or folder of the annotations.
        convention: of its boxes.
        place: what the annotation of a number is called in messages.
        masks: whether every object needs an outline; without, outlines are not kept.
        relative: whether coordinates are shares of the picture's sides.
    """

    def __init__(
        self,
        where: object,
        convention: Convention,
        place: Callable[[int], str],
        *,
        masks: bool,
        relative: bool = False,
    ):
        self.where, self.masks, self.relative = str(where), masks, relative
        self._convention, self._place = convention, place
        self._paths: list[str] = []
        self._sizes, self._ids = array("q"), list[int | str]()
        self._images, self._labels, self._numbers = array("q"), array("q"), array("q")
        self._crowd, self._boxes, self._areas = array("b"), array("d"), array("d")
        self._outlines: list[Outline] = []
        self._passed_over: dict[str, list[int]] = defaultdict(list)
        self._read = 0

    def image(self, path: str, size: tuple[int, int] = (0, 0), image_id: int | str | None = None) -> int:
        """An image: where it is, its height and width if they are stated, its name there; gives its number.

        Raises:
            DataError: if no image is so large.
        """
        height, width = size
        if height < 0 or width < 0 or height * width > MAX_PIXELS:
            raise DataError(
                f"{shown(self.where)}: {shown(path)} is said to have {width} × {height} pixels; at most "
                f"{MAX_PIXELS:,} are read"
            )
        self._paths.append(path)
        self._sizes.extend(size)
        self._ids.append(len(self._paths) if image_id is None else image_id)
        return len(self._paths) - 1

    def object(
        self,
        image: int,
        number: int,
        box_xyxy: Sequence[float],
        label: int,
        *,
        crowd: bool = False,
        area: float = AREA_NOT_STATED,
        outline: Outline | None = None,
    ) -> None:
        """An object of an image: the number by which messages call it, corners of its box, and what else is known."""
        self._read += 1
        if self.masks and outline is None:
            self._passed_over[_NO_OUTLINE].append(number)
            return
        if self.masks and outline is not None:
            self._outlines.append(outline)
        self._images.append(image)
        self._numbers.append(number)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._boxes.extend(box_xyxy)
        self._areas.append(area)

    def pass_over(self, number: int, reason: str) -> None:
        """An annotation that the reader cannot understand."""
        self._read += 1
        self._passed_over[reason].append(number)

    def finished(self, classes: Sequence[str], *, category_ids: Sequence[int] | None = None) -> DetectionImages:
        """The data set of what counts; what was passed over is told.

        Raises:
            DataError: if there is no image, too many are missing, or too much is invalid.
        """
        if not self._paths:
            raise DataError(f"{shown(self.where)}: lists no image")
        images, numbers = np.array(self._images), np.array(self._numbers, dtype=np.int64)
        boxes = np.array(self._boxes).reshape(-1, 4)
        sizes = np.array(self._sizes).reshape(-1, 2)
        limits = self._limits(sizes)[images] if len(images) else np.zeros((0, 4))
        self._check_convention(boxes, limits)
        kept = self._valid(images, numbers, boxes, limits)
        self._check_amount()
        there = self._present()
        place_of = np.cumsum(there) - 1
        kept = kept[there[images[kept]]]
        kept = kept[np.argsort(images[kept], kind="stable")]
        counts = np.bincount(place_of[images[kept]], minlength=int(there.sum()))
        found = boxes[kept]
        areas = np.array(self._areas)[kept]
        boxed = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        objects = Objects(
            np.append(0, np.cumsum(counts)),
            found,
            np.array(self._labels, dtype=np.int64)[kept],
            np.array(self._crowd, dtype=bool)[kept],
            np.where(areas >= 0, areas, boxed),
            Outlines(self._outlines[at] for at in kept) if self.masks else None,
        )
        problems = [self._line(reason, found) for reason, found in self._passed_over.items()]
        for line in problems:
            tell(line)
        indices = np.flatnonzero(there).tolist()
        return DetectionImages(
            self.where,
            Names(self._paths[at] for at in indices),
            sizes[indices],
            objects,
            classes,
            relative=self.relative,
            image_ids=[self._ids[at] for at in indices],
            category_ids=category_ids,
            problems=problems,
        )

    def _limits(self, sizes: np.ndarray) -> np.ndarray:
        """Width, height, width, height of each image, (images, 4); infinite where they are not known."""
        if self.relative:
            return np.ones((len(sizes), 4))
        known = np.where(sizes > 0, sizes, np.inf)
        return known[:, [1, 0, 1, 0]]

    def _valid(self, images: np.ndarray, numbers: np.ndarray, boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
        """The places of those that count, in order."""
        width, height = limits[:, 0], limits[:, 1]
        with np.errstate(invalid="ignore"):
            rules = {
                "its box is not finite": ~np.isfinite(boxes).all(1),
                "its box has no width or no height": ~((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])),
                "its box lies outside the image": (boxes[:, 0] >= width)
                | (boxes[:, 1] >= height)
                | (boxes[:, 2] <= 0)
                | (boxes[:, 3] <= 0),
            }
        good = np.ones(len(boxes), dtype=bool)
        for reason, wrong in rules.items():
            self._pass_over(reason, numbers[good & wrong])
            good &= ~wrong
        rows = np.column_stack([images, np.array(self._labels, dtype=np.int64), boxes + 0.0])  # -0 is 0
        kept = np.flatnonzero(good)
        _, first = np.unique(np.ascontiguousarray(rows[kept]).view("V48").ravel(), return_index=True)
        again = np.setdiff1d(np.arange(len(kept)), first)
        self._pass_over(_AGAIN, numbers[kept[again]])
        kept = np.delete(kept, again)
        self._tell_beyond(numbers[kept], boxes[kept], limits[kept])
        return kept

    def _tell_beyond(self, numbers: np.ndarray, boxes: np.ndarray, limits: np.ndarray) -> None:
        beyond = np.flatnonzero(_reaching_over(boxes, limits, self._slack))
        if len(beyond):
            tell(
                f"{shown(self.where)}: {len(beyond):,} boxes reach over the border of their image, and are cut off "
                f"there in training: {self._named(numbers[beyond].tolist())}"
            )

    @property
    def _slack(self) -> float:
        return _RELATIVE_SLACK if self.relative else _SLACK

    def _check_convention(self, boxes: np.ndarray, limits: np.ndarray) -> None:
        """Refuse boxes whose numbers show that they are written in another way than promised."""
        known = np.isfinite(boxes).all(1) & np.isfinite(limits).all(1)
        boxes, limits = boxes[known], limits[known]
        if len(boxes) < 2:
            return
        unit = "shares of the image from 0 to 1" if self.relative else "pixels"
        if self.relative and np.mean(np.abs(boxes).max(1) > 2) >= _LEAST_MISREAD:
            self._refuse(boxes, np.abs(boxes).max(1) > 2, "are far greater than 1", f"{unit}, not pixels")
        if not self.relative and np.abs(boxes).max() <= 2 and limits.min() > 8:
            self._refuse(boxes, np.abs(boxes).max(1) <= 2, "lie between 0 and 1", f"{unit}, not shares of the image")
        wrong = ~_fits(boxes, limits, self._slack)
        other = self._convention.as_otherwise(boxes)
        if wrong.sum() >= 2 and wrong.mean() >= _LEAST_MISREAD and _fits(other, limits, self._slack).mean() >= _FITS:
            self._refuse(
                boxes,
                wrong,
                f"do not fit their images as {self._convention.promised}, and fit as {self._convention.otherwise}",
                f"{self._convention.promised}, {unit}",
            )

    def _refuse(self, boxes: np.ndarray, wrong: np.ndarray, what: str, wanted: str) -> None:
        raise DataError(
            f"{shown(self.where)}: {wrong.mean():.0%} of {len(boxes):,} boxes {what}; this format has {wanted}: convert"
        )

    def _check_amount(self) -> None:
        reasons = {reason: found for reason, found in self._passed_over.items() if reason != _AGAIN}
        invalid = sum(map(len, reasons.values()))
        if invalid > _MOST_INVALID * self._read:
            reason, found = max(reasons.items(), key=lambda item: len(item[1]))
            raise DataError(
                f"{shown(self.where)}: {invalid:,} of {self._read:,} annotations are not usable, more than "
                f"{_MOST_INVALID:.0%}; of most {reason}, as of {self._named(found)}; "
                + ("take a detector without masks" if reason == _NO_OUTLINE else "repair them")
            )

    def _present(self) -> np.ndarray:
        """Which images are there, (images,) bool; those that are not are told, and refused if they are many."""
        listed: dict[Path, frozenset[str]] = {}
        there = np.ones(len(self._paths), dtype=bool)
        for at, path in enumerate(self._paths):
            folder = Path(path).parent
            if folder not in listed:
                listed[folder] = names_in(folder)
            there[at] = Path(path).name in listed[folder]
        missing = np.flatnonzero(~there).tolist()
        if missing:
            named = ", ".join(self._paths[at] for at in missing[:_NAMED])
            line = f"{shown(self.where)}: {len(missing):,} of {len(there):,} images are not there: {shown(named)}"
            if len(missing) > _MOST_MISSING * len(there):
                raise DataError(f"{line}; more than {_MOST_MISSING:.0%} may not be missing")
            tell(f"{line}; they are left out")
        return there

    def _pass_over(self, reason: str, numbers: np.ndarray) -> None:
        if len(numbers):
            self._passed_over[reason] += numbers.tolist()

    def _line(self, reason: str, numbers: Sequence[int]) -> str:
        return (
            f"{shown(self.where)}: {len(numbers):,} of {self._read:,} annotations passed over, of each {reason}: "
            f"{self._named(numbers)}"
        )

    def _named(self, numbers: Sequence[int]) -> str:
        more = f" and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else ""
        return shown(", ".join(map(self._place, numbers[:_NAMED]))) + more


def _reaching_over(boxes: np.ndarray, limits: np.ndarray, slack: float) -> np.ndarray:
    return (boxes[:, :2].min(1) < -slack) | (boxes[:, 2:] > limits[:, 2:] + slack).any(1)


def _fits(boxes: np.ndarray, limits: np.ndarray, slack: float) -> np.ndarray:
    return (boxes[:, 2:] > boxes[:, :2]).all(1) & ~_reaching_over(boxes, limits, slack)


def names_in(folder: Path) -> frozenset[str]:
    """What lies in a folder; nothing in one that is not there."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def tell(line: str) -> None:
    """Say what was chosen, mapped or passed over in the data."""
    warnings.warn(line, DataWarning, stacklevel=3)
