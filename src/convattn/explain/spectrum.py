"""What frequencies the maps of a network hold: Fourier analysis of features.

Sources: "How Do Vision Transformers Work?", Park and Kim, ICLR 2022, arXiv 2202.06709, and its public notebook;
"Next-ViT", Li et al., arXiv 2207.05501, figure 5a, which shows the spectra of ResNet, Swin and Next-ViT as pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.explain.captures import captures
from convattn.explain.figures import axes_of, figure_of
from convattn.explain.layers import Layer, LayerChoice, find_layers
from convattn.extras import require

__all__ = ["Spectra", "draw_high_frequencies", "draw_spectra", "fourier_spectrum", "log_amplitude"]

_LEAST = 1e-6  # added to amplitudes, so that 0 has a logarithm


@dataclass(frozen=True)
class Spectra:
    """The mean log amplitude of the maps of several layers."""

    amplitudes: dict[str, Tensor]  # layer -> (H, W), natural logarithms; frequency 0 stands at (H // 2, W // 2)
    attends: dict[str, bool]  # layer -> whether an attention is in it
    images: int

    def curve(self, layer: str) -> tuple[Tensor, Tensor]:
        """Frequencies in units of π, and log amplitudes over that of frequency 0, along the diagonal: (n,) each."""
        amplitude = self.amplitudes[layer]
        half = len(amplitude) // 2
        diagonal = amplitude.diagonal()[half:]
        return torch.linspace(0, 1, len(diagonal)), diagonal - diagonal[0]

    def high(self) -> Tensor:
        """(layers,): the last point of each curve, how strong the highest frequency is."""
        return torch.stack([self.curve(layer)[1][-1] for layer in self.amplitudes])


def fourier_spectrum(
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[LayerChoice] = "levels",
    *,
    on_image: Callable[[int], object] = lambda count: None,
) -> Spectra:
    """The mean over images and channels of ln(|FFT of the map| + 1e-6): no window, the mean not taken out.

    Args:
        model: any network.
        images: (B, 3, H, W), normalised as the model expects them.
        layers: "levels", "blocks" or a list, as in `find_layers`.
        on_image: told 1 after each image.

    Raises:
        ValueError: for a map that is not square, naming the size of images to take.
    """
    chosen = {layer.name: layer for layer in find_layers(model, layers)}
    means = mean_of_layers(model, images, chosen, lambda layer, maps: _amplitude(layer, maps, images), on_image)
    # by the name of a class: it decides where a mark stands in a figure, and no more
    classes = {name: " ".join(type(part).__name__ for part in layer.module.modules()) for name, layer in chosen.items()}
    attends = {name: "attention" in names.lower() for name, names in classes.items()}
    return Spectra(means, attends, len(images))


def log_amplitude(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (H, W): ln(|fft2| + 1e-6), frequency 0 in the middle, the mean over images and channels."""
    wide = maps if maps.dtype == torch.float64 else maps.float()
    return torch.fft.fftshift((torch.fft.fft2(wide).abs() + _LEAST).log().mean((0, 1)))


def mean_of_layers(
    model: nn.Module,
    images: Tensor,
    layers: Mapping[str, Layer],
    reckon: Callable[[Layer, Tensor], Any],
    on_image: Callable[[int], object],
) -> dict[str, Any]:
    """Layer -> the mean over images of what is reckoned of its map (1, C, H, W), of which none is kept or copied."""
    sums: dict[str, Any] = dict.fromkeys(layers, 0)

    def keep(name: str, output: Any) -> Any:
        return reckon(layers[name], layers[name].as_map(output))

    for image in images.split(1):
        with captures(model, layers, keep=keep) as kept, torch.no_grad():
            model(image)
        sums = {name: total + kept.outputs[name] for name, total in sums.items()}
        on_image(1)
    return {name: total / len(images) for name, total in sums.items()}


def _amplitude(layer: Layer, maps: Tensor, images: Tensor) -> Tensor:
    height, width = maps.shape[2:]
    if height != width:
        side = min(images.shape[2:])
        raise ValueError(
            f"layer {layer.name!r} gives a map of {height} x {width}, and a spectrum needs a square one; give images "
            f"of {side} x {side}"
        )
    return log_amplitude(maps).cpu()


def draw_spectra(spectra: Mapping[str, Spectra]) -> Any:
    """A `matplotlib` figure: for each model a curve a layer, coloured by depth."""
    figure = figure_of(4.4 * len(spectra), 3.4)
    plots, colours = axes_of(figure, 1, len(spectra)), require("matplotlib", "explain").colormaps["viridis"]
    for axes, (name, one) in zip(plots, spectra.items(), strict=True):
        for at, layer in enumerate(one.amplitudes):
            colour = colours(0.9 * at / max(len(one.amplitudes) - 1, 1))
            frequencies, curve = one.curve(layer)
            axes.plot(frequencies, curve, color=colour, label=layer, linewidth=1.6)
        axes.set(xlabel="frequency (units of π)", title=f"{name}, {one.images} image{'s' * (one.images != 1)}")
        axes.title.set_fontsize(10)
        if len(one.amplitudes) <= 6:
            axes.legend(frameon=False, fontsize=8)
    plots[0].set_ylabel("Δ log amplitude")
    return figure


def draw_high_frequencies(spectra: Mapping[str, Spectra]) -> Any:
    """A `matplotlib` figure: how strong the highest frequency is along depth; filled marks where attention is.

    A dotted line stands wherever a map is smaller than the one before.
    """
    figure = figure_of(5.4, 3.4)
    (axes,) = axes_of(figure)
    for index, (name, one) in enumerate(spectra.items()):
        depth, high, colour = torch.linspace(0, 1, len(one.amplitudes)), one.high(), f"C{index}"
        axes.plot(depth, high, color=colour, label=name, linewidth=1.2)
        for at, (layer, attends) in enumerate(one.attends.items()):
            axes.plot(
                depth[at], high[at], "o", color=colour, markerfacecolor=colour if attends else "white", markersize=5
            )
            before = [*one.amplitudes.values()][at - 1] if at else one.amplitudes[layer]
            if len(one.amplitudes[layer]) < len(before):
                axes.axvline((depth[at - 1] + depth[at]) / 2, color=colour, linestyle=":", linewidth=0.8, alpha=0.6)
    axes.set(xlabel="normalised depth", ylabel="Δ log amplitude at 1.0π")
    axes.set_title("The highest frequency; filled: attention, dotted: a smaller map", fontsize=10)
    axes.legend(frameon=False)
    return figure
