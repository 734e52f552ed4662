"""What the groups of tokens answer: response maps of GroupMixFormer's attention.

Paper: "Advancing Vision Transformers with Group-Mix Attention", Ge et al., arXiv 2311.15157, figure 4, whose panels are
the image, the ensemble, single tokens, the aggregators of 3, 5 and 7, and the branch beside the attention. The paper
gives no formula; norm, scaling and the choice of the block are ours.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.explain.blocks import blocks_in_layer
from convattn.explain.captures import captures
from convattn.explain.layers import LayerChoice

__all__ = ["ResponseMaps", "response_maps"]


@dataclass(frozen=True)
class ResponseMaps:
    """How strongly each part of one block answers."""

    block: str  # dotted name
    maps: dict[str, Tensor]  # part -> (B, H, W) in 0..1: "ensemble" first, then the segments in order


def response_maps(model: nn.Module, images: Tensor, layer: LayerChoice = None) -> ResponseMaps:
    """The L2 norm over channels of each segment in front of a block's projection, and of the whole behind it.

    Each is scaled from its least to its greatest value, 0 where it is constant, and resized to the image, bilinear.

    Args:
        model: with `GroupMixAttention`, unfused.
        images: (B, 3, H, W), normalised as the model expects them.
        layer: the block, or what it is the last one in; by default the last of the penultimate level.

    Raises:
        ValueError: for a model without such a block, or a layer that holds none.
    """
    name, block = [*blocks_in_layer(model, "response_maps", layer).items()][-1]
    with captures(model, [f"{name}.proj"], [f"{name}.proj"]) as kept, torch.no_grad():
        model(images)
    parts = kept.inputs[f"{name}.proj"].chunk(_segments(block), 1)
    found = {"ensemble": kept.outputs[f"{name}.proj"], **dict(zip(_titles(block), parts, strict=True))}
    return ResponseMaps(name, {title: _response(part, images.shape[-2:]) for title, part in found.items()})


def _segments(block: Any) -> int:
    return int(block.aggregator.num_segments)


def _titles(block: Any) -> list[str]:
    """What each segment is, in the order of the channels."""
    if _segments(block) == 1:
        return ["all tokens"]
    titles = ["single tokens"]
    for index, branch in enumerate([*block.aggregator.branches][1:], 1):
        side = getattr(getattr(branch, "mix", None), "kernel_size", None)
        side = side[0] if isinstance(side, tuple) else side
        titles.append(f"segment {index}, as it is" if side is None else f"groups of {side} x {side}")
    if block.aggregator.non_attention is not None:
        titles.append("beside the attention")
    # segments of one kernel size are told apart by their number
    return [f"{title}, segment {at}" if titles.count(title) > 1 else title for at, title in enumerate(titles)]


def _response(part: Tensor, size: torch.Size) -> Tensor:
    """(B, C, h, w) -> (B, H, W) in 0..1."""
    norm = part.float().norm(dim=1)
    low, high = norm.amin((1, 2), keepdim=True), norm.amax((1, 2), keepdim=True)
    spread = high - low
    scaled = torch.where(spread > 0, (norm - low) / spread.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
    return F.interpolate(scaled[:, None], size, mode="bilinear", align_corners=False)[:, 0].cpu()
