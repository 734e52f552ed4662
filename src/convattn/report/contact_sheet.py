"""What a look through a data set found, as an HTML page: contact sheets, and the images that need a look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convattn.atomic import write_atomically
from convattn.data.check import DataCheck, Found
from convattn.data.images import ImageError, as_jpeg
from convattn.report.templates import render_page
from convattn.task import Dataset, RoomData

__all__ = ["write_contact_sheet"]

_NAMED = 30  # groups or images of each kind of finding


@dataclass(frozen=True)
class _Thumbnail:
    image: bytes
    name: str
    note: str = ""


def write_contact_sheet(
    path: str | Path, check: DataCheck, splits: Mapping[str, Dataset], source: object, room: RoomData
) -> None:
    """Write the page in one step; it needs nothing else, no script and no network. `room` shows the images."""
    first = next(iter(splits))

    def thumbnail(found: Found, note: str) -> _Thumbnail:
        return _thumbnail(room, splits[found.split], found.index, note)

    def groups(found: Sequence[Sequence[Found]]) -> list[list[_Thumbnail]]:
        return [[thumbnail(one, _place(one)) for one in group[:4]] for group in found[:_NAMED]]

    sheets = [
        (sheet.title, sheet.note, [_thumbnail(room, splits[sheet.split], at) for at in sheet.indices])
        for sheet in check.sheets
    ]
    page = render_page(
        "contact_sheet.html",
        source=str(source),
        check=check,
        first=first,
        side=room.SIDE,
        sheets=sheets,
        shown_classes=len({sheet.title for sheet in check.sheets} & {*check.splits[first].classes}),
        class_count=len(check.splits[first].classes),
        leaked=groups(check.leaked),
        duplicates=groups(check.duplicates),
        odd=[thumbnail(found, f"{found.path}: {what}") for found, what in check.odd[:_NAMED]],
        corrupt=[reason for one in check.splits.values() for reason in one.corrupt.values()],
    )
    write_atomically(path, page.encode())


def _place(found: Found) -> str:
    return f"{found.split}{f', {found.class_name}' if found.class_name else ''}: {found.path}"


def _thumbnail(room: RoomData, data: Dataset, index: int, note: str = "") -> _Thumbnail:
    try:
        image = room.picture(data, index)
    except ImageError:
        image = Image.new("RGB", (room.SIDE, room.SIDE), "darkred")
    image.thumbnail((room.SIDE, room.SIDE))
    return _Thumbnail(as_jpeg(image), data.paths[index], note)
