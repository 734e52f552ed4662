"""The blocks whose inner tensors a method reads, found by the name of their class: no family is imported for it."""

from collections.abc import Mapping

from torch import nn

from convattn.explain.layers import LayerChoice, find_layer, find_layers
from convattn.nearest import nearest

__all__ = ["BLOCKS", "GENERAL", "available_methods", "blocks_in_layer", "find_blocks"]

# Method -> the class of block that it looks into. A class derived from it counts too; its fused form has another name.
BLOCKS: Mapping[str, str] = {
    "relative_receptive_field": "LocalSelfAttention",
    "response_maps": "GroupMixAttention",
    "modulation_maps": "ScaleAwareModulation",
    "contexts": "CoTAttention",
    "gate_maps": "DeformableGate",
}
# Methods that read maps and gradients of any network.
GENERAL = (
    "grad_cam",
    "integrated_gradients",
    "occlusion",
    "sfd_score",
    "effective_receptive_field",
    "fourier_spectrum",
    "feature_map_variance",
)


def find_blocks(model: nn.Module, method: str, within: str | None = None) -> dict[str, nn.Module]:
    """Dotted name -> block, of all that a method can look into, in order.

    Args:
        model: any network, unfused.
        method: a key of `BLOCKS`.
        within: only this module, or what lies in it.

    Raises:
        ValueError: if there is none, naming the methods that the model has the tensors for; for a fused model.
    """
    kind = BLOCKS[method]
    found = {name: module for name, module in model.named_modules() if _is_a(module, kind)}
    if not found:
        name = type(model).__name__
        if hasattr(model, "fusion_report"):
            raise ValueError(f"this {name} is fused and has no inner tensors for {method}; give the unfused form")
        there = ", ".join(available_methods(model))
        raise ValueError(f"{method} looks into {kind}, and {name} has none; it has the tensors for {there}")
    if within is None:
        return found
    inside = {name: module for name, module in found.items() if f"{name}.".startswith(f"{within}.")}
    if not inside:
        raise ValueError(f"there is no {kind} in {within!r}; {nearest(within, found)}")
    return inside


def blocks_in_layer(model: nn.Module, method: str, layer: LayerChoice = None) -> dict[str, nn.Module]:
    """Those in `layer`; by default in the penultimate level, or all where it has none. ValueError as `find_blocks`."""
    if layer is not None:
        return find_blocks(model, method, find_layer(model, layer).name)
    every, levels = find_blocks(model, method), find_layers(model)
    return {n: block for n, block in every.items() if len(levels) > 1 and n.startswith(f"{levels[-2].name}.")} or every


def available_methods(model: nn.Module) -> list[str]:
    """The methods that a model has the tensors for: the general ones, and those of its blocks."""
    modules = [*model.modules()]
    return [*GENERAL, *(name for name, kind in BLOCKS.items() if any(_is_a(module, kind) for module in modules))]


def _is_a(module: nn.Module, kind: str) -> bool:
    return any(ancestor.__name__ == kind for ancestor in type(module).__mro__)
