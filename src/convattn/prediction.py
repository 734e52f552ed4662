"""What a model says of pictures from wherever they are: `convattn.predict`, and the command behind the same word."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import nn

from convattn.data.dataset import DataError
from convattn.data.file_names import WHAT_COUNTS, tell_unread
from convattn.data.folder import images_below
from convattn.data.images import ImageError, as_rgb, read_image
from convattn.data.lists import is_list_name, paths_in_list
from convattn.data.on_disk import OnDisk
from convattn.data.text_files import read_lines
from convattn.evaluation import evaluating
from convattn.rooms import room_of
from convattn.task import Prediction

__all__ = ["Picture", "Pictures", "Predicted", "find_pictures", "predict", "predicted"]

Picture = str | Path | Image.Image | np.ndarray
Pictures = Picture | Iterable[Picture]


@dataclass(frozen=True)
class Predicted:
    """One picture, and what was said of it."""

    name: str  # the file, or the number of one that came from memory
    picture: Image.Image | None  # RGB; None if it could not be read
    prediction: Prediction | None
    problem: str = ""  # why there is none


def predict(
    model: nn.Module, pictures: Pictures, *, batch_size: int = 16, progress: bool = True, **options: Any
) -> Iterator[Prediction]:
    """What `model` says of pictures, one prediction each, in order, as they are ready.

    The model is left in the mode it came in.

    Args:
        model: as `open_model` or `create_model` gives it; an exported file too.
        pictures: files, folders (searched however deep), patterns such as `photos/*.jpg`, lists of files (.csv, .tsv
            or .parquet with a column `path`, .txt with a path a line), PIL images, arrays (H, W, 3) uint8, several of
            these, or a batch (B, H, W, 3) uint8.
        batch_size: pictures in a batch.
        progress: show a bar on standard error, if that is a terminal.
        **options: of the task, such as `top=3` for a classifier.

    Raises:
        DataError: if a path does not exist, or nothing is found there. ImageError: if a picture cannot be read.
        ValueError: if the model has no task, or an option is none of its task's.
    """
    shown = Console(stderr=True, quiet=not progress)
    for each in predicted(model, pictures, batch_size=batch_size, console=shown, **options):
        if each.prediction is None:
            raise ImageError(each.problem)
        yield each.prediction


def predicted(
    model: nn.Module, pictures: Pictures, *, batch_size: int, console: Console, **options: Any
) -> Iterator[Predicted]:
    """The same with the pictures; one that cannot be read is told, and the others go on."""
    room = room_of(model, type(model).__name__)
    try:
        asked = room.words.prediction(**options)
    except TypeError as error:
        raise ValueError(f"{room.kind} takes no such option: {error}") from None
    found = find_pictures(pictures)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be 1 or more")
    bar = Progress(console=console, disable=not console.is_terminal, transient=True)
    with evaluating(model), bar:
        task = bar.add_task("predicting", total=len(found))
        for start in range(0, len(found), batch_size):
            read = [_read(start + at, source) for at, source in enumerate(found[start : start + batch_size])]
            whole = [each.picture for each in read if each.picture is not None]
            said = iter(room.predict(model, whole, asked, partial(bar.advance, task)) if whole else ())
            for each in read:
                yield each if each.picture is None else Predicted(each.name, each.picture, next(said))
            bar.update(task, completed=start + len(read))


def find_pictures(pictures: Pictures) -> list[Picture]:
    """Every picture by itself: folders searched, patterns and lists resolved; DataError names where there is none."""
    is_batch = isinstance(pictures, np.ndarray) and pictures.ndim == 4
    is_one = isinstance(pictures, str | Path | Image.Image | np.ndarray) and not is_batch
    if is_one or not isinstance(pictures, Iterable):
        pictures = [cast(Picture, pictures)]
    found: list[Picture] = []
    for source in pictures:
        found += _files(str(source)) if isinstance(source, str | Path) else [source]
    return found


def _files(source: str) -> list[Picture]:
    if not source:  # as from a variable of the shell that is not set: not the working directory
        raise DataError("the name of a picture is empty")
    path = Path(source)
    if path.is_dir():
        unread: list[str] = []
        inside = sorted(images_below(path, unread))
        tell_unread(path, unread)
        if not inside:
            raise DataError(f"{source}: no image in this folder; {WHAT_COUNTS}")
        return [os.path.join(source, name) for name in inside]
    if path.exists():
        if path.suffix.lower() == ".txt":
            disk = OnDisk(path)
            return [disk.path(line, f"{path}, line {number}") for number, line in read_lines(path)]
        return [*paths_in_list(path)] if is_list_name(path.name) else [source]
    matching = sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else []
    if not matching:
        raise DataError(f"{source}: no such file or folder, and no pattern that fits one")
    return [found for name in matching for found in _files(name)]


def _read(index: int, source: Picture) -> Predicted:
    name = str(source) if isinstance(source, str | Path) else str(index)
    try:
        return Predicted(name, _as_picture(name, source), None)
    except ImageError as error:
        return Predicted(name, None, None, str(error))


def _as_picture(name: str, source: Picture) -> Image.Image:
    if isinstance(source, str | Path):
        return read_image(name)
    if isinstance(source, Image.Image):
        return as_rgb(name, source)
    if not isinstance(source, np.ndarray):
        raise ImageError(
            f"picture {name}: {type(source).__name__}; give a file, a PIL image or an array (H, W, 3) uint8, RGB"
        )
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
        raise ImageError(
            f"picture {name}: an array of shape {source.shape} and type {source.dtype}; give (H, W, 3) uint8, RGB"
        )
    return as_rgb(name, Image.fromarray(source))
