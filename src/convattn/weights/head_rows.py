"""Some outputs of a checkpoint's classifier as the outputs of a smaller model: ImageNet-1k's out of ImageNet-22k's."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from timm.data import ImageNetInfo
from torch import Tensor

__all__ = [
    "FRESH",
    "HEAD_ROWS_WORDS",
    "IMAGENET_22K",
    "STAND_INS",
    "are_imagenet",
    "are_imagenet_in_order",
    "imagenet_22k_rows",
    "read_head_rows",
    "select_head_rows",
]

IMAGENET_22K = 21841  # classes
FRESH = "fresh"  # instead of rows: none of them
HEAD_ROWS_WORDS = ("imagenet-22k", FRESH)  # in the place of a file of rows

# The 22k classifiers of the Swin project, whose order SMT takes over, have ImageNet-1k's classes where Google's list of
# synsets has them. Class 850, teddy, is not among them; the authors take the output of another synset of that word.
STAND_INS = {"n04399382": "n03013580"}


def read_head_rows(path: str | Path) -> list[int]:
    """The rows in a text file with one line a class: the output of the checkpoint that becomes it, from 0.

    `imagenet-22k` instead of a path gives `imagenet_22k_rows`.

    Raises:
        ValueError: in one line, if the file cannot be read or a line is no number.
    """
    if str(path) == "imagenet-22k":
        return imagenet_22k_rows()
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: could not be read as rows of a classifier ({error})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not line.strip().isdecimal():
            raise ValueError(f"{path}, line {number}: {line.strip()!r} must be the number of an output, 0 or more")
        rows.append(int(line))
    if not rows:
        raise ValueError(f"{path}: no row; write one line for each class")
    return rows


def imagenet_22k_rows(classes: Sequence[str] = ()) -> list[int]:
    """For each of ImageNet-1k's classes, its output in a 21,841-class model of the Swin project or SMT-L.

    Args:
        classes: synsets of ImageNet-1k (`n01440764`), in any order; by default all 1,000 in their usual one.

    Raises:
        KeyError: for another class.
    """
    row = _row_of_synset()
    return [row[synset] for synset in classes or row]


def are_imagenet(classes: Sequence[str]) -> bool:
    """Whether these are names of classes, all of them synsets of ImageNet-1k."""
    return bool(classes) and _row_of_synset().keys() >= {*classes}


def are_imagenet_in_order(classes: Sequence[str]) -> bool:
    """Whether these are the 1,000 synsets in the order in which classifiers of ImageNet-1k have them."""
    return [*classes] == [*_row_of_synset()]


@cache
def _row_of_synset() -> dict[str, int]:
    position = {synset: row for row, synset in enumerate(ImageNetInfo("imagenet-21k-goog").label_names())}
    return {synset: position[STAND_INS.get(synset, synset)] for synset in ImageNetInfo("imagenet-1k").label_names()}


def select_head_rows(
    state: Mapping[str, Tensor], rows: Sequence[int], classifiers: str | Sequence[str]
) -> dict[str, Tensor]:
    """A checkpoint with the given outputs of its classifier alone.

    Args:
        state: names to tensors.
        rows: the outputs that stay, in their new order; one may serve twice.
        classifiers: the names of the layers that give them, as `pretrained_cfg["classifier"]` does: `head` for
            `head.weight` (outputs, features) and `head.bias` (outputs).

    Returns:
        A new mapping; all other tensors are the same objects.

    Raises:
        ValueError: if there is no such layer, or a row beyond its outputs.
    """
    if not rows:
        raise ValueError("no row was chosen; give one for each class")
    chosen = dict(state)
    for name in (classifiers,) if isinstance(classifiers, str) else classifiers:
        if f"{name}.weight" not in state:
            raise ValueError(f"the checkpoint has no {name}.weight, whose rows were to be chosen")
        for entry in (f"{name}.weight", f"{name}.bias"):
            if entry not in state:
                continue
            tensor = state[entry]
            if not 0 <= min(rows) <= max(rows) < len(tensor):
                wrong = min(rows) if min(rows) < 0 else max(rows)
                raise ValueError(f"row {wrong} must be between 0 and {len(tensor) - 1}: {entry} has {len(tensor)}")
            chosen[entry] = tensor[list(rows)]
    return chosen
