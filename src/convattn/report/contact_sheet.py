"""What `check_data` found, as an HTML page: a contact sheet of every class, and the images that need a look."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convattn.atomic import write_atomically
from convattn.data.check import DataCheck, Found
from convattn.data.files import LabelledFiles
from convattn.data.images import ImageError
from convattn.report.templates import render_page

__all__ = ["write_contact_sheet"]

_SIDE = 96  # pixels of a thumbnail
_OF_CLASS = 8  # images of a class
_CLASSES = 100  # of more, as many in even steps
_NAMED = 30  # groups or images of each kind of finding


@dataclass(frozen=True)
class _Thumbnail:
    image: bytes
    name: str
    note: str = ""


def write_contact_sheet(
    path: str | Path, check: DataCheck, splits: Mapping[str, LabelledFiles], source: object
) -> None:
    """Write the page in one step; it needs nothing else, no script and no network.

    Args:
        path: where it goes.
        check: what was found.
        splits: where the images are, as they were checked.
        source: what the page calls the data set.

    Raises:
        OSError: if it cannot be written.
    """
    first, data = next(iter(splits.items()))
    page = render_page(
        "contact_sheet.html",
        source=str(source),
        check=check,
        first=first,
        classes=_sheet(data),
        class_count=len(data.classes),
        leaked=[_group(group, splits) for group in check.leaked[:_NAMED]],
        duplicates=[_group(group, splits) for group in check.duplicates[:_NAMED]],
        odd=[_shown(splits[found.split], found.index, f"{found.path}: {what}") for found, what in check.odd[:_NAMED]],
        corrupt=[reason for one in check.splits.values() for reason in one.corrupt.values()],
    )
    write_atomically(path, page.encode())


def _sheet(data: LabelledFiles) -> list[tuple[str, int, list[_Thumbnail]]]:
    """Classes with their number of images and some of these, in even steps through both."""
    of_class: list[list[int]] = [[] for _ in data.classes]
    for index, label in enumerate(data.labels):
        of_class[label].append(index)
    return [
        (data.classes[label], len(of_class[label]), [_shown(data, at) for at in _even(of_class[label], _OF_CLASS)])
        for label in _even(range(len(data.classes)), _CLASSES)
    ]


def _even(values: Sequence[int], most: int) -> list[int]:
    return [values[at * len(values) // most] for at in range(most)] if len(values) > most else list(values)


def _group(group: Sequence[Found], splits: Mapping[str, LabelledFiles]) -> list[_Thumbnail]:
    return [
        _shown(splits[found.split], found.index, f"{found.split}, {found.class_name}: {found.path}")
        for found in group[:4]
    ]


def _shown(data: LabelledFiles, index: int, note: str = "") -> _Thumbnail:
    try:
        image = data.read(index)
    except ImageError:
        image = Image.new("RGB", (_SIDE, _SIDE), "darkred")
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=80)
    return _Thumbnail(buffer.getvalue(), data.paths[index], note)
