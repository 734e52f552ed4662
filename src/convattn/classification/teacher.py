"""A teacher in the terms of its student: images prepared as it expects them, answers in the student's classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo
from torch import Tensor, nn

from convattn.data.class_names import own_names
from convattn.data.transforms import input_config
from convattn.shown import brief

__all__ = ["Student", "Teacher", "fit_teacher"]

_NOTHING = "taken as it is"


@dataclass(frozen=True)
class Student:
    """What a teacher needs to know of the model that it teaches."""

    num_classes: int
    names: Sequence[str] | None  # of its classes, in order; None where they are numbers alone
    mean: Sequence[float]  # that its images were normalised with
    std: Sequence[float]
    image_size: tuple[int, int]  # height, width
    interpolation: str  # that resizes its images

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str] | None) -> "Student":
        """As `model` describes its input."""
        cfg = input_config(model)
        height, width = cfg["input_size"][-2:]
        return cls(model.num_classes, names, cfg["mean"], cfg["std"], (height, width), cfg["interpolation"])  # type: ignore[arg-type]


class Teacher(nn.Module):
    """model(resized(images · scale + shift))[:, columns]; what is not needed is left out.

    Args:
        model: images (B, 3, H, W) -> logits (B, classes of the teacher).
        columns: which of its outputs is each of the student's classes; None for the same.
        affine: scale and shift of each channel, from the student's normalisation to the teacher's; None for the same.
        resize: height, width and interpolation of the teacher's images; None for the student's.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: Sequence[int] | None = None,
        affine: tuple[Sequence[float], Sequence[float]] | None = None,
        resize: tuple[int, int, str] | None = None,
    ):
        super().__init__()
        self.model = model
        self.num_classes = model.num_classes if columns is None else len(columns)
        self.resize = resize
        self.columns: Tensor | None
        self.scale: Tensor | None
        self.shift: Tensor | None
        self.register_buffer("columns", None if columns is None else torch.tensor(columns))
        for name, values in zip(("scale", "shift"), affine or (None, None), strict=True):
            self.register_buffer(name, None if values is None else torch.tensor(values)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the student -> logits (B, classes of the student)."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        if self.resize is not None:
            height, width, mode = self.resize
            images = F.interpolate(images, (height, width), mode=mode, antialias=True)
        logits = self.model(images)
        return logits if self.columns is None else logits.index_select(1, self.columns)


def fit_teacher(model: nn.Module, student: Student, name: str, note: Callable[[str], None]) -> nn.Module:
    """The teacher that `model` makes for `student`.

    Its outputs are matched with the classes by their names, its images normalised and resized as it expects.

    Args:
        model: a classifier with a `pretrained_cfg`.
        student: whom it teaches.
        name: what the teacher is called in messages.
        note: shows one line to the user, one for each thing that differs.

    Raises:
        ValueError: if the classes cannot be matched, or the teacher takes images of another kind.
    """
    differs: list[tuple[str, str]] = []  # what differs, and what is done about it
    teacher = Teacher(
        model, _columns(model, student, differs), _affine(model, student, differs), _resize(model, student, differs)
    )
    for what, done in differs:
        note(f"teacher {name}: {what}: {done}")
    return teacher if any(done != _NOTHING for _, done in differs) else model


def _columns(model: nn.Module, student: Student, differs: list[tuple[str, str]]) -> list[int] | None:
    """Which of the teacher's outputs is each of the student's classes; None for the same, or if nobody knows."""
    names = _names(model, student)
    if names is None or student.names is None:
        unnamed = "its outputs have no names" if names is None else "the classes of the data have no names"
        if model.num_classes != student.num_classes:
            raise ValueError(
                f"the teacher has {model.num_classes} classes and the data {student.num_classes}, and {unnamed}; "
                "take a teacher trained on the same classes"
            )
        differs.append((f"{unnamed}, and are taken to stand in the same order", _NOTHING))
        return None
    position = {name: index for index, name in enumerate(names)}
    unknown = [name for name in student.names if name not in position]
    if unknown:
        raise ValueError(
            f"class {brief(map(repr, unknown))} of the data is unknown to the teacher, which knows {brief(names)}; "
            "take a teacher trained on the same classes"
        )
    if list(names) == list(student.names):
        return None
    others = len(names) - len(student.names)
    more = f", and {others} more are left out" if others else ""
    differs.append(("its classes stand in another order than the data's", f"matched by their names{more}"))
    return [position[name] for name in student.names]


def _names(model: nn.Module, student: Student) -> Sequence[str] | None:
    """What the teacher's outputs are called; of ImageNet's models without names of their own, where the data's are."""
    names = own_names(model)
    if names is None and model.num_classes == 1000:
        synsets = ImageNetInfo("imagenet-1k").label_names()
        names = synsets if set(student.names or ()) <= set(synsets) else None
    return names


def _affine(
    model: nn.Module, student: Student, differs: list[tuple[str, str]]
) -> tuple[list[float], list[float]] | None:
    cfg = input_config(model)
    channels = getattr(model, "in_chans", cfg["input_size"][0])
    if channels != 3:
        raise ValueError(f"the teacher takes images of {channels} channels, and these have 3; take another teacher")
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if (mean, std) == (tuple(student.mean), tuple(student.std)):
        return None
    what = f"it expects images normalised with mean {_list(mean)} and std {_list(std)}"
    differs.append((what, f"these, of {_list(student.mean)} and {_list(student.std)}, are normalised anew"))
    # (x · σ + μ - m) / s
    scale = [own / its for own, its in zip(student.std, std, strict=True)]
    shift = [(own - its) / s for own, its, s in zip(student.mean, mean, std, strict=True)]
    return scale, shift


def _resize(model: nn.Module, student: Student, differs: list[tuple[str, str]]) -> tuple[int, int, str] | None:
    cfg = input_config(model)
    height, width = cfg["input_size"][-2:]
    if (height, width) == tuple(student.image_size):
        if cfg["interpolation"] != student.interpolation:
            what = f"its images were resized by {cfg['interpolation']}, these are by {student.interpolation}"
            differs.append((what, _NOTHING))
        return None
    mode = cfg["interpolation"] if cfg["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    own = " x ".join(map(str, student.image_size))
    differs.append((f"it expects images of {height} x {width}", f"these, of {own}, are resized"))
    return height, width, mode


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
