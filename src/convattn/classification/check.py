"""A look through labelled images before training: what `convattn data check` asks of classification."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from convattn.classification.options import CheckOptions
from convattn.data.check import DataCheck, Opened, Seen, Sheet, SplitCheck, examined, facts_of, pixels_told, telling
from convattn.data.dataset import DataError
from convattn.data.files import LabelledFiles
from convattn.data.images import ImageError, decode_with_mode
from convattn.data.sources import has_splits, open_data, open_evaluation, open_test, open_training

__all__ = ["SIDE", "check_data", "open_splits", "picture", "recognises"]

SIDE = 96  # pixels of a picture on the contact sheet
_OF_CLASS = 8  # images of a class
_CLASSES = 100  # of more, as many in even steps


def recognises(source: str | Path) -> bool:
    """Whether what lies there is for no other task: nothing is, since folders may be classes."""
    return False


def open_splits(
    source: str | Path, validation: str | Path | None = None, options: CheckOptions | None = None
) -> Opened:
    """Open a data set as training does (`open_training`), and its test images where they are beside.

    A source that has no splits, such as class folders alone or one archive, is looked at as one split named `all`; that
    training would refuse it is among the problems. DataError if there are no training images, with the reason that
    training would give.
    """
    labels = None if options is None else options.validation_labels
    notes: list[str] = []
    with telling(notes):
        splits, problems = {}, []
        if validation is None and not has_splits(source):
            splits = {"all": _with_files(open_evaluation(source, labels=labels))}
            try:
                open_training(source, validation_labels=labels)
            except DataError as error:
                problems.append(str(error))
            return Opened(splits, problems, notes)
        try:
            train, held_out = open_training(source, validation=validation, validation_labels=labels)
            splits = {"train": _with_files(train), "val": _with_files(held_out)}
        except DataError as error:
            splits = {"train": _with_files(open_data(source, "train"))}
            problems.append(str(error))
        try:
            test = open_test(source, classes=splits["train"].classes)
            if test is not None and all(test.paths != other.paths for other in splits.values()):
                splits["test"] = _with_files(test)
        except DataError as error:
            notes.append(f"the test images are not looked at: {error}")
    return Opened(splits, problems, notes)


def check_data(opened: Opened, on_images: Callable[[int], None] | None = None) -> DataCheck:
    """Read and decode every image once, on all processors; `on_images` is told how many more are done."""
    found = examined(opened.splits, _look, on_images)
    notes = [*dict.fromkeys(opened.notes)]
    checks = {}
    for split, data in opened.splits.items():
        left = {data.labels[at] for at, one in enumerate(found.seen[split]) if not one.problem}
        lost = sorted({*data.labels} - left)
        notes += [f"{split}: no image of class {data.classes[label]!r} can be read" for label in lost]
        counts = Counter(data.labels)
        classes = {name: counts[label] for label, name in enumerate(data.classes)}
        checks[split] = SplitCheck(classes=classes, **facts_of(data, found.seen[split]))
    first, data = next(iter(opened.splits.items()))
    return DataCheck.of(opened, found, checks, _sheets(first, data), notes)


def picture(data: LabelledFiles, index: int) -> Image.Image:
    """An image as the contact sheet shows it; ImageError if it cannot be read."""
    return data.read(index)


def _with_files(data: object) -> LabelledFiles:
    if not isinstance(data, LabelledFiles):
        raise DataError("digits: they are in memory and whole; name a folder, an archive or a list")
    return data


def _look(data: LabelledFiles, index: int) -> Seen:
    name = data.classes[data.labels[index]]
    try:
        image, mode = decode_with_mode(data.read_bytes(index), data.paths[index])
    except ImageError as error:
        return Seen(str(error), class_name=name)
    return Seen(**pixels_told(image, mode), class_name=name, said=name)


def _sheets(split: str, data: LabelledFiles) -> list[Sheet]:
    """Some images of each class, or of some classes, in even steps through both."""
    of_class: list[list[int]] = [[] for _ in data.classes]
    for index, label in enumerate(data.labels):
        of_class[label].append(index)
    return [
        Sheet(data.classes[label], f"{len(of_class[label]):,}", split, _even(of_class[label], _OF_CLASS))
        for label in _even(range(len(data.classes)), _CLASSES)
    ]


def _even(values: Sequence[int], most: int) -> list[int]:
    return [values[at * len(values) // most] for at in range(most)] if len(values) > most else list(values)
