"""Images with masks by the place that a person names: the layout, the classes and the splits are recognised."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from convattn.data.colours import Colour
from convattn.data.dataset import DataError, DataWarning
from convattn.data.folder import list_folder
from convattn.data.held_out import cut_in_two, share_of
from convattn.data.images import ImageError
from convattn.data.splits import split_to_validate, split_words
from convattn.segmentation.classes import CLASS_FILES, ClassTable, find_class_file, read_classes
from convattn.segmentation.dataset import MaskedImages
from convattn.segmentation.masks import MaskCode, MaskError, MissingMask
from convattn.segmentation.meaning import mask_code, table_of_numbers
from convattn.segmentation.options import IGNORED, LabelOptions
from convattn.segmentation.pairs import ALONE, Layout, Pairs, find_layout
from convattn.segmentation.scanning import numbers_used
from convattn.shown import shown

__all__ = ["class_table", "layout_of", "open_evaluation", "open_training", "recognises"]

_LAYOUT = (
    "expected DIR/images/train/X.jpg and DIR/masks/train/X.png (and val), or another layout of images and masks of the "
    "segmentation page"
)
_LOOKED_AT = 8  # masks that are read beforehand
_MISSING = 0.01  # share of the images above which those without a mask stop a run, as unreadable ones do


def recognises(source: str | Path) -> bool:
    """Whether images with masks lie there, by names of folders and files (of a list, of its columns)."""
    try:
        return find_layout(source) is not None
    except DataError:  # of images and masks, of which it is not clear which are meant
        return True


def layout_of(source: str | Path) -> Layout:
    """Where the images and masks are; DataError if nothing there looks like both."""
    path = Path(source)
    if not str(source):  # as from a variable of the shell that is not set: not the working directory
        raise DataError(f"the name of a data set is empty; {_LAYOUT}")
    if not path.exists():
        raise DataError(f"{shown(source)}: no such folder; {_LAYOUT}")
    found = find_layout(path)
    if found is None:
        there = f", found {shown(list_folder(path))}" if path.is_dir() else ""
        raise DataError(f"{shown(source)}: no images beside masks; {_LAYOUT}{there}")
    return found


def open_training(
    source: str | Path, labels: LabelOptions, *, validation: str | Path | None = None, seed: int = 0
) -> tuple[MaskedImages, MaskedImages]:
    """The images of a run: those to train on, and those to validate on, under the same classes.

    Args:
        source: a folder or list with images and masks.
        labels: what masks mean.
        validation: where the validation images are, if not in `source`; or the share of the training images that is
            held out, as 0.2. Files of the same content go the same way.
        seed: of what is held out.

    Raises:
        DataError: if a run could not be trained on them, in one line.
    """
    layout, share = layout_of(source), share_of(validation)
    train = layout.pairs(_training_split(layout, source))
    if share is not None:
        if "val" in layout:
            _tell(
                f"{shown(layout.places['val'][0])}: not read; data.validation holds images out of {shown(train.where)}"
            )
        code = _code(class_table(layout, labels, [train]), labels)
        return cut_in_two(_checked(train, code), share, seed)
    if validation is not None:
        code = _code(class_table(layout, labels, [train]), labels)
        return _checked(train, code), open_evaluation(validation, labels, classes=code.classes, colours=code.colours)
    held_out = layout.pairs(_validation_split(layout, source))
    code = _code(class_table(layout, labels, [train, held_out]), labels)
    return _checked(train, code), _checked(held_out, code)


def open_evaluation(
    source: str | Path,
    labels: LabelOptions,
    *,
    classes: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
) -> MaskedImages:
    """Images to evaluate on: the split `val` or `test`, or what is there without splits.

    Args:
        source: a folder or list with images and masks.
        labels: what masks mean.
        classes: those of a model and their order; the data's are matched by name. What no file names stands for the
            class in its place. By default the data's own.
        colours: of `classes`, in which they are shown, and of RGB masks where no file beside the data names others.

    Raises:
        DataError: if there is none, or a class is none of `classes`.
    """
    layout = layout_of(source)
    split = next((split for split in ("val", "test", ALONE) if split in layout), None)
    if split is None:
        raise DataError(f"{shown(source)}: has train alone, neither val nor test with masks; {_LAYOUT}")
    pairs = layout.pairs(split)
    table = class_table(layout, labels, [pairs] if classes is None else [])
    return _checked(pairs, mask_code(table, labels, classes=classes, colours=colours))


def class_table(layout: Layout, labels: LabelOptions, pairs: Sequence[Pairs]) -> ClassTable | None:
    """The classes of a data set by the file that is named or lies beside it, which is told; by its masks without one.

    Args:
        layout: of the data.
        labels: may name the file.
        pairs: whose masks are read where no file names the classes; None is the answer without any.

    Raises:
        DataError: if the file or a mask cannot be understood.
    """
    if labels.classes is not None:
        return read_classes(Path(labels.classes))
    file = find_class_file(layout.root)
    if file is not None:
        table = read_classes(file)
        others = [name for name in CLASS_FILES if (layout.root / name).is_file() and name != file.name]
        beside = f"; {', '.join(others)} beside it not read" if others else ""
        _tell(f"{shown(file)}: names the {len(table.names)} classes{beside}")
        return table
    if not pairs:
        return None
    masks = [mask for each in pairs for mask in each.masks if mask]
    return table_of_numbers(numbers_used(masks, layout.root), labels, layout.root)


def _code(table: ClassTable | None, labels: LabelOptions) -> MaskCode:
    assert table is not None  # pairs were given
    return mask_code(table, labels)


def _training_split(layout: Layout, source: str | Path) -> str:
    for split in ("train", ALONE):
        if split in layout:
            return split
    raise DataError(f"{shown(source)}: {_without(layout, 'train')}")


def _validation_split(layout: Layout, source: str | Path) -> str:
    if "val" not in layout and "val" in layout.unmasked:
        raise DataError(f"{shown(source)}: {_without(layout, 'val')}")
    return split_to_validate(layout.places, source)


def _without(layout: Layout, split: str) -> str:
    if split in layout.unmasked:
        return f"the {split} images have no masks; expected them in {shown(layout.unmasked[split])}"
    return f"no {split_words(split)}; {_LAYOUT}"


def _checked(pairs: Pairs, code: MaskCode) -> MaskedImages:
    """A data set in which not too many masks lack or mean nothing, as far as a look at some tells.

    Single ones are set aside by name when they are met; what is wrong with most of them is told before a run.
    """
    pairs.tell()
    data, lacking = MaskedImages(pairs, code), pairs.lacking
    if len(lacking) > _MISSING * len(data):
        named = ", ".join(Path(pairs.images[at]).name for at in lacking[:3])
        raise DataError(
            f"{shown(pairs.where)}: {len(lacking):,} of {len(data):,} images have no mask in {shown(pairs.masks_at)}, "
            f"more than {_MISSING:.0%}, such as {shown(named)}; add these or move the images elsewhere"
        )
    problems = []
    looked_at = sorted({at * len(data) // _LOOKED_AT for at in range(_LOOKED_AT)})
    for at in looked_at:
        try:
            data.target(at)
        except MissingMask:
            continue
        except MaskError as error:
            problems.append(str(error))
        except ImageError:  # told when it is read
            continue
    if len(problems) > len(looked_at) / 2:
        raise DataError(problems[0])
    _check_counting(data)
    return data


def _check_counting(data: MaskedImages) -> None:
    """Refuse masks of which no pixel counts; what cannot be read is told when it is."""
    read = False
    for at in range(len(data)):
        with suppress(ImageError):
            if (data.target(at) != IGNORED).any():
                return
            read = True
    if read:
        raise DataError(
            f"{shown(data.pairs.masks_at)}: no pixel of any mask counts, as labels.ignore_index is "
            f"{data.code.options.ignore_index}; there is nothing to learn or to judge by"
        )


def _tell(line: str) -> None:
    warnings.warn(line, DataWarning, stacklevel=2)
