"""A data set by its name on the command line: `digits`, or where its files are; the layout is recognised."""

from collections.abc import Sequence
from pathlib import Path

from convattn.data.dataset import DataError, tell
from convattn.data.digits import open_digits
from convattn.data.file_names import WHAT_COUNTS, is_image_name, is_service_path, is_unread_name, tell_unread
from convattn.data.files import Files, LabelledFiles, PlainFiles, listing
from convattn.data.flat import open_by_label_file, open_by_synset
from convattn.data.folder import Content, content_of, images_below, list_folder, open_class_folders
from convattn.data.held_out import hold_out, share_of
from convattn.data.labelled import ImageDataset
from convattn.data.lists import LIST_SUFFIXES, is_list_name, open_list, paths_in_list
from convattn.data.names import Names
from convattn.data.shards import are_shards, open_shards
from convattn.data.split_words import SPLIT_WORDS, SPLITS
from convattn.data.splits import Place, find_split, holds_classes, split_words
from convattn.data.tar_cache import Member
from convattn.data.tars import TarFiles, last_of_each, open_class_tars, scan_tars
from convattn.extras import require
from convattn.sizes import Size

__all__ = ["has_splits", "is_stream", "open_data", "open_evaluation", "open_test", "open_training", "open_unlabelled"]

_LAYOUT = "expected DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE (or DIR/test/…), or another layout of the data page"
_OTHERWISE = {"val": "test", "test": "val"}  # what serves where a split is missing


def open_training(
    source: str | Path,
    image_size: Size = 32,
    *,
    validation: str | Path | None = None,
    validation_labels: str | Path | None = None,
    seed: int = 0,
) -> tuple[ImageDataset | None, ImageDataset]:
    """The images of a training run: those to train on, None for a pipe, and those to validate on.

    Args:
        source, image_size, validation, validation_labels: as `open_data` takes them. `validation` may be a share
            instead, such as 0.2: so much is held out of the training images (`hold_out`), or of class folders alone.
        seed: of what is held out.

    Raises:
        DataError: if a run could not be trained on them.
    """
    train: ImageDataset | None = None
    held_out: ImageDataset
    share = share_of(validation)
    if share is not None:
        if validation_labels is not None:
            raise DataError(
                f"{validation_labels}: images that are held out have their labels; leave the label file out"
            )
        train, held_out = hold_out(_whole(source), share, seed)
    elif not is_stream(source):
        train = open_data(source, "train", image_size)
        held_out = open_data(
            source,
            "val",
            image_size,
            validation=validation,
            validation_labels=validation_labels,
            classes=train.classes,
        )
    elif validation is None:
        raise DataError(f"{source}: a pipe holds the training images alone; name others with data.validation")
    else:
        held_out = open_evaluation(validation, image_size, labels=validation_labels)
    classes = held_out.classes if train is None else train.classes
    if len(classes) < 2:
        raise DataError(f"{source}: only one class, {classes[0]!r}; there is nothing to tell apart")
    return train, held_out


def open_data(
    source: str | Path,
    split: str,
    image_size: Size = 32,
    *,
    validation: str | Path | None = None,
    validation_labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """One split of a data set, in whatever layout of the data page it lies. Labels follow the classes of training.

    Args:
        source: "digits" for scikit-learn's handwritten digits, a folder with the splits, or shards such as
            `train-{0000..0146}.tar`, which hold the training split alone.
        split: "train", "val" (where there is none, `test` serves, which is said) or "test" (and the other way round).
        image_size: of the digits, in pixels; other images keep their size until they are transformed.
        validation: where the other splits are, if not in `source`: as `open_evaluation` takes it.
        validation_labels: label file of these, if their folder has none of its own (`open_by_label_file`).
        classes: those of the training split, if they are known already; saves a look at it.

    Raises:
        DataError: if it is missing, empty or laid out in another way, or a class is present only in validation.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if str(source) == "digits" and (split == "train" or validation is None):
        return open_digits(split, image_size)
    if split == "train":
        return _open(_split_of(source, split))
    if classes is None:
        classes = _training_classes(source, image_size)
    if validation is not None:
        return open_evaluation(validation, image_size, labels=validation_labels, classes=classes)
    return _open(_split_of(source, split), validation_labels, classes)


def open_test(source: str | Path, classes: Sequence[str]) -> ImageDataset | None:
    """The split `test` of a folder under the classes of training; None if there is none."""
    place = None if str(source) == "digits" else _place(source)
    found = find_split(place.path, "test") if place is not None and place.is_folder else None
    return None if found is None else _open(found, classes=classes)


def _whole(source: str | Path) -> LabelledFiles:
    """What images are to be held out of: the split `train`, or a source that is no more than class folders."""
    if is_stream(source) or str(source) == "digits":
        raise DataError(f"{source}: has validation images of its own, or cannot be cut; leave data.validation out")
    place = _place(source)
    if not place.is_folder:
        return _open(place)
    train, others = find_split(place.path, "train"), find_split(place.path, "val")
    if train is not None and others is not None:
        tell(f"{others}: not read; data.validation holds images out of {train} instead")
    return _open(train or place)


def has_splits(source: str | Path) -> bool:
    """Whether a source is a folder with splits in it, and not one split alone."""
    if str(source) == "digits" or is_stream(source):
        return True
    place = _place(source)
    if not place.is_folder or holds_classes(place.path):
        return False
    content = content_of(place.path)
    return not (content.folders or content.images or content.others) or any(
        find_split(place.path, split) is not None for split in SPLITS
    )


def open_evaluation(
    source: str | Path,
    image_size: Size = 32,
    *,
    labels: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """Images to evaluate on: the split `val` or `test` of a folder, or what is there itself, in any layout.

    Args:
        source: "digits" (their test split), a folder, an archive, shards or a list.
        image_size: of the digits, in pixels.
        labels: label file of images without class folders. ImageNet's synset at the beginning of their names does too.
        classes: the classes and their order; by default those that are found.

    Raises:
        DataError: if it is missing, empty or laid out in another way.
    """
    if str(source) == "digits":
        return open_digits("test", image_size)
    place = _place(source)
    if place.is_folder and not holds_classes(place.path):
        inner = find_split(place.path, "val") or find_split(place.path, "test")
        if inner is None and find_split(place.path, "train") is not None:
            raise DataError(f"{place}: has train but neither val nor test; {_LAYOUT}")
        place = inner or place
    return _open(place, labels, classes)


def open_unlabelled(source: str | Path) -> LabelledFiles:
    """Every image of a folder however deep, of archives (those below a folder without images too), or of a list.

    Labels are -1, and there are no classes. DataError if there is no image.
    """
    place = _place(source, "give a folder of images, a .tar file, or a list of files")
    files: Files
    if place.is_list:
        files = PlainFiles(paths_in_list(place.path))
    elif not place.is_folder:
        files = _images_in(_archives(place), place)
    else:
        unread: list[str] = []
        names = Names(images_below(place.path, unread), f"{place}/")
        tell_unread(source, unread)
        found = [] if names else place.path.rglob("*.tar")
        tars = sorted(tar for tar in found if not is_service_path(str(tar.relative_to(place.path))))
        files = _images_in(tars, source) if tars else PlainFiles(names)
    if not files.paths:
        raise DataError(f"{source}: no image; {WHAT_COUNTS}, and those in .tar files")
    return LabelledFiles(files, [-1] * len(files.paths), ())


def is_stream(source: str | Path) -> bool:
    """Whether a source can only be read from its beginning, by a `StreamLoader`."""
    return str(source).startswith("pipe:")


def _open(place: Place, labels: str | Path | None = None, classes: Sequence[str] | None = None) -> LabelledFiles:
    labels = labels or place.labels
    if not place.is_folder:
        if place.is_list:
            return open_list(place.path, classes)
        return _open_archives(_archives(place), place, labels, classes)
    if labels is not None:
        return _open_with_labels(place.path, Path(labels), classes)
    content = content_of(place.path)
    lists = [name for name in content.others if is_list_name(name)]
    if content.folders:
        if lists:
            tell(f"{place}: class folders state the labels; {lists[0]} beside them is not read")
        return open_class_folders(place.path, classes)
    tars = [place.path / name for name in content.others if name.lower().endswith(".tar")]
    if tars:
        return _open_archives(tars, place, labels, classes)
    if not content.images:
        raise DataError(f"{place}: no class folders; {_LAYOUT}, found {list_folder(place.path)}")
    return _open_flat(place.path, content, classes)


def _open_flat(folder: Path, content: Content, classes: Sequence[str] | None) -> LabelledFiles:
    """A folder of images alone: a list among them states their labels, or their names do."""
    lists = [folder / name for name in content.others if is_list_name(name)]
    if len(lists) > 1:
        raise DataError(f"{folder}: {lists[0].name} and {lists[1].name} could both state the labels; leave one")
    if lists:
        tell(f"{lists[0]}: states the labels of the images beside it")
        return _open_with_labels(folder, lists[0], classes)
    tell_unread(folder, content.unread)
    return open_by_synset(PlainFiles(Names(content.images, f"{folder}/")), folder, classes)


def _open_with_labels(folder: Path, labels: Path, classes: Sequence[str] | None) -> LabelledFiles:
    unread: list[str] = []
    inside = sorted(images_below(folder, unread), key=lambda name: name.rpartition("/")[2])
    tell_unread(folder, unread)
    return open_by_label_file(PlainFiles(Names(inside, f"{folder}/")), inside, labels, classes, folder)


def _open_archives(
    tars: Sequence[Path], place: Place, labels: str | Path | None, classes: Sequence[str] | None
) -> LabelledFiles:
    where = place if place.tars or len(tars) == 1 else place.path
    members = _readable(scan_tars(tars), where)
    if labels is None and are_shards(member.name for member in members):
        return open_shards(tars, members, where, classes)
    images = last_of_each([member for member in members if is_image_name(member.name)], where)
    if labels is None:
        return open_class_tars(tars, images, where, classes)
    ordered = sorted(images, key=lambda member: member.name.rpartition("/")[2])
    inside = [member.name for member in ordered]
    return open_by_label_file(TarFiles(tars, ordered), inside, Path(labels), classes)


def _images_in(tars: Sequence[Path], where: object) -> TarFiles:
    members = _readable(scan_tars(tars), where)
    images: Sequence[Member] = [member for member in members if is_image_name(member.name)]
    if not are_shards(member.name for member in members):  # whose samples may share a name
        images = last_of_each(images, where)
    return TarFiles(tars, images)


def _readable(members: Sequence[Member], where: object) -> list[Member]:
    unread = {at for at, member in enumerate(members) if is_unread_name(member.name)}
    tell_unread(where, [members[at].name for at in unread])
    return [member for at, member in enumerate(members) if at not in unread]


def _training_classes(source: str | Path, image_size: Size) -> Sequence[str]:
    if str(source) != "digits":
        place = _split_of(source, "train")
        if place.is_folder and place.labels is None and (folders := content_of(place.path).folders):
            return folders
    return open_data(source, "train", image_size).classes


def _split_of(source: str | Path, split: str) -> Place:
    place = _place(source)
    if not place.is_folder:
        if split == "train":
            return place
        raise DataError(f"{source}: holds the training split alone; name the other with data.validation")
    found = find_split(place.path, split)
    if found is None and split in _OTHERWISE:
        found = find_split(place.path, _OTHERWISE[split])
        if found is not None and split == "val":
            tell(
                f"{place}: no {split_words('val')}; {found.path.name} serves, so the best epoch is chosen by the test "
                f"images: hold some training images out to report a fair figure{_beside(place.path)}"
            )
    if found is None:
        wanted = f"{split} or {_OTHERWISE[split]}" if split in _OTHERWISE else split
        can_be_cut = find_split(place.path, "train") is not None or content_of(place.path).folders
        otherwise = "; or hold some of the images out: --data.validation 0.2" if can_be_cut else ""
        raise DataError(f"{place}: no folder {wanted}; {_LAYOUT}, found {list_folder(place.path)}{otherwise}")
    return found


def _beside(folder: Path) -> str:
    """What else lies in a folder with splits that could hold validation images under another name."""
    others = [name for name in content_of(folder).folders if name.lower() not in SPLIT_WORDS]
    return f"; not read: {listing(f'{name}/' for name in others)}" if others else ""


def _place(source: str | Path, expected: str = _LAYOUT) -> Place:
    text = str(source)
    if is_stream(source):
        raise DataError(f"{text}: a pipe can be trained from, not validated on or looked through; name files")
    if not text:  # as from a variable of the shell that is not set: not the working directory
        raise DataError(f"the name of a data set is empty; {expected}")
    path = Path(text)
    if not path.exists() and "{" in text:
        tars = tuple(Path(name) for name in require("braceexpand", "train").braceexpand(text))
        return Place(tars[0], tars)
    if not path.exists():
        raise DataError(f"{text}: no such folder; {expected}")
    return Place(path)


def _archives(place: Place) -> Sequence[Path]:
    tars = place.tars or (place.path,)
    for tar in tars:
        if not tar.is_file():
            raise DataError(f"{tar}: no such file")
        if tar.suffix.lower() != ".tar":
            raise DataError(f"{tar}: neither a .tar file nor a list ({', '.join(LIST_SUFFIXES)})")
    return tars
