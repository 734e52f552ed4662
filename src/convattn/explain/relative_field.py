"""How far attention looks: SMT's relative receptive field of its attention blocks, along depth.

Papers: "Scale-Aware Modulation Meet Transformer", Lin et al., ICCV 2023, arXiv 2307.08579, which shows it falling a
little and then rising over the attention blocks of the penultimate stage, without a formula; the term is that of "A
Simple Single-Scale Vision Transformer", Chen et al., arXiv 2112.09747, figure 6. The three forms are our readings.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from convattn.explain.blocks import blocks_in_layer
from convattn.explain.captures import captures
from convattn.explain.figures import axes_of, figure_of
from convattn.explain.layers import LayerChoice
from convattn.nearest import nearest

__all__ = ["Form", "RelativeField", "draw_relative_fields", "grid_distances", "relative_receptive_field"]

Form = Literal["furthest", "sequence", "uniform"]

_Y_AXIS = {
    "furthest": "mean distance over the furthest",
    "sequence": "mean |i - j| over the furthest",
    "uniform": "mean distance over that of uniform attention",
}


@dataclass(frozen=True)
class RelativeField:
    """The relative receptive field of each block, in the order in which they run."""

    blocks: tuple[str, ...]  # dotted names
    heads: tuple[Tensor, ...]  # of each block (heads,): the mean over images and positions
    form: Form
    images: int

    @property
    def means(self) -> Tensor:
        """(blocks,): the mean over heads."""
        return torch.stack([block.mean() for block in self.heads])

    @property
    def deviations(self) -> Tensor:
        """(blocks,): the standard deviation over heads."""
        return torch.stack([block.std(correction=0) for block in self.heads])


def relative_receptive_field(
    model: nn.Module,
    images: Tensor,
    *,
    normalise: Form = "furthest",
    layer: LayerChoice = None,
    on_image: Callable[[int], object] = lambda count: None,
) -> RelativeField:
    """The distance from which attention takes what it takes, for each head of each of SMT's attention blocks.

    A = softmax(q kᵀ / √head_dim), reckoned in float32 from the block's queries and keys; the model never forms it. The
    local convolution beside it is no part.

    Args:
        model: with SMT's attention (`LocalSelfAttention`), unfused.
        images: (B, 3, H, W), normalised as the model expects them.
        normalise: "furthest": mean over positions i of Σ_j A_ij d_ij / max_j d_ij, d the distance on the grid, 0..1;
            "sequence": the same with |i - j| in row order; "uniform": Σ_j A_ij d_ij over the mean of d, 1 for uniform
            attention.
        layer: blocks inside this one alone; by default of the penultimate level, of all if there are none.
        on_image: told 1 after each image.

    Raises:
        ValueError: for a model without such blocks, another form, or a map of a single position.
    """
    if normalise not in get_args(Form):
        raise ValueError(f"normalise {normalise!r} is unknown; {nearest(str(normalise), get_args(Form))}")
    blocks = blocks_in_layer(model, "relative_receptive_field", layer)
    reads = [f"{name}.{part}" for name in blocks for part in ("query", "key_value")]
    sums = [0.0 * torch.zeros(int(block.num_heads)) for block in blocks.values()]  # type: ignore[arg-type]
    for image in images.split(1):
        with captures(model, reads) as kept, torch.no_grad():
            model(image)
        for total, (name, block) in zip(sums, blocks.items(), strict=True):
            query = kept.outputs[f"{name}.query"]
            key, _ = kept.outputs[f"{name}.key_value"].chunk(2, 1)
            total += _of_heads(query, key, int(block.num_heads), normalise)  # type: ignore[arg-type]
        on_image(1)
    return RelativeField(tuple(blocks), tuple(total / len(images) for total in sums), normalise, len(images))


def grid_distances(height: int, width: int, *, is_sequence: bool = False) -> Tensor:
    """(N, N) float32: the distance of every two positions of a grid, or |i - j| of their numbers in row order."""
    if is_sequence:
        places = torch.arange(float(height * width))[:, None]
    else:
        rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()], 1)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def _of_heads(query: Tensor, key: Tensor, num_heads: int, form: Form) -> Tensor:
    """(heads,) of one image; query and key (1, C, H, W), heads being consecutive channels."""
    height, width = query.shape[2:]
    if height * width == 1:
        raise ValueError("attention over a map of a single position has no distances; give larger images")
    distances = grid_distances(height, width, is_sequence=form == "sequence").to(query.device)
    found = []
    for q, k in zip(query[0].chunk(num_heads), key[0].chunk(num_heads), strict=True):
        logits = q.flatten(1).float().T @ k.flatten(1).float() / math.sqrt(len(q))
        reached = (logits.softmax(1) * distances).sum(1)
        found.append(reached.mean() / distances.mean() if form == "uniform" else (reached / distances.amax(1)).mean())
    return torch.stack(found).cpu()


def draw_relative_fields(fields: Mapping[str, RelativeField]) -> Any:
    """A `matplotlib` figure: one line a model over its blocks, bars for the deviation over heads."""
    figure = figure_of(5.4, 3.4)
    (axes,) = axes_of(figure)
    for name, field in fields.items():
        places = range(1, len(field.blocks) + 1)
        axes.errorbar(places, field.means, field.deviations, marker="o", capsize=3, label=name)
    first = next(iter(fields.values()))
    axes.set(xlabel="attention block", ylabel=_Y_AXIS[first.form])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"Relative receptive field, {first.images} image{'s' * (first.images != 1)}", fontsize=10)
    axes.legend(frameon=False)
    return figure
