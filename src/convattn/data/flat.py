"""Images without class folders: their labels in a file, or ImageNet's synsets at the beginning of their names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from convattn.data.dataset import DataError
from convattn.data.files import Files, LabelledFiles, label_files
from convattn.extras import require

__all__ = ["open_by_label_file", "open_by_synset"]

_SYNSET = re.compile(r"(n\d{8})(?=[_.\- ])")


def open_by_synset(files: Files, where: object, classes: Sequence[str] | None = None) -> LabelledFiles:
    """Images whose names begin with their synset: `n01440764_tench.JPEG`.

    Raises:
        DataError: if one does not, naming it.
    """
    labels: list[int | str] = []
    for path in files.paths:
        found = _SYNSET.match(_base(path))
        if found is None:
            raise DataError(
                f"{where}: {_base(path)!r} lies in no class folder and its name begins with no synset (n01440764_…); "
                "name a label file, or sort the images into class folders"
            )
        labels.append(found[1])
    return label_files(files, labels, where, classes)


def open_by_label_file(files: Files, label_file: Path, classes: Sequence[str] | None = None) -> LabelledFiles:
    """Images whose labels a text file states.

    Either a line for each image, in the order of their names: the name of its class, or its number. Or lines of
    `IMAGE CLASS` in any order, the image with or without its suffix, parted by spaces, a tab or a comma; what follows
    is passed over. Numbers count from 0 in the order of the classes. ImageNet's own
    `ILSVRC2012_validation_ground_truth.txt` numbers them in another order, that of the devkit's `meta.mat` beside it.

    Args:
        files: the images, in the order of their names.
        label_file: the text file.
        classes: the classes and their order.

    Raises:
        DataError: if an image has no label, or the file does not fit the images.
        MissingExtra: if `meta.mat` is to be read without SciPy.
    """
    try:
        lines = [line.strip() for line in label_file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{label_file}: could not be read as a label file ({error})") from None
    rows = [re.split(r"[,\s]+", line) for line in lines]
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(files.paths):
            raise DataError(
                f"{label_file}: {len(rows)} labels for {len(files.paths)} images; a line for each is needed"
            )
        texts = [row[0] for row in rows]
    else:
        texts = _by_name(files, rows, label_file)
    if not all(text.isdecimal() for text in texts):
        return label_files(files, texts, label_file, classes)
    numbers = [int(text) for text in texts]
    if "ground_truth" in label_file.name:
        synsets = _devkit_synsets(label_file.parent)
        unknown = next((number for number in numbers if number not in synsets), None)
        if unknown is not None:
            raise DataError(f"{label_file}: label {unknown} is none of meta.mat's {len(synsets)} classes")
        return label_files(files, [synsets[number] for number in numbers], label_file, classes)
    return label_files(files, numbers, label_file, classes)


def _by_name(files: Files, rows: Sequence[Sequence[str]], label_file: Path) -> list[str]:
    short = next((row for row in rows if len(row) == 1), None)
    if short is not None:
        raise DataError(f"{label_file}: {short[0]!r} stands alone on its line; write IMAGE CLASS on every line")
    label_of: Mapping[str, str] = {_base(row[0]): row[1] for row in rows}
    labels = []
    for path in files.paths:
        name = _base(path)
        label = label_of.get(name, label_of.get(name.rpartition(".")[0]))
        if label is None:
            raise DataError(f"{label_file}: no label for the image {name!r}")
        labels.append(label)
    return labels


def _devkit_synsets(folder: Path) -> dict[int, str]:
    """Synset of each number of ImageNet's devkit, from its `meta.mat`."""
    meta = folder / "meta.mat"
    if not meta.is_file():
        raise DataError(
            f"{folder}: no meta.mat beside ImageNet's ground truth, which numbers the classes in an order of its own; "
            "copy it from the devkit's folder data"
        )
    table = require("scipy.io", "detection").loadmat(meta, squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table if not int(row["num_children"])}


def _base(path: str) -> str:
    return path.rpartition("/")[2]
