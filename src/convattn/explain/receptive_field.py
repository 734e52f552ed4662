"""The effective receptive field: from which pixels the middle of the last map takes what it says.

Source: "Scaling Up Your Kernels to 31x31", Ding et al., CVPR 2022, arXiv 2203.06717, section 4 and the public scripts
behind its table; the idea is Luo et al.'s, arXiv 1701.04128.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.explain.captures import captures, evaluated
from convattn.explain.figures import axes_of, figure_of
from convattn.explain.grad_cam import with_gradients
from convattn.explain.layers import Layer, LayerChoice, find_layer
from convattn.task import Table

__all__ = ["Area", "ReceptiveField", "areas_table", "draw_receptive_fields", "effective_receptive_field"]

PUBLISHED_SIZE = 1024  # pixels a side, of the recipe; 50 images
THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


@dataclass(frozen=True)
class Area:
    """The smallest square in the middle that holds more than a share of the contributions."""

    threshold: float
    side: int | None  # pixels; None if no square does
    share: float | None  # of the image


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel counts."""

    contributions: Tensor  # (H, W) float64, mean over images of the positive gradients
    images: int
    skipped: int = 0  # images whose gradients were not numbers

    @property
    def maximum(self) -> float:
        """Of the unscaled map: the scaling depends on it, so networks of other output scales compare only roughly."""
        return float(self.contributions.max())

    def scaled(self) -> Tensor:
        """log10(contributions + 1) over its maximum, (H, W) in 0..1: what the areas are counted on."""
        logarithms = (self.contributions + 1).log10()
        return logarithms / (logarithms.max() or 1.0)

    def areas(self, thresholds: Iterable[float] = THRESHOLDS) -> list[Area]:
        """For each threshold the first square of side 3, 5, … around the middle with a larger share; none is `None`."""
        values = self.scaled()
        height, width = values.shape
        total, row, column = float(values.sum()), height // 2, width // 2
        found: list[Area] = []
        sides = range(1, min(height, width) // 2)
        squares = (values[row - r : row + r + 1, column - r : column + r + 1] for r in sides)
        shares = [float(square.sum()) / total for square in squares] if total else []
        for threshold in thresholds:
            reach = next((r for r, share in zip(sides, shares, strict=False) if share > threshold), None)
            side = None if reach is None else 2 * reach + 1
            found.append(Area(threshold, side, None if side is None else side**2 / (height * width)))
        return found

    def title(self) -> str:
        """How many images of which size; said where that is less than the recipe's."""
        height, width = self.contributions.shape
        less = f", below the recipe's {PUBLISHED_SIZE}" if min(height, width) < PUBLISHED_SIZE else ""
        return f"{self.images} image{'s' * (self.images != 1)} at {height} x {width}{less}"


def effective_receptive_field(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    layer: LayerChoice = None,
    *,
    on_image: Callable[[int], object] = lambda count: None,
) -> ReceptiveField:
    """The positive gradients of the middle of the last map with respect to the image, a mean over images.

    The probe is Σ over channels of relu(output[:, :, h // 2, w // 2]); negative gradients are dropped, channels summed.

    Args:
        model: any network whose last map is (B, C, h, w).
        images: (B, 3, H, W) normalised, or an iterable of such of one size, which need not be in memory together. The
            recipe takes 50 of 1024 x 1024, squashed to the square.
        layer: as in `find_layer`; by default what `forward_features` gives, or the last level.
        on_image: told 1 after each image.

    Raises:
        ValueError: if the output is no map, sizes differ, or no image has gradients that are numbers.
    """
    total: Any = 0.0
    counted = skipped = 0
    with evaluated(model), torch.inference_mode(False), torch.enable_grad():
        probe = _probe_of(model, layer)
        for image in (one for batch in ([images] if isinstance(images, Tensor) else images) for one in batch.split(1)):
            image = with_gradients(image).requires_grad_(True)
            (gradient,) = torch.autograd.grad(probe(image), image)
            contribution = gradient.relu().sum((0, 1)).double().cpu()
            if contribution.isnan().any():
                skipped += 1
            elif counted and contribution.shape != total.shape:
                raise ValueError(f"images of {_size(contribution)} and {_size(total)} pixels; resize all to one size")
            else:
                total, counted = total + contribution, counted + 1
            on_image(1)
    if not counted:
        raise ValueError(f"no image to take the mean over ({skipped} with gradients that are no numbers)")
    return ReceptiveField(total / counted, counted, skipped)


def _probe_of(model: nn.Module, layer: LayerChoice) -> Callable[[Tensor], Tensor]:
    """From an image to the scalar in the middle of its map."""
    features = getattr(model, "forward_features", None)
    if layer is None and callable(features):
        last = Layer("forward_features", model, str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC"))
        return lambda image: _middle(last.as_map(features(image)))
    chosen = find_layer(model, layer)

    def run(image: Tensor) -> Tensor:
        with captures(model, [chosen.name]) as kept:
            model(image)
        return _middle(chosen.as_map(kept.outputs[chosen.name]))

    return run


def _middle(output: Tensor) -> Tensor:
    height, width = output.shape[2:]
    return output[:, :, height // 2, width // 2].relu().sum()


def _size(values: Tensor) -> str:
    return " x ".join(map(str, values.shape))


def areas_table(fields: Mapping[str, ReceptiveField]) -> Table:
    """One row a model: side and share of the squares, and the maximum of the unscaled map."""
    rows = []
    for name, field in fields.items():
        cells = [
            "-" if a.side is None or a.share is None else f"{a.side} px, {100 * a.share:.1f} %" for a in field.areas()
        ]
        rows.append((name, *cells, f"{field.maximum:.3g}"))
    columns = ("model", *(f"{100 * threshold:g} %" for threshold in THRESHOLDS), "largest gradient")
    looked_at = "; ".join(dict.fromkeys(field.title() for field in fields.values()))
    note = (
        "The side of the smallest square in the middle that holds more than so much of log10(gradient + 1), and its "
        "share of the image. Larger squares are larger fields; a dash means that no square suffices. The scale depends "
        f"on the gradients, so compare networks of unlike largest gradients with care. {looked_at}."
    )
    return Table("High-contribution areas", columns, tuple(rows), frozenset(range(1, 6)), note)


def draw_receptive_fields(fields: Mapping[str, ReceptiveField]) -> Any:
    """A `matplotlib` figure: the scaled map of each model, red to green around 0, side by side."""
    figure = figure_of(3.6 * len(fields), 4.2)
    for axes, (name, field) in zip(axes_of(figure, 1, len(fields)), fields.items(), strict=True):
        axes.imshow(field.scaled().numpy(), cmap="RdYlGn", vmin=-1, vmax=1)
        axes.set_title(f"{name}\n{field.title()}", fontsize=9)
        axes.set_axis_off()
    return figure
