"""Blocks that a configuration attaches to its model, or puts in the place of convolutions."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from convattn.config_errors import ConfigError
from convattn.nearest import nearest
from convattn.surgery import attach, replace, replay
from convattn.walk import copied

__all__ = ["with_plug_ins"]

_FIELDS = {"kind", "mixer", "where", "init", "frozen", "options"}
_WORDS = ("stages", "blocks", "qkv")
_ROOMY = 256  # pixels: every stage has a map


def with_plug_ins(model: nn.Module, plug_ins: tuple[Mapping[str, Any], ...], name: str) -> nn.Module:
    """`model` with these blocks in it, those of a segmenter or detector in its backbone; `model` itself without any.

    Args:
        model: as its task builds it.
        plug_ins: each an object with `kind` ("attach" or "replace"), `mixer`, and, where not as usual, `where`
            ("stages", "blocks", "qkv", a shell pattern of names such as `*.bn3`; "conv3x3" or a pattern for
            `replace`), `init` ("paper" or "identity"), `frozen` (the block stays as it starts), `options` of the mixer.
        name: of the model, for errors.

    Raises:
        ConfigError: for a field, kind, mixer or place that does not exist, naming the nearest.
    """
    for plug_in in plug_ins:
        for field in plug_in:
            if field not in _FIELDS:
                raise ConfigError(f"model.plug_ins: unknown field {field!r}; {nearest(field, _FIELDS)}")
        backbone: Any = getattr(model, "backbone", None)
        prefix, network = ("backbone.", backbone) if isinstance(backbone, nn.Module) else ("", model)
        try:
            table: list[dict[str, Any]] = _changed(network, plug_in).surgery[len(getattr(network, "surgery", [])) :]  # type: ignore[assignment, index]
            entries = [{**entry, "place": prefix + entry["place"]} for entry in table]
            model = replay(copied(model), entries)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{name} does not take {plug_in.get('mixer')}: {error}") from None
        if plug_in.get("frozen", False):
            for entry in entries:
                place = model.get_submodule(entry["place"])
                block = place.get_submodule("attached") if entry["kind"] == "attach" else place
                block.requires_grad_(False)
    return model


def _changed(network: nn.Module, plug_in: Mapping[str, Any]) -> nn.Module:
    kind, options = plug_in.get("kind", "attach"), dict(plug_in.get("options", {}))
    if kind == "attach":
        where = plug_in.get("where", "stages")
        place = where if where in _WORDS else _named(where)
        init = plug_in.get("init", "paper")
        try:
            return attach(network, plug_in["mixer"], place, init, **options)
        except ValueError:  # images so small that a map ends in one position, which is then not known as one
            try:
                return attach(network, plug_in["mixer"], place, init, input_size=_ROOMY, **options)
            except (ValueError, RuntimeError):
                pass
            raise
    if kind == "replace":
        match = plug_in.get("where", "conv3x3")
        return replace(network, plug_in["mixer"], match if match == "conv3x3" else _named(match), **options)
    raise ValueError(f"kind {kind!r} is unknown; choose attach or replace")


def _named(pattern: str) -> Callable[[str, nn.Module], bool]:
    return lambda name, module: fnmatch.fnmatchcase(name, pattern)
