"""Attach, replace, detach: each gives a new model whose `surgery` says what was put where."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from convattn.mixers.registry import check_mixer
from convattn.sizes import Size
from convattn.surgery.attachment import Init, attach_at, detach_from
from convattn.surgery.attentions import project_tokens
from convattn.surgery.places import Place, Where, find_places
from convattn.surgery.replacement import Match, Replacement, find_convolutions, replace_at
from convattn.walk import copied, put

__all__ = ["attach", "detach", "replace", "replay"]


def attach(
    model: nn.Module,
    mixer: str,
    where: Where = "stages",
    init: Init = "identity",
    *,
    input_size: Size | None = None,
    **options: Any,
) -> nn.Module:
    """A copy of `model` with a block behind each of its stages, blocks, or modules of your choice.

    Every weight keeps its name: an ordinary checkpoint loads with `strict=False` and reports exactly the new blocks'
    keys (`….attached.…`) as missing. Whoever reads the place, a feature extractor or a detection neck, sees the new
    map.

    Gates (`das`, `se`, `cbam`, …) weight the map; other mixers (`sam`, `cot`, …) stand beside a shortcut. Queries, keys
    and values pass through the mixer, whatever its kind.

    Args:
        model: any model of images; it is left as it is.
        mixer: one of `convattn.mixers.registry.list_mixers()`.
        where: "stages" (the pyramid's levels: by the model's own description, else by its changes of size), "blocks"
            (its repeated units), "qkv" (the projections inside the attentions of timm's PVTv2 and Swin), names of
            modules, or a choice `(name, module) -> bool`.
        init: "identity": outputs equal `model`'s at the start, for pretrained weights; "paper": as its authors start.
        input_size: to trace `model` with, where it does not say what it takes: a side, (height, width) or (channels,
            height, width).
        **options: of the mixer.

    Returns:
        The new model; `.surgery` is the table of what was inserted, one JSON-able entry a place.

    Raises:
        ValueError: for an unknown mixer, place or option (naming the nearest), a place that is taken or gives no map, a
            width that the mixer cannot take, or a model without stages. TypeError: if `model` is no module, or a
            compiled one.
    """
    _check_model(model)
    check_mixer(mixer, options)
    if init not in ("identity", "paper"):
        raise ValueError(f"init {init!r} is unknown; choose identity or paper")
    places = find_places(model, where, input_size)
    changed = copied(model)
    return _record(changed, [attach_at(changed, place, mixer, init, dict(options)) for place in places])


def replace(model: nn.Module, mixer: str, match: Match = "conv3x3", **options: Any) -> nn.Module:
    """A copy of `model` with a block in the place of each convolution that `match` means.

    A stride is kept by an average pool in front of the block, another width by a 1×1 convolution. One that stands under
    several names is replaced by one block under all of them. All other weights keep their names. An ordinary
    checkpoint loads with `strict=False`: what it has for a replaced convolution goes to the one set aside for
    `detach`.

    Args:
        model: any model; it is left as it is.
        mixer: one of `convattn.mixers.registry.list_mixers()`.
        match: "conv3x3" (3×3, as many channels out as in, not depthwise) or a choice `(name, convolution) -> bool`.
        **options: of the mixer.

    Returns:
        The new model; `.surgery` is the table of what was replaced, one JSON-able entry a convolution.

    Raises:
        ValueError: for an unknown mixer or option, a width that the mixer cannot take, a convolution with a hook or a
            computed weight, which would be lost with it, or if nothing matches. TypeError: if `model` is no module, or
            a compiled one.
    """
    _check_model(model)
    check_mixer(mixer, options)
    names = find_convolutions(model, match)
    changed = copied(model)
    return _record(changed, [replace_at(changed, name, mixer, dict(options)) for name in names])


def detach(model: nn.Module) -> nn.Module:
    """A copy of `model` without anything that `attach` and `replace` put in: the model as it was, bit for bit.

    Its other weights are those of `model` now; a replaced convolution comes back as it was when it was replaced.

    Raises:
        ValueError: if nothing was attached or replaced, or a replaced convolution is not known any more because the
            model comes from a file. TypeError: if `model` is no module, or a compiled one.
    """
    _check_model(model)
    restored = copied(model)
    found = [detach_from(module) for module in restored.modules()]
    replaced = {name: module for name, module in restored.named_modules() if isinstance(module, Replacement)}
    for module in restored.modules():
        project_tokens(module)
    if not any(found) and not replaced:
        raise ValueError(f"nothing is attached to this {type(model).__name__}, so there is nothing to detach")
    for name, replacement in replaced.items():
        if not replacement.set_aside:
            raise ValueError(
                f"{name} was replaced and its convolution is not in the model's file; create the model anew instead"
            )
        (conv,) = replacement.set_aside
        like = next(replacement.parameters(), conv.weight)
        put(restored, replacement, conv.to(like.device, like.dtype).train(replacement.training))
    vars(restored).pop("surgery", None)
    return restored


def replay(model: nn.Module, surgery: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Repeat on `model`, in place, the operations of a table: fresh blocks at the same places, for weights to come.

    Raises:
        ValueError: if an entry does not fit the model.
    """
    entries = []
    for entry in surgery:
        try:
            kind, name, mixer, options = entry["kind"], entry["place"], entry["mixer"], dict(entry["options"])
            check_mixer(mixer, options)
            if kind == "attach":
                place = Place(name, entry["channels"], entry["layout"])
                entries.append(attach_at(model, place, mixer, entry["init"], options))
            elif kind == "replace":
                entries.append(replace_at(model, name, mixer, options))
                model.get_submodule(name).set_aside = ()  # type: ignore[assignment]
            else:
                raise ValueError(f"operation {kind!r} is unknown; known are attach and replace")
        except (KeyError, AttributeError) as error:
            raise ValueError(f"entry {dict(entry)} of the surgery does not fit: {error}") from None
    return _record(model, entries)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, not a torch.nn.Module; build one with create_model")
    if hasattr(model, "_orig_mod"):  # as torch.compile calls what it wraps
        raise TypeError(f"model is a compiled {type(model).__name__}; give the model itself, and compile the result")


def _record(model: nn.Module, entries: list[dict[str, Any]]) -> nn.Module:
    vars(model)["surgery"] = [*getattr(model, "surgery", []), *entries]
    return model
