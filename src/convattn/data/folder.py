"""Images in a folder per class: `DIR/train/CLASS/…` with `DIR/val/CLASS/…` or `DIR/test/CLASS/…`."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from convattn.data.dataset import DataError
from convattn.data.images import read_image

__all__ = ["FolderDataset", "open_class_folders", "open_folder"]

_LAYOUT = "expected DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE (or DIR/test/…)"
_SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}  # folders that serve, the first found


class FolderDataset:
    """The images below one folder, which has one folder per class.

    Args:
        folder: its sub-folders are the classes; images may lie deeper in them.
        classes: the classes and their order; by default the sub-folders in order of their names, as in torchvision.

    Raises:
        DataError: if there are no classes, a class has no image, or a sub-folder is not among `classes`.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None = None):
        found = _classes(folder)
        self.classes = list(found if classes is None else classes)
        unknown = [name for name in found if name not in self.classes]
        if unknown:
            raise DataError(
                f"{folder}: class {', '.join(map(repr, unknown))} is here but not among the training classes; "
                "add it to train or remove it here"
            )
        present = {name: self.classes.index(name) for name in found}
        try:
            samples = make_dataset(folder, present, extensions=IMG_EXTENSIONS)
        except FileNotFoundError:
            empty = [name for name in found if not _has_image(folder, name)]
            raise DataError(
                f"{folder}: no image in class {', '.join(map(repr, empty))}; "
                f"files ending in {', '.join(IMG_EXTENSIONS)} count"
            ) from None
        self.paths = [path for path, _ in samples]
        self.labels = [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        return read_image(self.paths[index])


def open_folder(directory: str | Path, split: str) -> FolderDataset:
    """One split of a data set laid out as `DIR/train`, and `DIR/val` or `DIR/test`.

    Labels of every split follow the classes of `train`.

    Args:
        directory: the folder DIR.
        split: "train", "val" (the folder `test` serves where there is no `val`) or "test" (and the other way round).

    Raises:
        DataError: if the folder or a split is missing or empty, or a class is present only in validation, naming it.
    """
    if split not in _SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(_SPLITS)}")
    directory = Path(directory)
    train = FolderDataset(_split_folder(directory, "train"))
    return train if split == "train" else FolderDataset(_split_folder(directory, split), train.classes)


def open_class_folders(directory: str | Path) -> FolderDataset:
    """Images to evaluate on: `DIR/val`, `DIR/test`, or the class folders of DIR itself. Labels follow these alone."""
    directory = Path(directory)
    splits = [directory / name for name in ("val", "test") if (directory / name).is_dir()]
    if not splits and (directory / "train").is_dir():
        raise DataError(f"{directory}: has train but neither val nor test; {_LAYOUT}")
    return FolderDataset(splits[0] if splits else directory)


def _split_folder(directory: Path, split: str) -> Path:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; {_LAYOUT}")
    for name in _SPLITS[split]:
        if (directory / name).is_dir():
            return directory / name
    raise DataError(f"{directory}: no folder {' or '.join(_SPLITS[split])}; {_LAYOUT}, found {_listing(directory)}")


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {_LAYOUT}")
    try:
        return find_classes(folder)[0]
    except FileNotFoundError:
        raise DataError(f"{folder}: no class folders; {_LAYOUT}, found {_listing(folder)}") from None


def _has_image(folder: Path, name: str) -> bool:
    return any(path.suffix.lower() in IMG_EXTENSIONS for path in (folder / name).rglob("*"))


def _listing(folder: Path, most: int = 6) -> str:
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in folder.iterdir())
    if not names:
        return "an empty folder"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
