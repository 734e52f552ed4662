"""What a contextual transformer block sees: its static and its dynamic context, and the weights between neighbours.

Paper: "Contextual Transformer Networks for Visual Recognition", Li et al., arXiv 2107.12292, section 3. It shows no
such figure; this tool is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.explain.blocks import blocks_in_layer, find_blocks
from convattn.explain.captures import captures
from convattn.explain.figures import axes_of, figure_of
from convattn.explain.layers import LayerChoice

__all__ = ["Contexts", "contexts", "draw_local_weights", "draw_shares", "dynamic_shares", "kernel_of", "local_weights"]

_METHOD = "contexts"


@dataclass(frozen=True)
class Contexts:
    """The inner maps of one block, (B, C, H, W) each."""

    block: str  # dotted name
    static: Tensor  # k
    dynamic: Tensor | None  # y; None of a block with the static context alone
    output: Tensor
    shares: Tensor | None  # (B, C): of y in the output, the rest is k's; None where they are not blended by a gate


def contexts(model: nn.Module, images: Tensor, layer: LayerChoice = None) -> Contexts:
    """The static context k, the dynamic context y and their blend share · y + (1 - share) · k.

    Args:
        model: with `CoTAttention` or `CoXtAttention`, unfused.
        images: (B, 3, H, W), normalised as the model expects them.
        layer: the block, or what it is the last one in; by default the last of the penultimate level.

    Raises:
        ValueError: for a model without such a block, or a layer that holds none.
    """
    name, block = [*blocks_in_layer(model, _METHOD, layer).items()][-1]
    there = [f"{name}.{part}" for part in ("key", "act", "gate") if hasattr(block, part)]
    with captures(model, [name, *there]) as kept, torch.no_grad():
        model(images)
    gate = kept.outputs.get(f"{name}.gate")
    return Contexts(
        name,
        kept.outputs[f"{name}.key"],
        kept.outputs.get(f"{name}.act"),
        kept.outputs[name],
        None if gate is None else _share(gate),
    )


def dynamic_shares(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Block -> the share of the dynamic context by channel, (B, C), of every block with a gate.

    Args:
        model, images: as in `contexts`.

    Raises:
        ValueError: for a model without such a block, or whose blocks blend nothing.
    """
    gates = {f"{name}.gate": name for name, block in find_blocks(model, _METHOD).items() if hasattr(block, "gate")}
    if not gates:
        raise ValueError(f"no block of this {type(model).__name__} blends its contexts (fusion is not 'attention')")
    with captures(model, gates, keep=lambda name, x: _share(x).cpu()) as kept, torch.no_grad():
        model(images)
    return {gates[gate]: share for gate, share in kept.outputs.items()}


def local_weights(
    model: nn.Module, images: Tensor, position: tuple[int, int], layer: LayerChoice = None
) -> tuple[str, Tensor]:
    """The weights by which one position sums the values of its neighbours: the block, and (B, kernels, k, k).

    Args:
        model, images, layer: as in `contexts`.
        position: row and column on the block's map.

    Raises:
        ValueError: as `contexts`; for a position off the map, or a block without a dynamic context.
    """
    name, block = [*blocks_in_layer(model, _METHOD, layer).items()][-1]
    if not hasattr(block, "embed"):
        raise ValueError(f"{name} has the static context alone, no local weights; choose another block")
    with captures(model, [f"{name}.embed"]) as kept, torch.no_grad():
        model(images)
    weights = kept.outputs[f"{name}.embed"]  # (B, kernels · taps, H, W), a kernel's taps together, row by row
    height, width = weights.shape[2:]
    row, column = position
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"position {row}, {column} is off the map of {name}, which is {height} x {width}")
    taps = int(block.taps)  # type: ignore[arg-type]
    side = round(taps**0.5)
    return name, weights[:, :, row, column].unflatten(1, (-1, side, side))


def kernel_of(block: Any, channel: int) -> int:
    """Which of a block's kernels a channel is summed with: the channels of each group take its kernels by turns."""
    groups, channels, kernels = int(block.groups), int(block.dim), int(block.num_weights)
    if not 0 <= channel < channels:
        raise ValueError(f"channel {channel} must be 0 to {channels - 1}")
    group, inside = divmod(channel, channels // groups)
    return group * (kernels // groups) + inside % (kernels // groups)


def _share(gate: Tensor) -> Tensor:
    """(B, 2C, 1, 1), two logits a channel, of y and of k -> (B, C), the share of y."""
    return gate.flatten(1).unflatten(1, (-1, 2)).float().softmax(2)[:, :, 0]


def draw_shares(shares: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """A `matplotlib` figure: for each model the share of the dynamic context over its blocks.

    The line is the median over channels and images; the band holds the middle 80 %.
    """
    figure = figure_of(5.4, 3.4)
    (axes,) = axes_of(figure)
    for index, (name, blocks) in enumerate(shares.items()):
        places = range(1, len(blocks) + 1)
        quantiles = torch.stack(
            [torch.quantile(one.flatten(), torch.tensor([0.1, 0.5, 0.9])) for one in blocks.values()]
        )
        axes.fill_between(places, quantiles[:, 0], quantiles[:, 2], color=f"C{index}", alpha=0.2, linewidth=0)
        axes.plot(places, quantiles[:, 1], marker="o", markersize=4, color=f"C{index}", label=name)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="block", ylabel="share of the dynamic context", ylim=(0, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("Dynamic over static context: median and middle 80 % of channels", fontsize=10)
    axes.legend(frameon=False)
    return figure


def draw_local_weights(weights: Tensor, columns: int = 8) -> Any:
    """A `matplotlib` figure: the kernels of one position, (kernels, k, k), all in one scale, 0 being white."""
    kernels = weights.detach().float().cpu()
    rows = -(-len(kernels) // columns)
    figure = figure_of(0.9 * min(columns, len(kernels)), 0.95 * rows)
    most = float(kernels.abs().max()) or 1.0
    plots = axes_of(figure, rows, min(columns, len(kernels)))
    for index, axes in enumerate(plots):
        axes.set_axis_off()
        if index < len(kernels):
            axes.imshow(kernels[index].numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
    return figure
