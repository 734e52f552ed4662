"""Names of models: registering a family's table in timm, listing it, building from it."""

import dataclasses
import fnmatch
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model, split_model_name_tag
from torch import Tensor, nn

from convattn.backbones.network_options import is_network_option, network_options
from convattn.backbones.timm_weights import create_timm
from convattn.model_configuration import is_configuration, read_configuration
from convattn.nearest import UnknownName, nearest
from convattn.weights.errors import CheckpointError, UnknownWeights, WeightsNote
from convattn.weights.fetch import fetch_official
from convattn.weights.find import find_weights
from convattn.weights.load import HeadRows, load_pretrained
from convattn.weights.official import shapes_by_name, to_our_names
from convattn.weights.read import read_checkpoint
from convattn.weights.records import OFFICIAL_WEIGHTS, PUBLISHED_RESULTS, OfficialWeights, PublishedResult

__all__ = [
    "DenseTask",
    "UnknownOption",
    "create_model",
    "dense_options",
    "image_size_of",
    "inferred_options",
    "is_network_option",
    "list_families",
    "list_models",
    "official_weights",
    "published_accuracy",
    "register_family",
]

_PYRAMID_LEVELS = dict(out_indices=(0, 1, 2, 3), feature_cls="getter", flatten_sequential=True)

_TIMM = "timm:"  # in front of a name: timm's
_TIMM_NAMES: dict[str, str] = {}  # our name -> the name in timm's registry
_FAMILIES: dict[str, str] = {}  # our name -> the family that names its map to the authors' files, where it has one
_DENSE: dict[str, Mapping[str, Any]] = {}  # our name -> options of its form for dense prediction, where it is another
_DETECTION: dict[str, Mapping[str, Any]] = {}  # the same for detection, where that differs
DenseTask = Literal["detection", "segmentation"]


class UnknownOption(ValueError, TypeError):
    """A keyword that a model does not have: a wrong value as elsewhere here, a `TypeError` to callers of timm."""


def list_models(filter: str = "*") -> list[str]:
    """Names of models, sorted, that match a shell-style pattern.

    Args:
        filter: such as `"smt_*"`, for this package's models; `"timm:resnet*"` for timm's own.
    """
    if not filter.startswith(_TIMM):
        return sorted(fnmatch.filter(_TIMM_NAMES, filter))
    ours = {*_TIMM_NAMES.values()}
    theirs = (f"{_TIMM}{name}" for name in timm.list_models() if name not in ours)
    return sorted(fnmatch.filter(theirs, filter))


def list_families() -> dict[str, list[str]]:
    """Family -> names of its models, for the families with a map to their authors' files."""
    return {
        family: [n for n in list_models() if _FAMILIES.get(n) == family] for family in sorted({*_FAMILIES.values()})
    }


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    features_only: bool = False,
    *,
    pretrained_path: str | Path | None = None,
    head_rows: HeadRows = None,
    classes: Sequence[str] = (),
    **overrides: Any,
) -> nn.Module:
    """Build a model by name.

    Whatever of a file is chosen, mapped, adapted, left over or left fresh is said in one warning (`WeightsNote`).

    Args:
        name: one of `list_models()`, optionally with a weight tag (`smt_large.in22k_ft_in1k_384`), `timm:NAME` for
            any model of timm, or a JSON file that names one with options (`convattn.model_configuration`).
        pretrained: load the authors' weights (downloaded once, or from the folder in `CONVATTN_WEIGHTS`). With another
            number of classes the head starts fresh; with other `in_chans` the first kernel is summed or repeated, as in
            timm.
        num_classes: classes of the head; 0 for none. The weights' own number (1000) by default.
        features_only: return a model whose forward gives the list of pyramid levels; `out_indices` selects them.
        pretrained_path: load these weights instead of downloading: the authors' file, or one in our names. Where a
            family can tell from the file that it disagrees with the variant's table (depths, say), the model is built
            as the file says, and that is said too; options given here stand.
        head_rows: which outputs of the file's classifier the model's are: numbers, a text file with one a line, or
            `"imagenet-22k"` for ImageNet's 1,000 classes out of 21,841, `"fresh"` for none. By default the same ones
            where there are as many, or fresh ones.
        classes: names of the classes; ImageNet's synsets (`n01440764`) find their outputs in a file of 21,841.
        **overrides: options of the model (`in_chans`, `drop_path_rate`, `global_pool`, and the fields of its family's
            configuration); `device` and `dtype` say where and in which type it is built.

    Raises:
        ValueError: for an unknown name, tag or option, naming the nearest; CheckpointError (a ValueError) when the
            weights cannot be had or do not fit.
    """
    kwargs = dict(overrides)
    if is_configuration(name):
        name, stored = read_configuration(name)
        for option in stored:
            if not is_network_option(option):
                raise UnknownOption(f"option {option!r} of {name} says nothing of the network; remove it from the file")
        kwargs = stored | kwargs
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    if features_only:
        kwargs["features_only"] = True
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if pretrained_path is not None:
        overlay["file"] = str(pretrained_path)
    source: dict[str, Any] = dict(pretrained=pretrained or pretrained_path is not None)
    if overlay:
        source["pretrained_cfg_overlay"] = overlay
    model: Any
    if not name.startswith("timm:"):
        model = timm.create_model(_timm_name(name), head_rows=head_rows, classes=classes, **source, **kwargs)
    elif pretrained_path is not None:
        model = create_timm(_timm_name(name), pretrained_path, head_rows=head_rows, classes=classes, **kwargs)
    elif head_rows is not None:
        raise ValueError(f"head_rows needs pretrained_path: timm itself loads the weights of {name}")
    else:
        model = timm.create_model(_timm_name(name), **source, **kwargs)
    of_file = getattr(getattr(model, "model", model), "options_of_file", {})
    model.built_as = {"name": name, "options": network_options(kwargs) | of_file}
    return model


def register_family(
    module_name: str,
    model_class: type[nn.Module],
    variants: Mapping[str, Any],
    *,
    image_sizes: Mapping[str, int] | None = None,
    reductions: Mapping[str, int] | None = None,
    dense: Mapping[str, Mapping[str, Any]] | None = None,
    detection: Mapping[str, Mapping[str, Any]] | None = None,
    timm_prefix: str = "",
    first_conv: str = "stem.conv1",
    classifier: str = "head.fc",
    feature_cfg: Mapping[str, Any] = _PYRAMID_LEVELS,
) -> None:
    """Enter every row of a family's table into timm's registry.

    Args:
        module_name: `__name__` of the family's file.
        model_class: called as `model_class(row, options)`, options of its `options_class`.
        variants: our name -> frozen dataclass with the variant's differences.
        image_sizes: the size in pixels that a variant without official weights is made for, where it is not 224.
        reductions: the stride of the map in front of the head, of a variant where it is not 32.
        dense: options with which a variant is built for detection and segmentation, where it is built otherwise: levels
            at strides 4, 8, 16 and 32, normalised where the authors' are.
        detection: the same for detection alone, of variants whose authors' detectors are built otherwise than their
            segmenters.
        timm_prefix: put in front of the name in timm's registry where timm already has one of that name.
        first_conv: the convolution on the image; adapted when `in_chans` differs from the weights'.
        classifier: the last linear layer; fresh when `num_classes` differs from the weights'.
        feature_cfg: how `features_only` reads the levels, in timm's words; by default as from a `Pyramid`.

    Raises:
        ValueError: if a name is taken, here or in timm.
    """
    module = sys.modules[module_name]
    timm_names = {name: timm_prefix + name for name in variants}
    for name, timm_name in timm_names.items():
        if name in _TIMM_NAMES or is_model(timm_name):
            raise ValueError(f"model name {timm_name!r} is registered already")
    layers: dict[str, Any] = dict(first_conv=first_conv, classifier=classifier)
    cfgs = {}
    for name, timm_name in timm_names.items():
        stride = (reductions or {}).get(name, 32)
        for weights in OFFICIAL_WEIGHTS.get(name, ()):
            cfgs[f"{timm_name}.{weights.tag}"] = _pretrained_cfg(weights) | _sizes(weights.image_size, stride) | layers
        if name not in OFFICIAL_WEIGHTS:
            size = (image_sizes or {}).get(name, 224)
            cfgs[timm_name] = dict(interpolation="bicubic") | _sizes(size, stride) | layers
    defaults = vars(module).setdefault(
        "default_cfgs", {}
    )  # where timm looks; a family may register more than one table
    defaults |= generate_default_cfgs(cfgs)
    _DENSE.update(dense or {})
    _DETECTION.update(detection or {})
    for name, config in variants.items():
        entry = _entry(name, timm_names[name], model_class, config, feature_cfg, layers)
        entry.__module__ = module_name
        setattr(module, entry.__name__, entry)
        register_model(entry)
        _TIMM_NAMES[name] = timm_names[name]
        if getattr(model_class, "family", None):
            _FAMILIES[name] = model_class.family  # type: ignore[attr-defined]


def dense_options(name: str, task: DenseTask = "segmentation") -> Mapping[str, Any]:
    """Options in which the form of `name` for dense prediction differs from what `create_model(name)` builds."""
    bare = split_model_name_tag(name)[0]
    return _DETECTION[bare] if task == "detection" and bare in _DETECTION else _DENSE.get(bare, {})


def official_weights(name: str) -> OfficialWeights:
    """The record of the authors' file for `name`, with or without a tag; the default one without.

    Raises:
        CheckpointError: if the authors released none for this model, or none with this tag.
    """
    architecture, tag = split_model_name_tag(name)
    records = {weights.tag: weights for weights in OFFICIAL_WEIGHTS.get(architecture, ())}
    if not records:
        raise CheckpointError(
            f"{architecture} has no published weights; build it with pretrained off, or from a file (pretrained_path)"
        )
    if tag and tag not in records:
        raise UnknownWeights(f"{architecture} has no weights {tag!r}; it has {', '.join(records)}")
    return records[tag or next(iter(records))]


def published_accuracy(name: str, image_size: int) -> PublishedResult | None:
    """What the authors published for `name` on ImageNet-1k at this height and width in pixels, with its source.

    With a tag, of that file; without, of the first file trained for the size, or else of a result without a file. None
    where nothing was published, and for models of timm.
    """
    architecture, tag = split_model_name_tag(name)
    for weights in OFFICIAL_WEIGHTS.get(architecture, ()):
        if weights.top1 and weights.image_size == image_size and tag in ("", weights.tag):
            return PublishedResult(weights.source, weights.top1, weights.top5, image_size)
    results = () if tag else PUBLISHED_RESULTS.get(architecture, ())
    return next((result for result in results if result.image_size == image_size), None)


def image_size_of(name: str) -> int:
    """The height and width in pixels that the weights of `name` expect; nothing is built."""
    cfg: Any = timm.get_pretrained_cfg(_timm_name(name))
    return cfg.input_size[-1]


def _timm_name(name: str) -> str:
    if name.startswith("timm:"):
        bare = name.removeprefix("timm:")
        if not is_model(split_model_name_tag(bare)[0]):
            raise UnknownName(f"unknown timm model {bare!r}; {nearest(bare, timm.list_models())}")
        return bare
    architecture, tag = split_model_name_tag(name)
    architecture = next((ours for ours, theirs in _TIMM_NAMES.items() if theirs == architecture), architecture)
    if architecture not in _TIMM_NAMES:
        hint = f"; timm has it as 'timm:{name}'" if is_model(architecture) else ""
        raise UnknownName(f"unknown model {architecture!r}; {nearest(architecture, _TIMM_NAMES)}{hint}")
    if tag:
        official_weights(f"{architecture}.{tag}")
    return _TIMM_NAMES[architecture] + (f".{tag}" if tag else "")


def _sizes(image_size: int, stride: int) -> dict[str, Any]:
    return dict(input_size=(3, image_size, image_size), pool_size=(image_size // stride,) * 2)


def _pretrained_cfg(weights: OfficialWeights) -> dict[str, Any]:
    return dict(
        url=weights.mirror or weights.url,
        num_classes=weights.num_classes,
        crop_pct=weights.crop_ratio,
        crop_mode=weights.crop_mode,
        interpolation="bicubic",
        license=weights.license,
        origin_url=weights.url,
    )


def _entry(
    name: str,
    timm_name: str,
    model_class: type[nn.Module],
    config: Any,
    feature_cfg: Mapping[str, Any],
    layers: Mapping[str, str],
) -> Callable[..., nn.Module]:
    fields = {field.name for field in dataclasses.fields(config)}
    of_timm: Any = model_class.options_class  # type: ignore[attr-defined]
    options = {field.name for field in dataclasses.fields(of_timm)}

    def entry(
        pretrained: bool = False, head_rows: HeadRows = None, classes: Sequence[str] = (), **kwargs: Any
    ) -> nn.Module:
        given = {key: _as_tuple(kwargs.pop(key)) for key in fields & kwargs.keys()}
        row = dataclasses.replace(config, **given)
        path = _weights_path(name, kwargs) if pretrained else None
        if head_rows is not None and path is None:
            raise ValueError(f"head_rows needs a file: give {name} pretrained=True or pretrained_path")

        def build(cfg: Any, device: Any = None, dtype: torch.dtype | None = None, **model_options: Any) -> nn.Module:
            for key in model_options.keys() - options:  # timm's factory has taken out what it knows
                raise UnknownOption(f"unknown option {key!r} of {name}; {nearest(key, fields | options)}")
            shared = of_timm(**model_options)

            def network(cfg: Any) -> nn.Module:
                with nullcontext() if device is None else torch.device(device):
                    return model_class(cfg, shared).to(dtype=dtype)

            model = network(cfg)
            if path is None:
                return model
            content = read_checkpoint(path)
            ours = to_our_names(find_weights(content, shapes_by_name(model), str(path)).state, model)
            found = {key: value for key, value in inferred_options(ours, model).items() if key not in given}
            if found:
                stated = ", ".join(f"{key}={value}" for key, value in found.items())
                said = f"{path}: has {stated}, unlike {name}; the model is built as the file says"
                warnings.warn(said, WeightsNote, stacklevel=2)
                try:
                    model = network(dataclasses.replace(cfg, **found))
                except ValueError as error:
                    raise CheckpointError(f"{path}: has {stated}, which {name} cannot: {error}") from None
                vars(model)["options_of_file"] = found
            pyramid = kwargs.get("features_only", False)
            load_pretrained(model, content, str(path), head_rows=head_rows, classes=classes, pyramid=pyramid, **layers)
            return model

        return build_model_with_cfg(
            build,
            timm_name,
            pretrained and path is None,
            model_cfg=row,
            feature_cfg=dict(feature_cfg),
            pretrained_filter_fn=to_our_names,
            **kwargs,
        )

    entry.__name__ = entry.__qualname__ = timm_name
    entry.__doc__ = f"{name}: {config}"
    return entry


def _as_tuple(value: Any) -> Any:
    """A list, as timm's files of configuration hold it, as the tuple that it was."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def inferred_options(ours: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """What a checkpoint under our names says of the options of `model`, where its family can tell and they differ."""
    infer = getattr(model, "infer_options", None)
    try:
        return infer(ours) if infer else {}
    except (ArithmeticError, IndexError, ValueError):  # entries of no such shape; loading says which
        return {}


def _weights_path(name: str, kwargs: Mapping[str, Any]) -> str | Path | None:
    """The file to read ourselves: safely, old formats too. None for a source that only timm knows (a hub, a dict)."""
    cfg, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay") or {}
    if overlay.get("file"):
        return overlay["file"]
    if {"url", "state_dict", "hf_hub_id", "source"} & overlay.keys() or not (cfg is None or isinstance(cfg, str)):
        return None
    return fetch_official(official_weights(f"{name}.{cfg}" if cfg else name), kwargs.get("cache_dir"))
