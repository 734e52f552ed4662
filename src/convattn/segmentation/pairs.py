"""Where the images of a data set are, and the mask of each: the layouts, by names of folders and files alone.

    images/{train,val,test}/X.jpg   masks/{train,val,test}/X.png      ADE20K, COCO-stuff, Cityscapes, CamVid
    {train,val,test}/images/X.jpg   {train,val,test}/masks/X.png
    {train,val,test}/X.jpg          {train,val,test}_masks/X.png
    images/X.jpg                    masks/X.png                       one split alone
    pairs.csv                       columns image, mask and perhaps split; or train.csv and val.csv

Folders of images and of masks have one of several names, and so have splits. A mask is called like its image, but for
the suffix and for an ending that all have, such as `_labelTrainIds`.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convattn.data.dataset import DataError, DataWarning
from convattn.data.file_names import tell_unread
from convattn.data.files import listing
from convattn.data.folder import content_of, images_below
from convattn.data.lists import has_columns, is_list_name, row_word, rows_of
from convattn.data.names import Names
from convattn.data.on_disk import OnDisk
from convattn.data.spelling import spelled
from convattn.data.split_words import SPLITS
from convattn.shown import shown

__all__ = ["ALONE", "Layout", "Pairs", "find_layout"]

ALONE = "all"  # the split of what has none

_IMAGES = {"image", "images", "img", "imgs", "photo", "photos", "jpegimages", "leftimg8bit"}
_MASKS = {
    "annotation", "annotations", "annot", "label", "labels", "labelmap", "labelmaps", "mask", "masks", "groundtruth",
    "gt", "gtfine", "gtcoarse", "segmentation", "segmentations", "segmentationclass",
}  # fmt: skip
_IMAGE_ENDINGS = ("", "_leftImg8bit")
_MASK_ENDINGS = (
    "", "_gtFine_labelTrainIds", "_gtFine_labelIds", "_gtCoarse_labelTrainIds", "_gtCoarse_labelIds", "_labelTrainIds",
    "_labelIds", "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_annotation", "_gt", "_L",
)  # fmt: skip
_COLUMNS = ("path", "mask")


@dataclass(frozen=True)
class Pairs:
    """The images of a split in order, and the mask of each."""

    where: str  # for messages: the folder of the images, or the list
    images: Sequence[str]  # paths
    masks: Sequence[str]  # paths; empty where there is none
    masks_at: str  # for messages: the folder of the masks, or the list
    strays: Sequence[str] = ()  # masks without an image
    notes: Sequence[str] = ()  # what else was passed over or chosen

    def part(self, indices: Sequence[int]) -> "Pairs":
        """Some of them, without what was told of all."""
        images, masks = (Names(paths[at] for at in indices) for paths in (self.images, self.masks))
        return Pairs(self.where, images, masks, self.masks_at)

    @property
    def lacking(self) -> list[int]:
        """The images without a mask."""
        return [at for at, mask in enumerate(self.masks) if not mask]

    def tell(self) -> None:
        """Say what was passed over or chosen."""
        for line in self.notes:
            warnings.warn(line, DataWarning, stacklevel=2)
        if self.strays:
            warnings.warn(
                f"{shown(self.masks_at)}: {len(self.strays):,} without an image in {shown(self.where)}, passed over: "
                f"{shown(listing(self.strays, 3))}",
                DataWarning,
                stacklevel=2,
            )


@dataclass(frozen=True)
class Layout:
    """A data set: where its splits are. Nothing is listed before it is asked for."""

    root: Path  # beside which the file of the classes is looked for
    places: Mapping[str, tuple[Path, Path]]  # split -> folders of images and masks, or twice the list
    unmasked: Mapping[str, Path]  # splits that have images and no masks: where these would be

    def __contains__(self, split: str) -> bool:
        return split in self.places

    def pairs(self, split: str) -> Pairs:
        """The images and masks of a split.

        Raises:
            DataError: if there is no image, none has a mask, or two files could be one image or one mask.
        """
        images, masks = self.places[split]
        found = _listed(images, split) if images.is_file() else _paired(images, masks)
        if not found.images:
            raise DataError(f"{shown(found.where)}: no image")
        if len(found.lacking) == len(found.images):
            example = Path(found.images[0])
            raise DataError(
                f"{shown(found.where)}: none of {len(found.images):,} images has a mask in {shown(found.masks_at)}; "
                f"masks are called like their images: {shown(example.stem)}.png for {shown(example.name)}"
                + (f", and there is {shown(found.strays[0])}" if found.strays else "")
            )
        return found


def find_layout(source: str | Path) -> Layout | None:
    """Where the images and masks of a data set are; None if nothing there looks like both.

    Raises:
        DataError: if two folders could be the masks, the images or a split.
    """
    path = Path(source)
    if path.is_file():
        return _of_list(path) if is_list_name(path.name) and has_columns(path, _COLUMNS) else None
    if not path.is_dir():
        return None
    content = content_of(path)
    both = _images_and_masks(path, content.folders)
    if both is not None:
        return _split_inside(path, *both)
    return _split_outside(path, content.folders) or _of_lists(path, content.others)


def _images_and_masks(folder: Path, names: Sequence[str]) -> tuple[Path, Path] | None:
    images = [folder / name for name in names if _plain(name) in _IMAGES]
    masks = [folder / name for name in names if _plain(name) in _MASKS]
    if not images or not masks:
        return None
    masks = [path for path in masks if _holds_images(path)]  # other tasks' annotations are texts
    if not masks:
        return None
    return _one(folder, images, "images"), _one(folder, masks, "masks")


def _split_inside(root: Path, images: Path, masks: Path) -> Layout:
    """`images/train`, `masks/train`."""
    of_images, of_masks = _splits(images), _splits(masks)
    if not of_images and not of_masks:
        return Layout(root, {ALONE: (images, masks)}, {})
    if not of_images or not of_masks:
        having, other = (images, masks) if of_images else (masks, images)
        found = listing(f"{path.name}/" for path in (of_images or of_masks).values())
        raise DataError(
            f"{shown(root)}: {having.name}/ has {found} and {other.name}/ has none of these; cut both alike"
        )
    places = {split: (of_images[split], of_masks[split]) for split in of_images if split in of_masks}
    unmasked = {split: masks / of_images[split].name for split in of_images if split not in of_masks}
    return Layout(root, places, unmasked)


def _split_outside(root: Path, names: Sequence[str]) -> Layout | None:
    """`train/images`, `train/masks`; or `train`, `train_masks`."""
    splits = _splits(root)
    places, unmasked = {}, {}
    for split, folder in splits.items():
        both = _images_and_masks(folder, content_of(folder).folders)
        beside = [root / name for name in names if _is_masks_of(name, folder.name) and _holds_images(root / name)]
        if both is None and beside:
            both = folder, _one(root, beside, f"masks of {folder.name}")
        if both is not None:
            places[split] = both
        else:
            unmasked[split] = folder
    return Layout(root, places, unmasked) if places else None


def _of_lists(root: Path, names: Sequence[str]) -> Layout | None:
    lists = [root / name for name in names if is_list_name(name)]
    lists = [path for path in lists if has_columns(path, _COLUMNS)]
    named = {split: [path for path in lists if path.stem.lower() in words] for split, words in SPLITS.items()}
    if any(named.values()):
        places = {split: _one(root, found, f"list of {split}") for split, found in named.items() if found}
        return Layout(root, {split: (path, path) for split, path in places.items()}, {})
    return _of_list(_one(root, lists, "list of images and masks")) if lists else None


def _of_list(file: Path) -> Layout:
    first: dict[str, int] = {}
    for row in rows_of(file, _COLUMNS):
        first.setdefault(_split_of(file, row.number, row.split), row.number)
    if ALONE in first and len(first) > 1:
        place = f"{shown(file)}, {row_word(file)} {first[ALONE]}"
        raise DataError(f"{place}: no split, and other rows have one; write train, val or test")
    return Layout(file.parent, dict.fromkeys(first or (ALONE,), (file, file)), {})


def _split_of(file: Path, number: int, cell: str) -> str:
    if not cell:
        return ALONE
    found = next((split for split, words in SPLITS.items() if cell.lower() in words), None)
    if found is None:
        raise DataError(
            f"{shown(file)}, {row_word(file)} {number}: split {shown(cell)!r} is unknown; write train, val or test"
        )
    return found


def _listed(file: Path, split: str) -> Pairs:
    """The rows of a list that are of a split; of a list that is one as a whole, all."""
    disk, first = OnDisk(file), dict[str, int]()
    images, masks = [], []
    named_by_file = file.stem.lower() in SPLITS.get(split, ())
    for row in rows_of(file, _COLUMNS):
        if not named_by_file and _split_of(file, row.number, row.split) != split:
            continue
        place = f"{shown(file)}, {row_word(file)} {row.number}"
        image = disk.path(row.path, place)
        if first.setdefault(image, row.number) != row.number:
            raise DataError(f"{place}: {shown(image)} stands in {row_word(file)} {first[image]} already; leave one")
        images.append(image)
        masks.append(disk.path(row.mask, place) if row.mask else "")
    return Pairs(str(file), Names(images), Names(masks), str(file))


def _paired(images: Path, masks: Path) -> Pairs:
    """Images and masks of two folders, by their paths within these without suffix and ending."""
    unread: list[str] = []
    of_images, of_masks = _by_stem(images, unread), _by_stem(masks, unread)
    tell_unread(images.parent, unread)
    image_ending = _ending(_IMAGE_ENDINGS, of_images, None)
    keys = {_without(stem, image_ending): name for stem, name in of_images.items()}
    ending = _ending(_MASK_ENDINGS, of_masks, keys)
    notes = []
    others = [name for stem, name in of_masks.items() if not stem.endswith(ending)]
    of_masks = {_without(stem, ending): name for stem, name in of_masks.items() if stem.endswith(ending)}
    if ending:
        beside = f"; {len(others):,} other files there are not read" if others else ""
        notes.append(f"{shown(masks)}: masks are called like their images with {ending!r} behind{beside}")
    named = [of_masks.get(key, "") for key in keys]
    return Pairs(
        str(images),
        Names(keys.values(), f"{images}/"),
        Names(f"{masks}/{name}" if name else "" for name in named),
        str(masks),
        [name for key, name in of_masks.items() if key not in keys],
        notes,
    )


def _by_stem(folder: Path, unread: list[str]) -> dict[str, str]:
    """The images below a folder by their paths within it without suffix, in one normal form of Unicode."""
    found: dict[str, str] = {}
    for name in images_below(folder, unread):
        stem = spelled(name.rpartition(".")[0])
        if found.setdefault(stem, name) != name:
            raise DataError(
                f"{shown(folder)}: {shown(found[stem])} and {shown(name)} differ in their suffix alone, and pairs go "
                "by the rest of the name; rename one"
            )
    return found


def _ending(endings: Sequence[str], stems: Mapping[str, str], keys: Mapping[str, str] | None) -> str:
    """The ending by which the most names fit: those that have it, or with `keys` those that are one without it."""

    def fitting(ending: str) -> int:
        cut = (stem.removesuffix(ending) for stem in stems if stem.endswith(ending) and stem != ending)
        return sum(1 for stem in cut if keys is None or stem in keys)

    if keys is None:  # an ending is one where all have it
        return next((ending for ending in endings if ending and fitting(ending) == len(stems)), "")
    return max(endings, key=fitting)  # the first of several


def _without(stem: str, ending: str) -> str:
    return stem.removesuffix(ending) if ending else stem


def _splits(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are called like splits, years behind the word too, as in `train2017`."""
    found: dict[str, list[str]] = {}
    for name in content_of(folder).folders:
        for split, words in SPLITS.items():
            if re.fullmatch(rf"({'|'.join(words)})[\d_-]*", name.lower()):
                found.setdefault(split, []).append(name)
    chosen = {}
    for split, names in found.items():
        exact = [name for name in names if name.lower() == split]
        chosen[split] = _one(folder, [folder / name for name in exact or names], f"{split} files")
    return chosen


def _is_masks_of(name: str, split: str) -> bool:
    rest = name.lower().removeprefix(split.lower())
    return rest != name.lower() and _plain(rest) in _MASKS


def _holds_images(folder: Path) -> bool:
    return next(images_below(folder), None) is not None


def _one(folder: Path, found: Sequence[Path], what: str) -> Path:
    if len(found) > 1:
        names = ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in found)
        raise DataError(f"{shown(folder)}: {shown(names)} could all be the {what}; leave one, or rename the others")
    return found[0]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
