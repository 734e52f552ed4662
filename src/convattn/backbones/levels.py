"""The levels of a backbone, found by their stride: what heads for dense prediction stand on."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from convattn.backbones.registry import DenseTask, create_model, dense_options
from convattn.walk import copied, probe
from convattn.weights.official import unwrap_model

__all__ = [
    "STRIDES",
    "FormNote",
    "Level",
    "dense_backbone",
    "described_levels",
    "find_levels",
    "fixed_size",
    "level_maps",
    "modules_in_front",
    "size_multiple",
]

STRIDES = (4, 8, 16, 32)
_ANY_SIZE = "dynamic_img_size"  # timm's option of networks that are made for images of one size


class FormNote(UserWarning):
    """A model is built in another form than its bare name says."""


@dataclass(frozen=True)
class Level:
    """One level of a pyramid."""

    index: int  # in the backbone's own count
    channels: int
    stride: int  # pixels of the image, at each side, to one of the map; odd sizes round as the backbone does
    module: str = ""  # dotted name inside the backbone of what gives it; empty if that is not told


def dense_backbone(
    backbone: str | nn.Module, strides: Sequence[int] = STRIDES, *, task: DenseTask = "segmentation", **options: Any
) -> tuple[nn.Module, tuple[Level, ...]]:
    """A backbone for heads on its levels, without what lies behind them, and those levels.

    Its `built_as`, where it was built by name, states the options of this form in full.

    A named one is built in its family's form for the task (`register_family`'s `dense`), one of timm for images of any
    size where it offers that; where this is another form than the bare name's, a `FormNote` says so. Options
    that are given stand.

    Args:
        backbone: a name, as `create_model` takes it; or a model with timm's `feature_info`, of which a copy is taken.
        strides: of the levels that are wanted.
        task: what the heads are for.
        **options: of `create_model`; with a name only.

    Raises:
        ValueError: if there is no such model or option, or a level is lacking.
    """
    if isinstance(backbone, nn.Module):
        if options:
            raise ValueError(f"options {', '.join(options)} are of a backbone given by name, and this one is built")
        if getattr(backbone, "task_kind", None) is not None:
            raise ValueError(f"{type(backbone).__name__} has the heads of a task already; give its backbone alone")
        model, added = copied(backbone), {}
    else:
        added = _dense_form(backbone, options, task)
        model = _build(backbone, strides, {**added, **options})
    try:
        levels = find_levels(model, strides)
    except ValueError as error:
        raise ValueError(f"{error}{_way_out(model, task)}") from None
    if added:
        warnings.warn(
            f"{backbone} is built with {_stated(added)}, its form for dense prediction; give options to change it",
            FormNote,
            stacklevel=3,
        )
    for module in model.modules():
        if isinstance(module, PatchEmbed) and not module.strict_img_size:
            module.dynamic_img_pad = True  # rather than refuse sides that patches do not divide
    prune: Any = getattr(model, "prune_intermediate_layers", None)
    if prune is not None and hasattr(model, "forward_intermediates"):
        prune([level.index for level in levels], prune_norm=True, prune_head=True)
    _state_form(model)
    return model, levels


def find_levels(backbone: nn.Module, strides: Sequence[int] = STRIDES) -> tuple[Level, ...]:
    """One level for each stride; of several with a stride the last.

    Raises:
        ValueError: if there is none of a stride, naming those there are.
    """
    name = (getattr(backbone, "built_as", None) or {}).get("name") or type(backbone).__name__
    rows = described_levels(backbone)
    if not rows:
        raise ValueError(f"{name} has no feature_info, which says what levels it has")
    last = {row["reduction"]: at for at, row in enumerate(rows)}
    if any(stride not in last for stride in strides):
        there = ", ".join(map(str, last))
        raise ValueError(f"{name} has levels of stride {there}; {', '.join(map(str, strides))} are needed")
    chosen = [last[stride] for stride in strides]
    return tuple(Level(at, rows[at]["num_chs"], rows[at]["reduction"], rows[at]["module"]) for at in chosen)


def described_levels(model: nn.Module) -> list[dict[str, Any]]:
    """The rows of a model's `feature_info`; none where it has none.

    `module` is what gives the level, by its name in this form of the model: `features_only` wraps it, or renames its
    parts. It is empty where that is not told.
    """
    info: Any = getattr(model, "feature_info", None) or ()
    modules, rows = {name for name, _ in model.named_modules()}, []
    for row in info.get_dicts() if hasattr(info, "get_dicts") else info:
        told = row.get("module", "")
        forms = (told, told.replace(".", "_"), f"model.{told}", f"body.{told}")
        rows.append({**row, "module": next((form for form in forms if form and form in modules), "")})
    return rows


def level_maps(backbone: nn.Module, images: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """The maps (B, C, H', W') of these levels, for images (B, 3, H, W)."""
    indices = sorted(level.index for level in levels)
    if hasattr(backbone, "forward_intermediates"):
        maps: list[Tensor] = backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=indices, intermediates_only=True, stop_early=True, output_fmt="NCHW"
        )
        return [maps[indices.index(level.index)] for level in levels]
    given = backbone(images)
    maps = [*given.values()] if isinstance(given, Mapping) else given  # timm's wrapper has a form that names them
    if str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        maps = [each.permute(0, 3, 1, 2) for each in maps]
    return [maps[level.index] for level in levels]


def fixed_size(backbone: nn.Module, levels: Sequence[Level]) -> tuple[int, int] | None:
    """Height and width of the only images that a backbone takes; None if it takes others too."""
    cfg: Any = getattr(backbone, "pretrained_cfg", None) or {}
    if not cfg.get("fixed_input_size"):
        return None
    given = (getattr(backbone, "built_as", None) or {}).get("options", {}).get("img_size")
    height, width = cfg["input_size"][1:] if given is None else (given, given) if isinstance(given, int) else given
    return None if _takes(backbone, levels, (height + 32, width + 64)) else (height, width)


def size_multiple(backbone: nn.Module, levels: Sequence[Level]) -> int:
    """What the sides of images are multiples of that a backbone takes: 1, or its coarsest stride if it refuses others.

    Some of timm's put maps together that agree in size only then. Families of ours take any size.
    """
    coarsest = max(level.stride for level in levels)
    if hasattr(backbone, "min_input_size") or not getattr(backbone, "pretrained_cfg", None):
        return 1
    return 1 if _takes(backbone, levels, (7 * coarsest - 21, 10 * coarsest - 19)) else coarsest


def _takes(backbone: nn.Module, levels: Sequence[Level], size: tuple[int, int]) -> bool:
    """Whether a backbone runs on images of this height and width; nothing is computed."""
    cfg: Any = backbone.pretrained_cfg
    dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
    images = torch.empty(1, cfg["input_size"][0], *size, device="meta", dtype=dtype)
    try:
        with torch.no_grad():
            level_maps(probe(backbone), images, levels)
    except (RuntimeError, ValueError, AssertionError):  # as networks refuse a size
        return False
    return True


def modules_in_front(backbone: nn.Module, level: Level) -> list[str]:
    """What gives the finer levels: dotted names inside the backbone, as far as they are told."""
    finer = (row["module"] for row in described_levels(backbone) if row["reduction"] < level.stride)
    return [name for name in finer if name]


def _dense_form(name: str, options: Mapping[str, Any], task: DenseTask) -> dict[str, Any]:
    """What the form for dense prediction of a name adds to options that are given."""
    for option in options:
        if option in _of_classifier(name):
            raise ValueError(f"option {option} is of a classifier, which {name} has not here; leave it out")
    dense = _size_options(_class_of(name, options)) if name.startswith("timm:") else dense_options(name, task)
    return {option: value for option, value in dense.items() if option not in options}


def _build(name: str, strides: Sequence[int], options: Mapping[str, Any]) -> Any:
    """The model of this name without classes; where it gives no levels, timm's wrapper of it that does."""
    model = create_model(name, num_classes=0, **options)
    if hasattr(model, "forward_intermediates") or "features_only" in options:
        return model
    indices = [level.index for level in find_levels(model, strides)]
    return create_model(name, num_classes=0, features_only=True, out_indices=indices, **options)


def _state_form(model: nn.Module) -> None:
    """Let `built_as` say all that decides the form, since a bare name stands for another form here than elsewhere."""
    built_as: Any = vars(model).get("built_as")
    if built_as is None:
        return
    name, inner = built_as["name"], unwrap_model(model)
    options = {key: value for key, value in built_as["options"].items() if key not in _of_classifier(name)}
    row: Any = getattr(inner, "cfg", inner)
    fields = [*dense_options(name), *_size_options(type(inner))]
    options = {**{field: getattr(row, field) for field in fields if hasattr(row, field)}, **options}
    vars(model)["built_as"] = {**built_as, "options": options}


def _of_classifier(name: str) -> tuple[str, ...]:
    return ("num_classes", "global_pool", *(() if name.startswith("timm:") else ("drop_rate",)))


def _size_options(network: type) -> dict[str, Any]:
    """timm's option for images of any size, of a class of networks that has it."""
    return {_ANY_SIZE: True} if _ANY_SIZE in inspect.signature(network).parameters else {}


def _class_of(name: str, options: Mapping[str, Any]) -> type:
    """The class of timm's network of that name."""
    try:
        with torch.device("meta"):
            return type(create_model(name, **{**options, "pretrained": False, "pretrained_path": None}))
    except (RuntimeError, NotImplementedError):  # it reads its own numbers while it is built
        return nn.Module


def _way_out(model: nn.Module, task: DenseTask) -> str:
    """With which options the lacking levels would be there, where that is known."""
    built_as: Any = getattr(model, "built_as", None) or {"name": "", "options": {}}
    cfg = getattr(unwrap_model(model), "cfg", None)
    form = dense_options(built_as["name"], task)
    unlike = {key: value for key, value in form.items() if getattr(cfg, key, value) != value}
    if unlike:
        return f"; with {_stated(unlike)} they are there"
    return "; leave out output_stride" if "output_stride" in built_as["options"] else ""


def _stated(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{option}={value!r}" for option, value in options.items())
