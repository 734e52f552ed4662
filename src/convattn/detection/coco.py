"""Detection data in COCO's format: one JSON file a split, with its images in a folder.

    annotations/instances_train2017.json   train2017/X.jpg, images/train2017/X.jpg, train/X.jpg, images/train/X.jpg, …
    train/_annotations.coco.json           train/X.jpg             (Roboflow; `valid/` and `test/` beside)
    train/labels.json                      train/data/X.jpg        (FiftyOne)
    train.json                             images/X.jpg, train/X.jpg

The file has `images` (id, file_name, width, height), `annotations` (image_id, category_id, bbox as x, y, width, height
in pixels, area, iscrowd, segmentation as polygons or RLE) and `categories` (id, name). Ids need not be in a row.

Source: https://cocodataset.org/#format-data
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convattn.data.dataset import DataError
from convattn.data.folder import content_of
from convattn.data.progress import late_progress
from convattn.detection.collecting import AREA_NOT_STATED, Collector, Convention, tell
from convattn.detection.dataset import DetectionImages
from convattn.detection.layout import ALONE, label_places, one_of, split_named
from convattn.detection.rasterise import InvalidAnnotation, Outline, area_of, as_polygons, as_runs, box_of
from convattn.shown import shown

__all__ = ["CocoLayout", "find_coco"]

LARGEST = 2**31  # bytes of a file: what Python makes of it takes ten times as much memory
_PEEK = 2**16  # bytes at both ends of a file, in which its keys are looked for
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_OWN_BEGINNING, _OWN_END = "instances_", ".coco.json"  # of names that are COCO's and Roboflow's alone
_FOLDERS = ("", "images", "data", "imgs", "JPEGImages")  # that hold images, within another or by themselves
_LOOKED_FOR = 16  # images by which the folder is chosen
_BOXES = Convention(
    "x, y, width, height",
    "x1, y1, x2, y2",
    lambda boxes: np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
)


@dataclass(frozen=True)
class CocoLayout:
    """Where the annotations of each split are."""

    splits: Mapping[str, Path]
    root: Path
    format: str = "COCO JSON"
    _contents: dict[str, dict[str, Any]] = field(default_factory=dict)  # of splits that will be read again

    def classes(self, splits: Sequence[str]) -> list[str]:
        """The categories of the first split in order of their ids, then further ones of the others."""
        names = dict[str, None]()
        for split in splits:
            self._contents[split] = self._contents.get(split) or _content(self.splits[split])
            names |= dict.fromkeys(_categories(self.splits[split], self._contents[split]).values())
        return [*names]

    def read(self, split: str, classes: Sequence[str], *, masks: bool) -> DetectionImages:
        """The images of a split with labels that count in `classes`; DataError if they cannot be."""
        file = self.splits[split]
        content = self._contents.pop(split, None) or _content(file)  # it may take gigabytes, and is let go of
        return _Reader(file, content, _categories(file, content, tell), classes, masks).read(self.root, split)


def find_coco(source: Path) -> CocoLayout | None:
    """The annotations that a folder holds, or the file that is one; None where nothing looks like COCO's.

    Raises:
        DataError: if two files could be the annotations of one split.
    """
    if source.is_file():
        is_json = source.suffix.lower() == ".json" and _looks_like_coco(source)
        return CocoLayout({ALONE: source}, source.parent) if is_json else None
    if not source.is_dir():
        return None
    content = content_of(source)
    found: dict[str, list[Path]] = {}
    for folder in ("annotations", ""):
        names = content_of(source / folder).others if not folder or folder in content.folders else []
        jsons = [source / folder / name for name in names if name.lower().endswith(".json")]
        jsons = [path for path in jsons if path.name.startswith("instances_")] or jsons
        for path in filter(_looks_like_coco, jsons):
            found.setdefault(split_named(path.stem) or ALONE, []).append(path)
    for name in content.folders:
        split = split_named(name)
        if split is not None:
            others = content_of(source / name).others
            jsons = [source / name / other for other in others if other.lower().endswith(".json")]
            for path in filter(_looks_like_coco, jsons):
                found.setdefault(split, []).append(path)
    if not found:
        return None
    splits = {split: one_of(paths, source, f"the annotations of {split}") for split, paths in found.items()}
    if ALONE in splits and len(splits) > 1:
        other = splits[next(split for split in splits if split != ALONE)]
        raise DataError(
            f"{shown(splits[ALONE])}: of no split by its name, and {shown(other.name)} is of one; call it train.json, "
            "val.json or test.json, or move it elsewhere"
        )
    return CocoLayout(splits, source)


class _Reader:
    """Reads one file."""

    def __init__(
        self, file: Path, content: Mapping[str, Any], categories: Mapping[int, str], classes: Sequence[str], masks: bool
    ):
        self.file, self.content, self.categories, self.masks = file, content, categories, masks
        self.classes = classes
        self.collector = Collector(
            file, _BOXES, lambda number: f"annotations[{number}] (id {self._id_of(number)})", masks=masks
        )

    def read(self, root: Path, split: str) -> DetectionImages:
        """Everything in it."""
        images = _images(self.file, self.content)
        names = [image["file_name"].replace("\\", "/") for image in images]
        folder = _folder_of(self.file, root, split, names)
        numbers, sizes = {}, []
        for image, name in zip(images, names, strict=True):
            size = _side(self.file, image, "height"), _side(self.file, image, "width")
            numbers[image["id"]] = self.collector.image(str(folder / name), size, image["id"])
            sizes.append(size)
        labels = self._labels()
        annotations = self.content["annotations"]
        with late_progress(f"reading {self.file.name}", len(annotations)) as done:
            for number, annotation in enumerate(annotations):
                try:
                    self._add(number, annotation, numbers, sizes, labels)
                except InvalidAnnotation as error:
                    self.collector.pass_over(number, str(error))
                if number % 4096 == 0:
                    done(number)
        ids = {name: category for category, name in reversed([*self.categories.items()])}
        return self.collector.finished(self.classes, category_ids=[ids.get(name, 0) for name in self.classes])

    def _labels(self) -> dict[int, int]:
        """The label of each category that has objects."""
        used = {_key(one.get("category_id")) for one in self.content["annotations"] if isinstance(one, dict)}
        names = {category: name for category, name in self.categories.items() if category in used}
        places = label_places(dict.fromkeys(names.values()), self.classes, self.file)
        return {category: places[name] for category, name in names.items()}

    def _add(
        self,
        number: int,
        annotation: Any,
        numbers: Mapping[Any, int],
        sizes: Sequence[tuple[int, int]],
        labels: Mapping[Any, int],
    ) -> None:
        if not isinstance(annotation, dict):
            raise InvalidAnnotation("it is no object of JSON")
        image = numbers.get(_key(annotation.get("image_id")))
        if image is None:
            raise InvalidAnnotation("its image_id is that of no image")
        label = labels.get(_key(annotation.get("category_id")))
        if label is None:
            raise InvalidAnnotation("its category_id is that of no category")
        size = sizes[image]
        outline = self._outline(annotation.get("segmentation"), size)
        box = _box(annotation.get("bbox"))
        if box is None:
            if outline is None:
                raise InvalidAnnotation("it has no bbox")
            box = box_of(outline, size)
        area = annotation.get("area")
        if not isinstance(area, int | float) or not 0 <= area < math.inf:
            area = AREA_NOT_STATED if outline is None else area_of(outline, size)
        self.collector.object(
            image,
            number,
            box,
            label,
            crowd=annotation.get("iscrowd") in (1, True, "1"),
            area=area,
            outline=outline,
        )

    def _outline(self, segmentation: Any, size: tuple[int, int]) -> Outline | None:
        if not self.masks or not segmentation:
            return None
        if not size[0]:
            raise InvalidAnnotation("its image states no width and height, which an outline needs")
        return as_runs(segmentation, size) if isinstance(segmentation, dict) else as_polygons(segmentation, size)

    def _id_of(self, number: int) -> Any:
        annotation = self.content["annotations"][number]
        return annotation.get("id") if isinstance(annotation, dict) else None


def _content(file: Path) -> dict[str, Any]:
    """What stands in a file."""
    try:
        if not file.is_file():
            raise DataError(f"{shown(file)}: no regular file")
        if (size := file.stat().st_size) > LARGEST:
            raise DataError(f"{shown(file)}: {size:,} bytes, more than the limit of {LARGEST:,}; cut it up")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{shown(file)}: could not be read ({error.strerror or error})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{shown(file)}: could not be read as JSON ({shown(reason)})") from None
    if not isinstance(content, dict):
        raise DataError(f"{shown(file)}: holds {type(content).__name__}, not an object with images and annotations")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{shown(file)}: has no list {key!r}, as COCO's instances files do")
    return content


def _categories(
    file: Path, content: Mapping[str, Any], tell: Callable[[str], None] = lambda line: None
) -> dict[int, str]:
    """The name of each category, in order of the ids; without a name for all that no annotation has (Roboflow's)."""
    found: dict[int, str] = {}
    above: dict[int, Any] = {}
    for at, category in enumerate(content["categories"]):
        if not isinstance(category, dict) or not _is_whole(category.get("id")) or not _is_text(category.get("name")):
            raise DataError(f"{shown(file)}: categories[{at}] needs an id, a whole number, and a name")
        number, name = category["id"], category["name"]
        if found.setdefault(number, name) != name:
            raise DataError(
                f"{shown(file)}: category {number} is {shown(found[number])!r} and {shown(name)!r}; leave one"
            )
        above[number] = category.get("supercategory")
    if not found:
        raise DataError(f"{shown(file)}: names no category")
    root = min(found)
    others = {above[number] for number in found if number != root}
    used = any(isinstance(one, dict) and one.get("category_id") == root for one in content["annotations"])
    if above[root] in ("none", None, "") and others == {found[root]} and not used:
        tell(f"{shown(file)}: category {root}, {shown(found[root])!r}, is above all others and has no object: no class")
        del found[root]
    again = sorted({name for name in found.values() if [*found.values()].count(name) > 1})
    if again:
        tell(f"{shown(file)}: several categories are called {shown(', '.join(again[:3]))}, and are one class each")
    return dict(sorted(found.items()))


def _images(file: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images in order of their ids."""
    images, ids, names = content["images"], dict[Any, int](), dict[str, int]()
    for at, image in enumerate(images):
        if not isinstance(image, dict) or not _is_text(image.get("file_name")):
            raise DataError(f"{shown(file)}: images[{at}] needs an id and a file_name")
        if not isinstance(image.get("id"), int | str) or "\0" in image["file_name"]:
            raise DataError(f"{shown(file)}: images[{at}] needs an id, a number or text, and the name of a file")
        for key, seen, word in ((image["id"], ids, "id"), (image["file_name"], names, "file_name")):
            if seen.setdefault(key, at) != at:
                raise DataError(
                    f"{shown(file)}: images[{at}] has the {word} {shown(key)} of images[{seen[key]}]; leave one of them"
                )
    if all(_is_whole(image["id"]) for image in images):
        images = sorted(images, key=lambda image: image["id"])
    return images


def _folder_of(file: Path, root: Path, split: str, names: Sequence[str]) -> Path:
    """The folder in which the most of some images are."""
    stem = file.stem.removeprefix("instances_")
    called = dict.fromkeys([stem, split, *(name for name in _beside(root) if split_named(name) == split)])
    tried = [file.parent / inside for inside in _FOLDERS]
    for base in dict.fromkeys([root, file.parent, file.parent.parent]):
        tried += [base / name / inside for name in called for inside in _FOLDERS]
        tried += [base / inside / name for name in called for inside in _FOLDERS]
        tried += [base / inside for inside in _FOLDERS]
    step = max(1, len(names) // _LOOKED_FOR)
    counts = {folder: sum((folder / name).is_file() for name in names[::step]) for folder in dict.fromkeys(tried)}
    best = max(counts, key=lambda folder: counts[folder])
    if names and not counts[best]:
        raise DataError(
            f"{shown(file)}: its images are not there, such as {shown(names[0])}; looked in {shown(root)} and in "
            f"folders called {', '.join(filter(None, _FOLDERS))} or {shown(stem)}"
        )
    return best


def _beside(root: Path) -> list[str]:
    images = root / "images"
    return [*content_of(root).folders, *(content_of(images).folders if images.is_dir() else ())]


def _box(bbox: Any) -> tuple[float, float, float, float] | None:
    """Corners of x, y, width, height; None where there is none."""
    if bbox is None or bbox == []:
        return None
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(value, int | float) for value in bbox):
        raise InvalidAnnotation("its bbox is not four numbers")
    try:
        x, y, width, height = map(float, bbox)
    except OverflowError:
        raise InvalidAnnotation("its box is not finite") from None
    return x, y, x + width, y + height


def _side(file: Path, image: Mapping[str, Any], name: str) -> int:
    side = image.get(name, 0)
    if isinstance(side, float) and side.is_integer():
        side = int(side)
    if not _is_whole(side) or side < 0:
        raise DataError(f"{shown(file)}: {name} {shown(side)} of {shown(image['file_name'])} must be a whole number")
    return side


def _key(value: Any) -> Any:
    """An id as it is looked up; nothing is called None."""
    return value if isinstance(value, int | str) else None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _looks_like_coco(file: Path) -> bool:
    """Whether the keys of such a file stand near its beginning or its end."""
    try:
        if not file.is_file():
            return False
        with open(file, "rb") as stream:
            content = stream.read(_PEEK)
            size = file.stat().st_size
            stream.seek(max(len(content), size - _PEEK))
            content += stream.read(_PEEK)
    except OSError:
        return False
    needed = 1 if file.name.startswith(_OWN_BEGINNING) or file.name.endswith(_OWN_END) else 2
    return sum(key in content for key in _KEYS) >= needed
