"""Which layer is looked at: by its name, by its stride, or the last level of the pyramid."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convattn.backbones.levels import described_levels
from convattn.nearest import nearest
from convattn.surgery.places import find_places
from convattn.surgery.trace import trace

__all__ = ["Layer", "LayerChoice", "find_layer", "find_layers"]

LayerChoice = nn.Module | str | int | None


@dataclass(frozen=True)
class Layer:
    """A module whose output is a map."""

    name: str  # dotted
    module: nn.Module
    is_nhwc: bool = False  # its map is (B, H, W, C)

    def as_map(self, output: Any) -> Tensor:
        """Its output as (B, C, H, W); raises ValueError if that is no map."""
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(
                f"the output of layer {self.name!r} is {shape}, not a map (B, C, H, W); choose another layer"
            )
        return output.permute(0, 3, 1, 2) if self.is_nhwc else output


def find_layer(model: nn.Module, layer: LayerChoice = None) -> Layer:
    """The layer that is meant.

    Args:
        model: any network; one of this package or of timm says what its levels are.
        layer: a module of the model or its dotted name; a stride, for the last level that has it; by default the last
            level. What stands behind a stage in it, such as a gate, is part of it.

    Raises:
        ValueError: if there is none such, naming the nearest, or the model does not say what its levels are.
    """
    return _layers(model, [_name_of(model, layer)])[0]


def find_layers(model: nn.Module, layers: str | Sequence[LayerChoice] = "levels") -> list[Layer]:
    """Several layers, in the order in which they run.

    Args:
        model: any network.
        layers: "levels": of every stride the last; "blocks": every block, with the stem in front where it has that
            name; or a list of what `find_layer` takes, kept in its order.

    Raises:
        ValueError: as `find_layer`; if no blocks can be found, or the list is empty.
    """
    if layers == "levels":
        return _layers(model, [*_levels(model).values()] or [_name_of(model, None)])
    if layers == "blocks":
        stem = ["stem"] if isinstance(getattr(model, "stem", None), nn.Module) else []
        return _layers(model, [*stem, *(place.name for place in find_places(model, "blocks"))])
    if isinstance(layers, str):
        raise ValueError(f"layers {layers!r} is unknown; choose levels, blocks, or give a list")
    if not layers:
        raise ValueError("layers is an empty list; name one or more, or leave it out")
    return _layers(model, [_name_of(model, layer) for layer in layers])


def _name_of(model: nn.Module, layer: LayerChoice) -> str:
    names = {module: name for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        if layer not in names:
            raise ValueError(f"this {type(layer).__name__} is not a module of the model; give one that is, or its name")
        return names[layer]
    if isinstance(layer, str):
        known = [name for name in names.values() if name]
        if layer not in known:
            is_fused = hasattr(model, "fusion_report")
            hint = " (a fused model has other layers: give the unfused form)" if is_fused else ""
            raise ValueError(f"the model has no layer {layer!r}; {nearest(layer, known)}{hint}")
        return layer
    levels = _levels(model)
    if not levels:
        raise ValueError(f"{type(model).__name__} does not say what its last level is (feature_info); name a layer")
    if layer is None:
        return [*levels.values()][-1]
    if layer not in levels:
        there = ", ".join(map(str, levels))
        closest = min(levels, key=lambda stride: abs(stride - layer))
        raise ValueError(f"the model has no level of stride {layer}, it has {there}; nearest: {closest}")
    return levels[layer]


def _layers(model: nn.Module, names: Sequence[str]) -> list[Layer]:
    """With the layout of their maps: as the model says, else (torchvision's Swin) as shapes of a wide image tell."""
    stated = getattr(model, "output_fmt", None)  # timm's word, or its enum
    calls: dict[str, Any] = {}
    if stated is None and not hasattr(model, "feature_info"):
        with suppress(ValueError):  # it runs on sizes of its own
            calls = {name: call for name, call in trace(model).items() if len(call.shape) == 4}
    nhwc = {name: name in calls and calls[name].layout == "NHWC" for name in names}
    is_nhwc = str(stated).endswith("NHWC")
    return [Layer(name, model.get_submodule(name), is_nhwc or nhwc[name]) for name in names]


def _levels(model: nn.Module) -> dict[int, str]:
    """Stride -> the module that gives the last map of it, the finest first."""
    rows = described_levels(model)
    if rows:
        return {int(row["reduction"]): row["module"] for row in rows if row["module"]}
    try:
        places, calls = find_places(model, "stages"), trace(model)
    except ValueError:  # no stages can be told
        return {}
    return {round(calls[place.name].image_size[0] / calls[place.name].size[0]): place.name for place in places}
