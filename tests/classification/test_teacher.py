"""A teacher of another kind than its student: matched, or refused, and never in silence."""

import pytest
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import nn

from convattn.classification.teacher import Student, fit_teacher

NAMES = ("ant", "bee", "cat")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Colours(nn.Module):
    """Logits from the mean colour; its description is what a saved model carries."""

    def __init__(self, names=NAMES, classes=None, **cfg):
        super().__init__()
        self.num_classes = classes or len(names)
        self.fc = nn.Linear(3, self.num_classes)
        common = dict(input_size=(3, 8, 8), mean=MEAN, std=STD, interpolation="bicubic", crop_pct=1.0)
        self.pretrained_cfg = {**common, "label_names": names, **cfg}
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def student():
    return Student(3, NAMES, MEAN, STD, (8, 8), "bicubic")


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8)


def fitted(model, student):
    """The teacher, and what is said of it."""
    notes = []
    return fit_teacher(model, student, "t", notes.append), notes


def test_a_teacher_like_its_student_is_taken_as_it_is(student):
    model = Colours()
    teacher, notes = fitted(model, student)
    assert teacher is model and notes == []


@pytest.mark.parametrize(
    ("names", "columns", "more"),
    [
        (("cat", "ant", "bee"), [1, 2, 0], ""),
        (("cat", "dog", "ant", "elk", "bee"), [2, 4, 0], ", and 2 more are left out"),
    ],
)
def test_outputs_are_matched_by_the_names_of_the_classes(student, images, names, columns, more):
    model = Colours(names)
    teacher, notes = fitted(model, student)
    assert teacher.num_classes == 3
    assert torch.equal(teacher(images), model(images)[:, columns])
    order = "teacher t: its classes stand in another order than the data's"
    assert notes == [f"{order}: matched by their names{more}"]


@pytest.mark.parametrize("names", [("ant", "bee", "cow"), ("ant", "bee"), ("ant", "bee", "Cat", "dog")])
def test_a_class_that_the_teacher_does_not_know_is_refused(student, names):
    with pytest.raises(ValueError, match=r"^class 'cat' of the data is unknown to the teacher, which knows ant, bee"):
        fitted(Colours(names), student)


def test_imagenets_classes_are_known_without_names(student, images):
    synsets = ImageNetInfo("imagenet-1k").label_names()
    model = Colours(None, 1000)
    wild = Student(2, (synsets[7], synsets[3]), MEAN, STD, (8, 8), "bicubic")
    teacher, (note,) = fitted(model, wild)
    assert torch.equal(teacher(images), model(images)[:, [7, 3]])
    assert note.endswith(", and 998 more are left out")
    with pytest.raises(ValueError, match=r"the teacher has 1000 classes and the data 3, and its outputs have no names"):
        fitted(model, student)


def test_where_names_are_missing_the_order_is_taken_and_said(student):
    numbered = Student(3, None, MEAN, STD, (8, 8), "bicubic")
    unnamed, named = Colours(None, 3), Colours()
    for model, pupil, whose in (
        (unnamed, student, "its outputs"),
        (named, numbered, "the classes of the data"),
        (unnamed, numbered, "its outputs"),
    ):
        said = f"teacher t: {whose} have no names, and are taken to stand in the same order: taken as it is"
        assert fitted(model, pupil) == (model, [said])
    with pytest.raises(ValueError, match=r"the teacher has 4 classes and the data 3, and the classes of the data have"):
        fitted(Colours((*NAMES, "dog")), numbered)


def test_images_are_normalised_as_the_teacher_expects(student):
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    model = Colours(mean=mean, std=std)
    teacher, notes = fitted(model, student)
    pixels = torch.rand(2, 3, 8, 8)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    teacher(normalised(MEAN, STD))
    torch.testing.assert_close(model.seen[-1], normalised(mean, std), rtol=1e-5, atol=1e-5)
    assert notes == [
        "teacher t: it expects images normalised with mean 0.5, 0.4, 0.3 and std 0.5, 0.25, 0.2: "
        "these, of 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225, are normalised anew"
    ]


def test_images_are_resized_as_the_teacher_expects(student, images):
    model = Colours(input_size=(3, 5, 6), interpolation="bilinear")
    teacher, notes = fitted(model, student)
    teacher(images)
    assert torch.equal(model.seen[-1], F.interpolate(images, (5, 6), mode="bilinear", antialias=True))
    assert notes == ["teacher t: it expects images of 5 x 6: these, of 8 x 8, are resized"]
    _, notes = fitted(Colours(interpolation="bilinear"), student)
    assert notes == ["teacher t: its images were resized by bilinear, these are by bicubic: taken as it is"]


def test_images_without_colour_are_refused(student):
    with pytest.raises(ValueError, match=r"^the teacher takes images of 1 channels, and these have 3; take another"):
        fitted(Colours(input_size=(1, 8, 8)), student)
