"""Images without class folders: their labels in a file, or ImageNet's synsets at the beginning of their names."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from convattn.data.dataset import DataError, tell
from convattn.data.files import Files, LabelledFiles, label_as_stated, label_by_name
from convattn.data.label_rows import LabelRow, LabelRows, read_label_rows
from convattn.data.lists import row_word
from convattn.data.matching import ImagePaths
from convattn.data.stated_labels import StatedLabels
from convattn.extras import require
from convattn.shown import reason

__all__ = ["open_by_label_file", "open_by_synset"]

_LARGEST_META = 2**24  # bytes of meta.mat
_SYNSET = re.compile(r"(n\d{8})(?=[_.\- ])")


def open_by_synset(files: Files, where: object, classes: Sequence[str] | None = None) -> LabelledFiles:
    """Images whose names begin with their synset, as `n01440764_tench.JPEG`; DataError names one that does not."""
    labels: list[str] = []
    for path in files.paths:
        found = _SYNSET.match(_base(path))
        if found is None:
            raise DataError(
                f"{where}: {_base(path)!r} lies in no class folder and its name begins with no synset (n01440764_…); "
                "name a label file, or sort the images into class folders"
            )
        labels.append(found[1])
    return label_by_name(files, labels, where, classes)


def open_by_label_file(
    files: Files,
    inside: Sequence[str],
    label_file: Path,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
) -> LabelledFiles:
    """Images whose labels a file states; `inside` are their paths within their folder or archive.

    Either a line for each image, in the order of their names: the name of its class, or its number. Or lines of `IMAGE
    CLASS` in any order (`ImagePaths`), parted by blanks, a tab, a comma, `;` or `|`; or a list with named columns. What
    numbers mean says `StatedLabels`. ImageNet's own `ILSVRC2012_validation_ground_truth.txt` numbers the classes in
    another order, that of the devkit's `meta.mat` beside it.

    DataError if an image has no label or two, or the file does not fit the images; MissingExtra if `meta.mat` is to be
    read without SciPy.
    """
    read = read_label_rows(label_file, are_known=classes is not None)
    chosen = _rows_of_images(read, inside, label_file, folder)
    if chosen is None:
        labels = _in_order(read.rows, inside, label_file)
        chosen = list(read.rows)
    else:
        labels = [row.label for row in chosen]
    from_imagenet = not any(row.label for row in read.rows) or "ilsvrc" in label_file.name.lower()
    if from_imagenet and "ground_truth" in label_file.name and all(map(str.isdecimal, labels)):
        labels = _from_devkit(labels, label_file)
    stated = StatedLabels(label_file, lambda at: f"{row_word(label_file)} {chosen[at].number}")
    for label in labels:
        stated.add(label)
    return label_as_stated(files, stated, classes, read.names)


def _rows_of_images(
    read: LabelRows, inside: Sequence[str], label_file: Path, folder: Path | None
) -> list[LabelRow] | None:
    """The row of each image; None if no row begins with the path of one."""
    word = row_word(label_file)
    images = ImagePaths(inside, _prefixes(label_file, folder))
    found: dict[int, tuple[LabelRow, bool]] = {}
    twice, strange = [], []
    for row in read.rows if any(row.label for row in read.rows) else ():
        place = f"{label_file}, {word} {row.number}"
        try:
            image = images.find(row.image)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        if image is None:
            strange.append(row)
            continue
        if not row.label:
            raise DataError(f"{place}: {row.image!r} stands alone on its line; write IMAGE CLASS on every line")
        at, exact = image
        other, sure = found.setdefault(at, (row, exact))
        if other is row or sure > exact:  # a row for another image of that name, which is not here
            continue
        if sure == exact and other.label != row.label:
            raise DataError(
                f"{place}: the image {inside[at]!r} has the label {row.label!r}, and {other.label!r} by {word} "
                f"{other.number} ({other.image!r}); leave one"
            )
        twice += [row] if sure == exact else []
        found[at] = (row, exact) if exact > sure else found[at]
    if not found:
        return None
    missing = next((path for at, path in enumerate(inside) if at not in found), None)
    if missing is not None:
        raise DataError(
            f"{label_file}: no label for the image {missing!r}{'' if folder is None else f' of {folder}'}; add one, or "
            "leave this file out if class folders or other names state the labels"
        )
    strange = strange if read.heading else [row for row in strange if row is not read.rows[0]]
    for rows, what in ((twice, "say again what others do"), (strange, "name no image that is there")):
        if rows:
            tell(f"{label_file}: {len(rows):,} rows {what}, such as {word} {rows[0].number}, {rows[0].image!r}")
    return [found[at][0] for at in range(len(inside))]


def _in_order(rows: Sequence[LabelRow], inside: Sequence[str], label_file: Path) -> list[str]:
    """The labels of a file that has one a line, for images in the order of their names."""
    if len(rows) != len(inside):
        what = f"{len(rows)} labels for {len(inside)} images; a line for each is needed"
        raise DataError(
            f"{label_file}: {what}"
            + (f", or lines IMAGE CLASS; no image is called {rows[0].image!r}" if rows and rows[0].label else "")
        )
    names = list(map(_base, inside))
    if len(set(names)) < len(names):
        raise DataError(f"{label_file}: has a label a line, and images of equal names have no order; write IMAGE CLASS")
    natural = sorted(names, key=_natural)
    if natural != names:
        at = next(at for at, name in enumerate(names) if name != natural[at])
        tell(
            f"{label_file}: a label a line, in the order of characters: {names[at]} is number {at + 1}, which by its "
            f"numbers {natural[at]} would be; lines IMAGE CLASS leave no doubt"
        )
    return [row.whole for row in rows]


def _prefixes(label_file: Path, folder: Path | None) -> list[str]:
    """What may stand before the paths of images: their folder as seen from the label file, and from the root."""
    if folder is None:
        return []
    seen = os.path.relpath(folder, label_file.parent)
    return [f"{path.rstrip('/')}/" for path in (seen, str(folder), os.path.abspath(folder)) if path != "."]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts img2 before img10."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 4000 else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _from_devkit(labels: Sequence[str], label_file: Path) -> list[str]:
    synsets = _devkit_synsets(label_file.parent)
    unknown = next((label for label in labels if label.lstrip("0") not in synsets), None)
    if unknown is not None:
        raise DataError(f"{label_file}: label {unknown} is none of meta.mat's {len(synsets)} classes")
    return [synsets[label.lstrip("0")] for label in labels]


def _devkit_synsets(folder: Path) -> dict[str, str]:
    """Synset of each number of ImageNet's devkit, from its `meta.mat`."""
    meta = folder / "meta.mat"
    if not meta.is_file():
        raise DataError(
            f"{folder}: no meta.mat beside ImageNet's ground truth, which numbers the classes in an order of its own; "
            "copy it from the devkit's folder data"
        )
    loadmat = require("scipy.io", "detection").loadmat
    try:
        if meta.stat().st_size > _LARGEST_META:
            raise ValueError(f"{meta.stat().st_size:,} bytes")
        table = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in table if not int(row["num_children"])}
    except Exception as error:  # SciPy raises whatever it stumbles on
        raise DataError(f"{meta}: could not be read as the devkit's table of classes ({reason(error, 200)})") from None


def _base(path: str) -> str:
    return path.rpartition("/")[2]
