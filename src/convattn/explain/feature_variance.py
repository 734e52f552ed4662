"""How much the features of a map differ from place to place, along depth.

Source: "How Do Vision Transformers Work?", Park and Kim, ICLR 2022, arXiv 2202.06709, and its public notebook.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convattn.explain.figures import axes_of, figure_of
from convattn.explain.layers import Layer, LayerChoice, find_layers
from convattn.explain.spectrum import mean_of_layers

__all__ = ["draw_variances", "feature_map_variance"]


def feature_map_variance(
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[LayerChoice] = "blocks",
    *,
    on_image: Callable[[int], object] = lambda count: None,
) -> dict[str, float]:
    """Layer -> the variance over the positions of its map (unbiased), a mean over images and channels.

    Args:
        model: any network.
        images: (B, 3, H, W), normalised as the model expects them.
        layers: "blocks", "levels" or a list, as in `find_layers`.
        on_image: told 1 after each image.

    Raises:
        ValueError: for a map of a single position.
    """
    chosen = {layer.name: layer for layer in find_layers(model, layers)}
    return mean_of_layers(model, images, chosen, _variance, on_image)


def _variance(layer: Layer, maps: Tensor) -> float:
    if maps[0, 0].numel() == 1:
        raise ValueError(f"layer {layer.name!r} gives a map of one position, which has no variance; give larger images")
    return float(maps.float().var((2, 3)).mean())


def draw_variances(variances: Mapping[str, Mapping[str, float]]) -> Any:
    """A `matplotlib` figure: one line a model over normalised depth."""
    figure = figure_of(5.4, 3.4)
    (axes,) = axes_of(figure)
    for name, values in variances.items():
        axes.plot(torch.linspace(0, 1, len(values)), [*values.values()], marker="o", markersize=4, label=name)
    axes.set(xlabel="normalised depth", ylabel="variance over positions", yscale="log")
    axes.set_title("Feature map variance", fontsize=10)
    axes.legend(frameon=False)
    return figure
