"""Detection data in Pascal VOC's format: one XML file an image, with boxes alone.

    Annotations/X.xml   JPEGImages/X.jpg   ImageSets/Main/train.txt, val.txt, test.txt      as VOC2007 and VOC2012
    train/X.xml         train/X.jpg        beside one another, `val` alike                  Roboflow
    train/Annotations/X.xml                train/JPEGImages/X.jpg

Corners are whole pixels, counted from 1, that belong to the object: x1 = xmin - 1, x2 = xmax here. Where any is 0 they
were counted from 0, and are corners themselves. What is `difficult` is neither learnt nor counted, as COCO's crowds.

Source: "The PASCAL Visual Object Classes Challenge 2012 Development Kit", Everingham and Winn, section 4.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

import numpy as np

from convattn.data.dataset import DataError
from convattn.data.file_names import is_image_name
from convattn.data.files import listing
from convattn.data.folder import content_of
from convattn.data.progress import late_progress
from convattn.data.text_files import read_lines
from convattn.detection.collecting import Collector, Convention, tell
from convattn.detection.dataset import DetectionImages
from convattn.detection.layout import ALONE, label_places, split_named
from convattn.shown import shown

__all__ = ["VocLayout", "find_voc"]

_LARGEST = 2**24  # bytes of a file
_DEEPEST = 32  # elements within one another
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ANNOTATIONS = ("Annotations", "annotations", "xmls", "labels", "")
_IMAGES = ("JPEGImages", "images", "Images", "")
_CLASS_FILES = ("labels.txt", "classes.txt")
_BOXES = Convention(
    "xmin, ymin, xmax, ymax",
    "x, y, width, height",
    lambda boxes: np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
)


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, float, float, float] | None  # as they stand there
    difficult: bool


@dataclass(frozen=True)
class _Annotated:
    """What one file says."""

    file: Path
    size: tuple[int, int]  # height and width
    objects: Sequence[_Object]
    image: str = ""  # the name of its image


@dataclass(frozen=True)
class _Place:
    """Where a split is."""

    annotations: Path
    images: Path
    chosen: Path | None = None  # a file that lists the names of its images


@dataclass(frozen=True)
class VocLayout:
    """Where the annotations of each split are."""

    splits: Mapping[str, Path]
    places: Mapping[str, _Place]
    root: Path
    format: str = "Pascal VOC XML"
    _read: dict[str, list[_Annotated]] = field(default_factory=dict)

    def classes(self, splits: Sequence[str]) -> list[str]:
        """What a list beside the data names; otherwise the names of all objects, sorted."""
        file = next((self.root / name for name in _CLASS_FILES if (self.root / name).is_file()), None)
        if file is not None:
            return [line for _, line in read_lines(file)]
        return sorted({one.name for split in splits for each in self._files(split) for one in each.objects if one.name})

    def read(self, split: str, classes: Sequence[str], *, masks: bool) -> DetectionImages:
        """The images of a split with labels that count in `classes`; DataError if they cannot be."""
        if masks:
            raise DataError(f"{shown(self.root)}: Pascal VOC's XML has boxes alone, and outlines are needed")
        files, place = self._files(split), self.places[split]
        names = dict.fromkeys(one.name for each in files for one in each.objects if one.name)
        label_of = label_places(names, classes, place.annotations)
        beside = _images_in(place.images)
        numbers = [(at, number) for at, each in enumerate(files) for number in range(len(each.objects))]
        collector = Collector(
            place.annotations,
            _BOXES,
            lambda number: f"{files[numbers[number][0]].file.name}, object {numbers[number][1] + 1}",
            masks=False,
        )
        first = 0 if self._counts_from_0() else 1
        at = 0
        for each in files:
            image = collector.image(_image_of(each, place.images, beside), each.size)
            for one in each.objects:
                if one.corners is None or not one.name:
                    collector.pass_over(at, "it has no name or no bndbox of four numbers")
                else:
                    x1, y1, x2, y2 = one.corners
                    collector.object(
                        image, at, (x1 - first, y1 - first, x2, y2), label_of[one.name], crowd=one.difficult
                    )
                at += 1
        difficult = sum(one.difficult for each in files for one in each.objects)
        if difficult:
            tell(f"{shown(place.annotations)}: {difficult:,} objects are difficult: neither learnt nor counted")
        return collector.finished(classes)

    def _files(self, split: str) -> list[_Annotated]:
        if split not in self._read:
            self._read[split] = _all_of(self.places[split])
        return self._read[split]

    def _counts_from_0(self) -> bool:
        """Whether a corner of any split is 0, so that pixels are not counted from 1."""
        files = (each for split in self.places for each in self._files(split))
        lowest = (min(one.corners[:2]) for each in files for one in each.objects if one.corners is not None)
        if all(value != 0 for value in lowest):
            return False
        tell(f"{shown(self.root)}: some boxes begin at 0, so pixels are taken as counted from 0, not from 1 as VOC's")
        return True


def find_voc(source: Path) -> VocLayout | None:
    """The XML files of a folder by split; None where there are none."""
    if not source.is_dir():
        return None
    whole = _place_in(source)
    sets = source / "ImageSets" / "Main"
    if whole is not None and sets.is_dir():
        lists = {
            split: sets / f"{split}.txt" for split in ("train", "val", "test") if (sets / f"{split}.txt").is_file()
        }
        if "train" not in lists and (sets / "trainval.txt").is_file():
            lists["train"] = sets / "trainval.txt"
        places = {split: _Place(whole.annotations, whole.images, file) for split, file in lists.items()}
        if places:
            return VocLayout(lists, places, source)
    if whole is not None:
        return VocLayout({ALONE: whole.annotations}, {ALONE: whole}, source)
    places = {}
    for name in content_of(source).folders:
        split = split_named(name)
        place = _place_in(source / name) if split is not None else None
        if split is not None and place is not None:
            if split in places:
                raise DataError(f"{shown(source)}: {shown(name)} and another folder could both be {split}; leave one")
            places[split] = place
    return VocLayout({split: place.annotations for split, place in places.items()}, places, source) if places else None


def _place_in(folder: Path) -> _Place | None:
    content = content_of(folder)
    for name in _ANNOTATIONS:
        if name and name not in content.folders:
            continue
        others = content_of(folder / name).others if name else content.others
        if any(other.lower().endswith(".xml") for other in others):
            images = next(image for image in _IMAGES if not image or image in content.folders)
            return _Place(folder / name, folder / images)
    return None


def _all_of(place: _Place) -> list[_Annotated]:
    """Every file of a split, in order of the list or of the names."""
    if place.chosen is not None:
        names = [line.split()[0] for _, line in read_lines(place.chosen)]
        files = [place.annotations / f"{name}.xml" for name in names]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise DataError(
                f"{shown(place.chosen)}: {len(absent):,} of {len(files):,} are not in {shown(place.annotations)}, such "
                f"as {shown(listing(absent, 3))}"
            )
    else:
        others = content_of(place.annotations).others
        files = [place.annotations / name for name in others if name.lower().endswith(".xml")]
    with late_progress(f"reading {place.annotations}", len(files)) as done:
        found = []
        for at, file in enumerate(files):
            found.append(_annotated(file))
            done(at)
    return found


def _annotated(file: Path) -> _Annotated:
    root = _xml(file)
    size = root.find("size")
    sides = [0, 0] if size is None else [_whole(size.findtext(name)) for name in ("height", "width")]
    objects = [
        _Object(
            (one.findtext("name") or "").strip(), _corners(one.find("bndbox")), _whole(one.findtext("difficult")) == 1
        )
        for one in root.iter("object")
    ]
    return _Annotated(file, (sides[0], sides[1]), objects, (root.findtext("filename") or "").strip())


def _xml(file: Path) -> ElementTree.Element:
    """The root element; a document type, with which a small file can stand for gigabytes, is refused."""
    builder, depth = ElementTree.TreeBuilder(), 0
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} elements within one another")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which annotations do not need")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            raise ValueError(f"no regular file of at most {_LARGEST:,} bytes")
        parser.Parse(file.read_bytes(), True)
        return builder.close()
    except (OSError, expat.ExpatError, ValueError, AssertionError) as error:
        raise DataError(f"{shown(file)}: could not be read as XML ({shown(error)})") from None


def _corners(box: ElementTree.Element | None) -> tuple[float, float, float, float] | None:
    try:
        x1, y1, x2, y2 = (float((box.findtext(name) if box is not None else None) or "") for name in _CORNERS)
        return x1, y1, x2, y2
    except ValueError:
        return None


def _whole(text: str | None) -> int:
    """A whole number; 0 where there is none."""
    try:
        return max(0, int(float(text or "0")))
    except (ValueError, OverflowError):
        return 0


def _images_in(folder: Path) -> dict[str, str]:
    """The images of a folder by their names without suffix."""
    return {name.rpartition(".")[0]: name for name in content_of(folder).images if is_image_name(name)}


def _image_of(annotated: _Annotated, folder: Path, beside: Mapping[str, str]) -> str:
    """The image of a file: called like it, or as it says."""
    stem = annotated.file.stem
    if stem in beside:
        return f"{folder}/{beside[stem]}"
    return f"{folder}/{Path(annotated.image).name or f'{stem}.jpg'}"
