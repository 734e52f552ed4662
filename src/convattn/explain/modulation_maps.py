"""SMT's maps before and after scale-aware aggregation.

Paper: "Scale-Aware Modulation Meet Transformer", Lin et al., ICCV 2023, arXiv 2307.08579, figure 3; the mean of
absolute values, the enlargement by 4 and the blocks are those of the authors' notebook.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convattn.explain.blocks import find_blocks
from convattn.explain.captures import captures
from convattn.explain.layers import LayerChoice, find_layer, find_layers

__all__ = ["ENLARGED", "modulation_maps"]

ENLARGED = 4  # times, bilinear: how the authors draw them


def modulation_maps(
    model: nn.Module, images: Tensor, layers: Sequence[LayerChoice] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Block -> the maps in front of the aggregation and behind it, where they are the modulator; (B, h, w) each.

    Both are the mean over channels of absolute values, unscaled, at the size of the block's map.

    Args:
        model: with `ScaleAwareModulation`, unfused.
        images: (B, 3, H, W), normalised as the model expects them.
        layers: of each the last such block in it; by default of every level that has one.

    Raises:
        ValueError: for a model without such a block, or a layer that holds none.
    """
    blocks = find_blocks(model, "modulation_maps")
    if layers is None:
        ends = {level.name: [n for n in blocks if n.startswith(f"{level.name}.")] for level in find_layers(model)}
        chosen = [names[-1] for names in ends.values() if names] or [*blocks]
    else:
        chosen = [[*find_blocks(model, "modulation_maps", find_layer(model, layer).name)][-1] for layer in layers]
    reads = [f"{name}.{part}" for name in chosen for part in ("mixed_conv", "aggregation")]
    with captures(model, reads, keep=lambda name, x: x.abs().float().mean(1).cpu()) as kept, torch.no_grad():
        model(images)
    return {name: (kept.outputs[f"{name}.mixed_conv"], kept.outputs[f"{name}.aggregation"]) for name in chosen}
