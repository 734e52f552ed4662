"""Loading a checkpoint into a model: strictly, or with another head or another number of image channels.

Whatever is chosen, mapped, adapted, left over or left fresh is said in one warning (`WeightsNote`).
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from convattn.shown import brief
from convattn.weights.errors import CheckpointError, WeightsNote
from convattn.weights.find import Part, find_weights
from convattn.weights.head_rows import (
    FRESH,
    IMAGENET_22K,
    are_imagenet,
    are_imagenet_in_order,
    imagenet_22k_rows,
    read_head_rows,
    select_head_rows,
)
from convattn.weights.official import (
    Conversion,
    convert_official,
    describe,
    forms_of,
    is_behind,
    name_map,
    shapes_by_name,
    stand_twice,
    to_our_names,
    unwrap_model,
)
from convattn.weights.read import read_checkpoint
from convattn.weights.rename import NameMap

__all__ = ["HeadRows", "load_official", "load_pretrained", "not_finite"]

HeadRows = Sequence[int] | str | None
"""Which outputs of a file's classifier a model's are: their numbers, a file of them, `"imagenet-22k"` or `"fresh"`."""


def load_official(
    model: nn.Module, path_or_state_dict: str | Path | Mapping, *, strict: bool = True, head_rows: HeadRows = None
) -> nn.Module:
    """Load a checkpoint in the authors' names, or in ours, into `model`, in place, and return it.

    The weights are found whatever dictionaries and prefixes stand around them; averaged ones are preferred. For a model
    without a head (`num_classes=0`, `features_only`) the file's is left aside. One `WeightsNote` says what was chosen
    or left.

    Args:
        model: any model of this package, also compiled, parallel, or in its `features_only` form.
        path_or_state_dict: the authors' file or one's own, or what was read from it.
        strict: raise unless every entry of the file and of the model met its counterpart. With False everything that
            fits is loaded, and the note lists by name and shape what did not.
        head_rows: the outputs of the file's classifier that the model's are: numbers, a text file with one a line, or
            `"imagenet-22k"` for ImageNet's 1,000 classes out of 21,841. Where the model knows its classes by ImageNet's
            synsets, this is found by itself. `"fresh"` for none.

    Raises:
        CheckpointError: if the file cannot be read safely, or (strict) something does not fit; the model is unchanged.
    """
    core, pyramid = unwrap_model(model), any(isinstance(part, FeatureGetterNet) for part in model.modules())
    if isinstance(path_or_state_dict, Mapping):
        content, source = path_or_state_dict, "state dict"
    else:
        content, source = read_checkpoint(path_or_state_dict), str(path_or_state_dict)
    conversion, notes = _convert(core, content, source, _classifiers(core), head_rows, (), pyramid)
    problems = conversion.problems(core)
    if problems and strict:
        raise CheckpointError(_misfit(source, core, conversion, "; load what fits with strict=False"))
    if problems:
        of_other = _other_form(conversion, core)
        notes += [f"not of {describe(core)}{of_other}"] if of_other else []
        notes.append(f"left out of {describe(core)}: {brief(problems, 12, '; ')}")
    core.load_state_dict(conversion.fits, strict=False)
    _say(source, notes + not_finite(core, conversion.fits))
    return model


def load_pretrained(
    model: nn.Module,
    content: Any,
    source: str,
    *,
    first_conv: str | None,
    classifier: str | Sequence[str] | None,
    head_rows: HeadRows = None,
    classes: Sequence[str] = (),
    pyramid: bool = False,
) -> None:
    """Load a checkpoint as `pretrained=True` means it: the first kernel and the classifier may differ.

    A kernel for another number of image channels is summed or repeated by timm's rule; a classifier for another number
    of classes, or one that the file lacks, stays as it was initialised. One `WeightsNote` says so.

    Args:
        content, source: what was read from the file, and what to call that.
        first_conv: name of the convolution on the image; None where that is not known.
        classifier: names of the layers that give the classes, in timm's words.
        head_rows: as in `load_official`.
        classes: names of the model's classes, where they are known.
        pyramid: the head is about to be taken off.

    Raises:
        CheckpointError: if anything else in the file or in the model lacks a counterpart.
    """
    classifiers = _as_tuple(classifier)
    conversion, notes = _convert(model, content, source, classifiers, head_rows, classes, pyramid)
    kernel, notes_of_kernel = _adapt_kernel(model, conversion, first_conv)
    notes += notes_of_kernel + _take_fresh_head(model, conversion, classifiers, pyramid, head_rows == FRESH)
    notes += _take_fresh_norms(model, conversion)
    problems = conversion.problems(model)
    if problems:
        raise CheckpointError(_misfit(source, model, conversion))
    model.load_state_dict(conversion.fits | kernel, strict=False)
    _say(source, notes + not_finite(model, conversion.fits | kernel))


def not_finite(model: nn.Module, names: Iterable[str]) -> list[str]:
    """One phrase for the entries of a model, among these, that are not finite in its type: with them no output is."""
    own = model.state_dict()
    wrong = [name for name in names if own[name].is_floating_point() and not own[name].float().isfinite().all()]
    return [f"not all numbers of {brief(wrong, 3)} are finite"] if wrong else []


def _convert(
    model: nn.Module,
    content: Any,
    source: str,
    classifiers: Sequence[str],
    head_rows: HeadRows,
    classes: Sequence[str],
    pyramid: bool,
) -> tuple[Conversion, list[str]]:
    """What of a file fits, with the outputs of its head that were asked for, and what there is to say."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise CheckpointError(f"{source}: the model is on the meta device, which holds no weights; build it on another")
    part = find_weights(content, shapes_by_name(model), source)
    head, place = _head_beside(part, model, classifiers) if head_rows != FRESH else ({}, "")
    state, notes, older = to_our_names(part.state, model) | head, part.notes, name_map(model).older
    if older and older.wrote(part.state):
        notes.append(f"of {older.name}, {older.differs}")
    notes += [f"head taken from {place}, beside it"] if head else []
    copies = stand_twice(state, model)
    if copies:
        state = {name: tensor for name, tensor in state.items() if name not in copies}
        notes.append(f"there a second time, with the same numbers: {brief(copies, 3)}")
    outputs = next((len(state[f"{name}.weight"]) for name in classifiers if f"{name}.weight" in state), 0)
    rows = None
    if head_rows == FRESH:
        state = {name: tensor for name, tensor in state.items() if not _is_of(name, classifiers)}
    elif head_rows is not None:
        try:
            rows = read_head_rows(head_rows) if isinstance(head_rows, str) else [*map(index, head_rows)]
        except TypeError as error:
            raise CheckpointError(f"head_rows {head_rows!r:.80} must be the numbers of outputs: {error}") from None
        if not pyramid and len(rows) != getattr(model, "num_classes", 0) > 0:
            raise CheckpointError(
                f"head_rows has {len(rows):,} rows for {model.num_classes:,} classes; give one a class"
            )
        _check_one_a_class(model, classifiers)
    elif outputs == IMAGENET_22K != getattr(model, "num_classes", 0):
        classes = classes or _cfg(model).get("label_names") or ()
        rows = imagenet_22k_rows(classes) if are_imagenet(classes) else None
    elif classes and outputs == len(classes) and not are_imagenet_in_order(classes):
        notes.append(f"head taken as it is, {outputs:,} outputs: the file does not name its classes")
    if rows is not None:
        try:
            state = select_head_rows(state, rows, classifiers)
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from None
        by = "" if head_rows is not None else ", by the synsets of the classes"
        notes.append(f"head takes {len(rows):,} of the file's {outputs:,} outputs{by}")
    conversion = convert_official(state, model)
    if not conversion.fits:
        found = (
            _other_form(conversion, model)
            or _part_of(content, model)
            or f": its entries are {', '.join([*part.state][:3])}, …"
        )
        raise CheckpointError(f"{source}: not a checkpoint of {describe(model)}{found}")
    if conversion.unused:
        notes.append(f"left out, because the authors' code never reads it: {', '.join(conversion.unused)}")
    aside = [name for name in conversion.unexpected if _stands_behind(name, model, classifiers, pyramid)]
    for name in aside:
        del conversion.unexpected[name]
    if aside:
        notes.append(_aside(aside))
    return conversion, notes


def _check_one_a_class(model: nn.Module, classifiers: Sequence[str]) -> None:
    """Refuse rows for a model whose outputs are not its classes: there is background, or each anchor has its own."""
    own, classes = model.state_dict(), getattr(model, "num_classes", 0)
    outputs = next((len(own[f"{name}.weight"]) for name in classifiers if f"{name}.weight" in own), classes)
    if outputs != classes:
        raise CheckpointError(
            f"head_rows is one output a class, and {describe(model)} has {outputs:,}; leave it out: with strict=False "
            "all but the layers of classes is loaded"
        )


def _other_form(conversion: Conversion, model: nn.Module) -> str:
    """Which form of the model a file is of, where the authors' names differ by form; empty if of its own or none."""
    forms = [*forms_of(model).items()]
    target = model.state_dict() if forms else {}
    for option, names in forms[1:]:
        known = sum(names.to_ours(name) in target for name in conversion.unexpected)
        if 2 * known > len(conversion.unexpected):
            return f", but of one with {option}, and this one has {forms[0][0]}; build it with {option}"
    return ""


def _part_of(content: Any, model: nn.Module) -> str:
    """Of which part of the model a file is that has nothing of the whole; empty if of none."""
    for part in name_map(model).parts:
        inner = model.get_submodule(part.ours)
        state = find_weights(content, shapes_by_name(inner)).state
        if 2 * len(convert_official(state, inner).fits) > len(inner.state_dict()):
            return f", but of its {part.ours} alone; load it there: load_official(model.{part.ours}, …)"
    return ""


def _head_beside(part: Part, model: nn.Module, classifiers: Sequence[str]) -> tuple[dict[str, Tensor], str]:
    """The head that stands beside a network without one, as mmcls and many scripts have it, taken out of `beside`.

    It is the one layer there of the shape of the model's, whatever it is called.
    """
    layer = classifiers[0] if len(classifiers) == 1 else None
    own = {name: tensor.shape for name, tensor in model.state_dict().items() if _is_of(name, (layer or "",))}
    if layer is None or not own or own.keys() & to_our_names(part.state, model).keys():
        return {}, ""
    places = [
        place
        for place in (key.removesuffix(".weight") for key in part.beside if key.endswith(".weight"))
        if all(
            (tensor := part.beside.get(place + name.removeprefix(layer))) is not None and tensor.shape == shape
            for name, shape in own.items()
        )
    ]
    if len(places) != 1:
        return {}, ""
    return {name: part.beside.pop(places[0] + name.removeprefix(layer)) for name in own}, places[0]


def _adapt_kernel(
    model: nn.Module, conversion: Conversion, first_conv: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The first kernel for the model's number of image channels, where the file's is for another."""
    name = f"{first_conv}.weight"
    kernel = conversion.mismatched.get(name)
    own = model.state_dict().get(name)
    if kernel is None or own is None or kernel.ndim != own.ndim:
        return {}, []
    channels = own.shape[1]
    if kernel.shape[1] == channels or (*kernel.shape[:1], *kernel.shape[2:]) != (*own.shape[:1], *own.shape[2:]):
        return {}, []
    try:
        adapted = adapt_input_conv(channels, kernel)
    except (AssertionError, NotImplementedError):  # timm has no rule for such numbers
        return {}, []
    if adapted.shape != own.shape:
        return {}, []
    del conversion.mismatched[name]
    return {name: adapted}, [f"{first_conv} adapted from {kernel.shape[1]} to {channels} image channels"]


def _take_fresh_head(
    model: nn.Module, conversion: Conversion, classifiers: Sequence[str], pyramid: bool, asked_for: bool
) -> list[str]:
    """Take a head that the file lacks, or has for other classes, off the list of what does not fit, and say so."""
    own = model.state_dict()
    names = [name for name in own if _is_of(name, classifiers)]
    wrong = {name: conversion.mismatched[name] for name in names if name in conversion.mismatched}
    missing = [name for name in names if name in conversion.missing]
    if pyramid:
        note = [_aside(names)] if names and len(missing) < len(names) else []
    elif names and missing == names:
        note = ["head fresh: the file's is of other classes" if asked_for else "head fresh: the file has none"]
    elif wrong and not missing and all(tensor.shape[1:] == own[name].shape[1:] for name, tensor in wrong.items()):
        theirs, ours = (len(tensors[next(iter(wrong))]) for tensors in (wrong, own))
        hint = "; head_rows='imagenet-22k' takes ImageNet's" if (theirs, ours) == (IMAGENET_22K, 1000) else ""
        note = [f"head fresh: the file has {theirs:,} classes, the model {ours:,}{hint}"]
    else:
        return []
    for name in names:
        conversion.missing.pop(name, None)
        conversion.mismatched.pop(name, None)
    return note


def _take_fresh_norms(model: nn.Module, conversion: Conversion) -> list[str]:
    """Take norms that another form of the network has not off the list of what does not fit, and say so."""
    norms: Sequence[str] = getattr(model, "may_start_fresh", ())
    wanted = [name for name in model.state_dict() if _is_of(name, norms) and not name.endswith("num_batches_tracked")]
    if not wanted or not {*wanted} <= conversion.missing.keys():
        return []
    for name in wanted:
        del conversion.missing[name]
    return [f"{', '.join(norms)} fresh: the file is of the form without them"]


def _stands_behind(name: str, model: nn.Module, classifiers: Sequence[str], pyramid: bool) -> bool:
    """Whether an entry that the model lacks belongs behind its end: a head, its norm, levels that were taken off."""
    if name_map(model).parts:
        return is_behind(name, model)  # of its backbone; its own classifier is there
    if _is_of(name, classifiers):
        return True
    if pyramid:
        return is_behind(name, model)
    return name.startswith("norm.") and not getattr(model, "num_classes", 0)


def _is_of(name: str, layers: Sequence[str]) -> bool:
    return name.startswith(tuple(f"{layer}." for layer in layers))


def _aside(names: Sequence[str]) -> str:
    return f"the model ends before {brief(names, 3)}, left aside"


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    return _as_tuple(_cfg(model).get("classifier"))


def _as_tuple(layers: str | Sequence[str] | None) -> tuple[str, ...]:
    return (layers,) if isinstance(layers, str) else tuple(layers or ())


def _cfg(model: nn.Module) -> Mapping[str, Any]:
    return getattr(model, "pretrained_cfg", None) or {}


def _misfit(source: str, model: nn.Module, conversion: Conversion, way_out: str = "") -> str:
    names = name_map(model)
    other = _other_form(conversion, model)
    if other:
        return f"{source}: not a checkpoint of {describe(model)}{other}"
    said = conversion.problems(model)
    if names.parts:
        said = _lacking_parts(conversion, names) or _other_classes(conversion, model) or said
    return f"{source}: does not fit {describe(model)}: {brief(said, 12, '; ')}{way_out}"


def _lacking_parts(conversion: Conversion, names: NameMap) -> list[str]:
    """One phrase for the parts of a model of which a file has nothing that fits, and for what it has instead."""
    parts = [part.ours for part in names.parts]
    fresh = [part for part in parts if not any(name.startswith(f"{part}.") for name in conversion.fits)]
    if not fresh:
        return []
    instead = {".".join(name.split(".")[:2]) for name in conversion.unexpected}
    has = f", which has {brief(sorted(instead), 6)}" if instead else ""
    return [f"nothing of {' and '.join(fresh)} is in the file{has}"]


def _other_classes(conversion: Conversion, model: nn.Module) -> list[str]:
    """One phrase if a file differs from a model in the number of classes alone."""
    own, classes = model.state_dict(), getattr(model, "num_classes", 0)
    wrong = dict(conversion.mismatched)
    telling = {name: wrong.pop(name) for name in conversion.mismatched if _is_of(name, _classifiers(model))}
    weight = next((name for name in telling if name.endswith(".weight")), None)
    if weight is None or not classes or conversion.missing or conversion.unexpected:
        return []
    theirs = _classes_of(len(telling[weight]), len(own[weight]), classes)
    for name, tensor in wrong.items():  # of boxes and masks, so many a class
        shape = own[name].shape
        if not shape or [*tensor.shape] != [shape[0] * theirs / classes, *shape[1:]]:
            return []
    return [f"the file has {theirs:,} classes; build the model with num_classes={theirs}"]


def _classes_of(outputs: int, own: int, classes: int) -> int:
    """How many classes so many outputs tell where a model has its `own` for its classes: background too, or several."""
    return outputs - 1 if own == classes + 1 else outputs // (own // classes)


def _say(source: str, notes: list[str]) -> None:
    if notes:
        warnings.warn(f"{source}: {'; '.join(notes)}", WeightsNote, stacklevel=3)
