"""Detection data as folders of text files: YOLO's, by Ultralytics' or Roboflow's `data.yaml`, or by a list of names.

    data.yaml              path: DIR (Ultralytics); train, val, test: folders of images, or files that list images
                           names: a list, or number: name; nc: how many
    images/train/X.jpg     labels/train/X.txt        Ultralytics
    train/images/X.jpg     train/labels/X.txt        Roboflow, whose data.yaml says ../train/images and means this
    classes.txt            one name a line, without a data.yaml

A line of a text file is an object: `class x y width height`, the centre and size of a box, or `class x1 y1 x2 y2 x3
y3 …`, the corners of its outline; all from 0 to 1. An image without a text file has no objects.

Source: https://docs.ultralytics.com/datasets/detect/
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convattn.data.dataset import DataError
from convattn.data.file_names import is_image_name, tell_unread
from convattn.data.files import listing
from convattn.data.folder import content_of, images_below
from convattn.data.progress import late_progress
from convattn.data.text_files import read_lines
from convattn.detection.collecting import Collector, Convention, names_in, tell
from convattn.detection.dataset import DetectionImages
from convattn.detection.layout import ALONE, label_places, one_of, split_named
from convattn.detection.rasterise import InvalidAnnotation, as_polygons, box_of
from convattn.extras import require
from convattn.shown import shown

__all__ = ["YoloLayout", "find_yolo"]

_LARGEST = 2**20  # bytes of a data.yaml
_MOST_CLASSES = 100_000
_CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
_SPLITS = ("train", "val", "test")  # the keys of a data.yaml
_BOXES = Convention(
    "x, y of the centre, width, height",
    "x1, y1, x2, y2",
    lambda boxes: np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1),
)


@dataclass(frozen=True)
class YoloLayout:
    """Where the images of each split are."""

    splits: Mapping[str, Path]  # the first of its folders or lists
    sources: Mapping[str, Sequence[Path]]  # split -> folders of images and files that list them
    names: Sequence[str]
    file: Path  # that names the classes
    format: str = "YOLO text files"

    def classes(self, splits: Sequence[str]) -> list[str]:
        """The names, in order of their numbers."""
        return [*self.names]

    def read(self, split: str, classes: Sequence[str], *, masks: bool) -> DetectionImages:
        """The images of a split with labels that count in `classes`; DataError if they cannot be."""
        return _Reader(self, split, classes, masks).read()


def find_yolo(source: Path) -> YoloLayout | None:
    """The images and text files that a `data.yaml` or a list of names describes; None where neither is.

    Raises:
        DataError: if it is one and cannot be understood.
    """
    if source.is_file():
        return _of_yaml(source) if source.suffix.lower() in (".yaml", ".yml") else None
    if not source.is_dir():
        return None
    content = content_of(source)
    files = [source / name for name in content.others if name.lower().endswith((".yaml", ".yml"))]
    files = [file for file in files if _describes_splits(file)]
    if files:
        return _of_yaml(one_of(files, source, "the description of the data"))
    names = next((source / name for name in _CLASS_FILES if (source / name).is_file()), None)
    if names is None or not (source / "images").is_dir() or not (source / "labels").is_dir():
        return None
    folders = content_of(source / "images").folders
    splits = {split: source / "images" / name for name in folders if (split := split_named(name))}
    splits = splits or {ALONE: source / "images"}
    lines = tuple(line for _, line in read_lines(names))
    return YoloLayout(splits, {split: [folder] for split, folder in splits.items()}, lines, names)


class _Reader:
    """Reads one split."""

    def __init__(self, layout: YoloLayout, split: str, classes: Sequence[str], masks: bool):
        self.layout, self.split, self.classes = layout, split, classes
        self.where = layout.splits[split]
        self.images = [*_images(layout.sources[split], self.where)]
        self.lines: list[tuple[int, int]] = []  # of each object the number of its image, and of its line
        self.collector = Collector(self.where, _BOXES, self._place, masks=masks, relative=True)

    def read(self) -> DetectionImages:
        """Every text file."""
        texts = [_text_of(path) for path in self.images]
        listed = {folder: names_in(folder) for folder in {text.parent for text in texts}}
        there = [text.name in listed[text.parent] for text in texts]
        if self.images and not any(there):
            raise DataError(
                f"{shown(self.where)}: none of {len(texts):,} images has a text file; that of {shown(self.images[0])} "
                f"would be {shown(texts[0])}"
            )
        if not all(there):
            some = listing((Path(path).name for path, has in zip(self.images, there, strict=True) if not has), 3)
            tell(f"{shown(self.where)}: {there.count(False):,} images have no text file, so no object: {shown(some)}")
        self._tell_strays(texts, listed)
        objects: list[tuple[int, int, list[str]]] = []
        with late_progress(f"reading the text files of {self.where}", len(texts)) as done:
            for path, text, has in zip(self.images, texts, there, strict=True):
                image = self.collector.image(path)
                objects += ((image, line, words) for line, words in (_words(text) if has else ()))
                done(image)
        places = self._places(objects)
        for image, line, words in objects:
            self.lines.append((image, line))
            try:
                self._add(image, len(self.lines) - 1, words, places)
            except InvalidAnnotation as error:
                self.collector.pass_over(len(self.lines) - 1, str(error))
        ids = {name: number for number, name in enumerate(self.layout.names)}
        return self.collector.finished(self.classes, category_ids=[ids.get(name, -1) for name in self.classes])

    def _places(self, objects: Sequence[tuple[int, int, list[str]]]) -> dict[int, int]:
        """The label of each class that has objects."""
        used = {number for _, _, words in objects if (number := _number(words[0])) is not None}
        names = {number: name for number, name in enumerate(self.layout.names) if number in used}
        places = label_places(dict.fromkeys(names.values()), self.classes, self.where)
        return {number: places[name] for number, name in names.items()}

    def _add(self, image: int, number: int, words: Sequence[str], places: Mapping[int, int]) -> None:
        number_of_class = _number(words[0])
        label = None if number_of_class is None else places.get(number_of_class)
        if label is None:
            raise InvalidAnnotation(f"its class is no number from 0 to {len(self.layout.names) - 1}")
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise InvalidAnnotation("its line holds something else than numbers") from None
        if len(values) == 4:
            x, y, width, height = values
            box: Sequence[float] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            self.collector.object(image, number, box, label)
        elif len(values) == 5:
            raise InvalidAnnotation("its line has a sixth number, as predictions have their score")
        elif len(values) >= 6 and len(values) % 2 == 0:
            polygons = as_polygons(values, (1, 1))
            area = _area(polygons[0])
            self.collector.object(image, number, box_of(polygons, (1, 1)), label, area=area, outline=polygons)
        else:
            raise InvalidAnnotation(f"its line has {len(words)} words, and a box has 5, an outline 7, 9, 11, …")

    def _place(self, number: int) -> str:
        image, line = self.lines[number]
        return f"{_text_of(self.images[image]).name}, line {line}"

    def _tell_strays(self, texts: Sequence[Path], listed: Mapping[Path, frozenset[str]]) -> None:
        if any(source.is_file() for source in self.layout.sources[self.split]):
            return  # a list may leave images out
        known = {*texts}
        found = ((folder / name, name) for folder, names in listed.items() for name in names)
        strays = [name for path, name in found if name.endswith(".txt") and path not in known and name != "classes.txt"]
        if strays:
            tell(
                f"{shown(self.where)}: {len(strays):,} text files have no image and are passed over: "
                f"{shown(listing(strays, 3))}"
            )


def _of_yaml(file: Path) -> YoloLayout:
    content = _yaml(file)
    names = _names(file, content)
    base = content.get("path") or ""
    if not isinstance(base, str):
        raise DataError(f"{shown(file)}: path must be one folder")
    sources = {}
    for split in _SPLITS:
        stated = content.get(split) or (content.get("valid") if split == "val" else None)
        if stated:
            several = stated if isinstance(stated, list) else [stated]
            sources[split] = [_there(file, base, split, str(path)) for path in several]
    if not sources:
        raise DataError(f"{shown(file)}: names no images; it needs train and val, folders of images")
    return YoloLayout({split: places[0] for split, places in sources.items()}, sources, names, file)


def _there(file: Path, base: str, split: str, stated: str) -> Path:
    """Where a stated folder is: within `path`, beside the file, or there without the `../` that Roboflow writes."""
    inside = re.sub(r"^(\.\./)+", "", stated)
    bases = [file.parent / base] if base else []
    tried = [folder / stated for folder in (*bases, file.parent)]
    tried += [folder / inside for folder in (*bases, file.parent)]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        wanted = ", ".join(dict.fromkeys(map(str, tried)))
        raise DataError(f"{shown(file)}: the {split} images are not there; looked for {shown(wanted)}")
    if found != tried[0]:
        tell(f"{shown(file)}: {split} is {shown(found)}, since there is no {shown(tried[0])}")
    return found


def _yaml(file: Path) -> dict[str, Any]:
    """What stands in a file, every number as text."""
    yaml = require("yaml", "detection")
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST:
            raise DataError(f"{shown(file)}: no text file of at most {_LARGEST:,} bytes, and so no description of data")
        # Its base loader makes lists, dictionaries and text alone: neither objects, nor False of a class called `no`.
        content = yaml.load(file.read_text("utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{shown(file)}: could not be read as YAML ({shown(reason)})") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(file)}: holds no keys train, val and names")
    return content


def _names(file: Path, content: Mapping[str, Any]) -> list[str]:
    stated, count = content.get("names"), content.get("nc")
    if isinstance(stated, dict):
        numbers = {_number(key): name for key, name in stated.items()}
        if sorted(numbers, key=str) != sorted(range(len(numbers)), key=str):
            raise DataError(f"{shown(file)}: names must number the classes 0 to {len(stated) - 1}, without a gap")
        stated = [numbers[number] for number in range(len(numbers))]
    if not isinstance(stated, list) or not stated or not all(isinstance(name, str) and name for name in stated):
        raise DataError(f"{shown(file)}: names must be a list of the classes, or number: name")
    if len(stated) > _MOST_CLASSES or len({*stated}) < len(stated):
        again = next((name for name in stated if stated.count(name) > 1), "")
        raise DataError(f"{shown(file)}: names must differ, and {shown(again)!r} stands twice")
    if count is not None and count != str(len(stated)):
        raise DataError(f"{shown(file)}: nc {shown(count)} and {len(stated)} names; make them agree")
    return stated


def _describes_splits(file: Path) -> bool:
    """Whether a file is a description of data, by the keys that its lines begin with."""
    try:
        content = file.read_bytes()[:_LARGEST].decode("utf-8-sig", "replace") if file.is_file() else ""
    except OSError:
        return False
    keys = {*re.findall(r"^(\w+)\s*:", content, re.MULTILINE)}
    return "names" in keys and bool(keys & {*_SPLITS, "valid"})


def _images(sources: Sequence[Path], where: Path) -> Iterator[str]:
    """The images of folders and of files that list them."""
    for source in sources:
        if source.is_dir():
            unread: list[str] = []
            yield from (f"{source}/{name}" for name in images_below(source, unread))
            tell_unread(source, unread)
        else:
            for number, line in read_lines(source):
                if not is_image_name(line):
                    raise DataError(f"{shown(source)}, line {number}: {shown(line[:80])!r} is no image's name")
                yield str(source.parent / line)


def _text_of(path: str) -> Path:
    """The text file of an image: in the folder `labels` for the last `images` of its path, or beside it."""
    parts = [*Path(path).parts]
    places = [at for at, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _words(text: Path) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split()) for number, line in read_lines(text))


def _number(word: str) -> int | None:
    """A class's number; some programs write it as 3.0."""
    found = re.fullmatch(r"(\d{1,9})(\.0*)?", word)
    return int(found[1]) if found else None


def _area(points: np.ndarray) -> float:
    """Of a polygon, by its corners."""
    x, y = points[::2], points[1::2]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
