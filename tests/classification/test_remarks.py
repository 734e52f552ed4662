from types import SimpleNamespace

import pytest

from convattn.classification.room import ROOM
from convattn.data.files import LabelledFiles, PlainFiles

CLASSES = tuple("abcdef")


def files(labels, classes=CLASSES):
    return LabelledFiles(PlainFiles([str(at) for at in range(len(labels))]), labels, classes)


def remarks(train, validation, place=None):
    return ROOM.remarks(SimpleNamespace(data=SimpleNamespace(validation=place)), train, validation)


def test_classes_without_a_validation_image_are_named():
    train = files([0, 1, 2, 3, 4, 4, -1])  # f has no image at all, and one image no label
    (line,) = remarks(train, files([0, 2, 4]))
    assert line == "without a validation image, so that no figure tells of it: b, d"
    assert remarks(train, files([0, 1, 2, 3, 4])) == []
    assert remarks(train, files([0]), "0.2") == []  # what is held out has been told
    assert remarks(None, files([0])) == []  # of a pipe nobody knows the labels


@pytest.mark.parametrize("count", [2, 5])
def test_that_top_5_says_nothing_of_five_classes_is_told(count):
    every = files(range(count), CLASSES[:count])
    assert remarks(every, every) == [f"top-5 is always 100 % with {count} classes; look at top-1"]
