"""Images with objects by the place that a person names: the format, the classes and the splits are recognised."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from convattn.data.dataset import DataError, DataWarning
from convattn.data.folder import list_folder
from convattn.data.held_out import cut_in_two, share_of
from convattn.data.images import ImageError
from convattn.data.splits import split_to_validate, split_words
from convattn.detection.coco import find_coco
from convattn.detection.dataset import DetectionImages, OtherSize
from convattn.detection.layout import ALONE, Layout
from convattn.detection.voc import find_voc
from convattn.detection.yolo import find_yolo
from convattn.shown import shown

__all__ = ["layout_of", "open_evaluation", "open_training", "recognises"]

_LAYOUT = (
    "expected DIR/annotations/instances_train.json beside DIR/train (COCO), DIR/data.yaml (YOLO), DIR/Annotations "
    "beside DIR/JPEGImages (VOC), or another layout of the detection page"
)
_LOOKED_AT = 8  # images whose size is compared with the annotations beforehand


def recognises(source: str | Path) -> bool:
    """Whether images with objects lie there, by names of folders and files, and the keys of JSON and YAML files."""
    try:
        return _find(Path(source)) is not None
    except DataError:  # of such data, of which something is wrong
        return True


def layout_of(source: str | Path) -> Layout:
    """Where the images and annotations are; DataError if nothing there looks like both."""
    if not str(source):  # as from a variable of the shell that is not set: not the working directory
        raise DataError(f"the name of a data set is empty; {_LAYOUT}")
    path = Path(source)
    if not path.exists():
        raise DataError(f"{shown(source)}: no such file or folder; {_LAYOUT}")
    found = _find(path)
    if found is None:
        there = f", found {shown(list_folder(path))}" if path.is_dir() else ""
        raise DataError(f"{shown(source)}: no images with annotations of objects; {_LAYOUT}{there}")
    return found


def open_training(
    source: str | Path, *, masks: bool = False, validation: str | Path | None = None, seed: int = 0
) -> tuple[DetectionImages, DetectionImages]:
    """The images of a run: those to train on, and those to validate on, under the same classes.

    Args:
        source: a folder, or the file that describes it.
        masks: whether outlines are needed; without, those that are there are not kept.
        validation: where the validation images are, if not in `source`; or the share of the training images that is
            held out, as 0.2. Files of the same content go the same way.
        seed: of what is held out.

    Raises:
        DataError: if a run could not be trained on them, in one line.
    """
    layout, share = layout_of(source), share_of(validation)
    split = _training_split(layout, source)
    if share is not None:
        if "val" in layout.splits:
            _tell(f"{shown(layout.splits['val'])}: not read; data.validation holds images out of the {split} images")
        return cut_in_two(_checked(layout.read(split, layout.classes([split]), masks=masks)), share, seed)
    if validation is not None:
        train = _checked(layout.read(split, layout.classes([split]), masks=masks))
        return train, open_evaluation(validation, masks=masks, classes=train.classes)
    held_out = split_to_validate(layout.splits, source)
    known = layout.classes([split])
    classes = layout.classes([split, held_out])
    added = [name for name in classes if name not in known]
    if added:
        _tell(
            f"{shown(source)}: only the {held_out} images have {shown(', '.join(added[:5]))}; nothing is learnt of it"
        )
    return _checked(layout.read(split, classes, masks=masks)), _checked(layout.read(held_out, classes, masks=masks))


def open_evaluation(
    source: str | Path, *, masks: bool = False, classes: Sequence[str] | None = None
) -> DetectionImages:
    """Images to evaluate on: the split `val` or `test`, or what is there without splits.

    Args:
        source: a folder, or the file that describes it.
        masks: whether outlines are needed.
        classes: those of a model and their order, with which the data's are matched by name; by default the data's own.

    Raises:
        DataError: if there is none, or a class that has objects is none of `classes`.
    """
    layout = layout_of(source)
    split = next((split for split in ("val", "test", ALONE) if split in layout.splits), None)
    if split is None:
        raise DataError(f"{shown(source)}: has train alone, neither val nor test; {_LAYOUT}")
    return _checked(layout.read(split, layout.classes([split]) if classes is None else classes, masks=masks))


def _find(path: Path) -> Layout | None:
    finders: Sequence[Callable[[Path], Layout | None]] = (find_coco, find_yolo, find_voc)
    found = [layout for find in finders if (layout := find(path)) is not None]
    if len(found) > 1:
        both = " and ".join(f"{layout.format} ({next(iter(layout.splits.values()))})" for layout in found)
        raise DataError(
            f"{shown(path)}: has annotations as {shown(both)}; name the file, or move one of them elsewhere"
        )
    return found[0] if found else None


def _training_split(layout: Layout, source: str | Path) -> str:
    for split in ("train", ALONE):
        if split in layout.splits:
            return split
    raise DataError(f"{shown(source)}: no {split_words('train')}; {_LAYOUT}")


def _checked(data: DetectionImages) -> DetectionImages:
    """A data set whose pictures have the sizes that are stated, as far as a look at some tells.

    Single ones are set aside by name when they are met; what is wrong with most of them is told before a run.
    """
    problems = []
    looked_at = sorted({at * len(data) // _LOOKED_AT for at in range(_LOOKED_AT)})
    for at in looked_at:
        try:
            data.target(at)
        except OtherSize as error:
            problems.append(str(error))
        except ImageError:  # told when it is read
            continue
    if len(problems) > len(looked_at) / 2:
        raise DataError(problems[0])
    return data


def _tell(line: str) -> None:
    warnings.warn(line, DataWarning, stacklevel=3)
