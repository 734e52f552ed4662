"""What a deformable gate lets pass, and where it looks to decide: gates, offsets and sampling points of DAS.

Paper: "DAS: A Deformable Attention to Capture Salient Information in CNNs", Salajegheh et al., arXiv 2311.12091. It
shows Grad-CAM only; this tool is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from convattn.explain.blocks import find_blocks
from convattn.explain.captures import captures
from convattn.explain.figures import figure_of
from convattn.explain.layers import LayerChoice, find_layer

__all__ = ["SamplingPoints", "arrow_scale", "draw_offsets", "draw_points", "gate_maps", "sampling_points"]

_METHOD = "gate_maps"
_MOST_ARROWS = 16  # a side
_SHORTEST = 1e-3  # pixels of the map: offsets below it are none


@dataclass(frozen=True)
class SamplingPoints:
    """Where the deformable convolution of one gate reads, around every position of its map."""

    block: str  # dotted name
    offsets: Tensor  # d, (B, taps, 2, H, W), (dy, dx) in pixels of the map
    weights: Tensor  # m, (B, taps, H, W) in 0..1; 1 where taps are not weighed
    reach: Tensor  # r, (taps, 2): where each tap would read without offsets, (dy, dx)
    stride: tuple[int, int]  # pixels of the image to one of the map, down and across

    def of(self, row: int, column: int, image: int = 0) -> Tensor:
        """(taps, 2): x and y in pixels of the image, of the taps around one position of the map.

        p + r_k + d_k, and (x + 0.5) · stride - 0.5 of it.

        Raises:
            ValueError: for a position off the map.
        """
        height, width = self.weights.shape[2:]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"position {row}, {column} is off the map of {self.block}, which is {height} x {width}")
        points = torch.tensor([float(row), float(column)]) + self.reach + self.offsets[image, :, :, row, column]
        return ((points + 0.5) * torch.tensor(self.stride, dtype=points.dtype) - 0.5).flip(1)

    def mean_offsets(self) -> Tensor:
        """(B, 2, H, W), (dy, dx): Σ_k m_k d_k / Σ_k m_k, in pixels of the map."""
        return (self.offsets * self.weights[:, :, None]).sum(1) / self.weights.sum(1)[:, None]


def gate_maps(model: nn.Module, images: Tensor, layers: Sequence[LayerChoice] | None = None) -> dict[str, Tensor]:
    """Gate -> what each element is multiplied by, (B, C, H, W): sigmoid(logits) · gain.

    Args:
        model: with `DeformableGate`, in the network or attached to it, unfused.
        images: (B, 3, H, W), normalised as the model expects them.
        layers: gates in these alone; by default all.

    Raises:
        ValueError: for a model without a gate, or a layer that holds none.
    """
    blocks = {name: block for name, block in _gates_in(model, layers).items() if block.gate}
    if not blocks:
        raise ValueError(
            "these blocks use the layers of the gate without gating (gate=False): there is no gate to show"
        )
    logits = {f"{name}.norm2": name for name in blocks}
    with captures(model, logits) as kept, torch.no_grad():
        model(images)
    return {gate: (kept.outputs[read].sigmoid() * blocks[gate].gain).cpu() for read, gate in logits.items()}


def sampling_points(
    model: nn.Module, images: Tensor, layers: Sequence[LayerChoice] | None = None
) -> dict[str, SamplingPoints]:
    """Gate -> where its deformable convolution reads.

    Args:
        model, images, layers: as in `gate_maps`.

    Raises:
        ValueError: as `gate_maps`; if no gate has a deformable convolution.
    """
    layer_of = {name: _deformable_in(block) for name, block in _gates_in(model, layers).items()}
    reads = {f"{name}.{path}.offset": name for name, path in layer_of.items() if path is not None}
    if not reads:
        raise ValueError("no gate here has a deformable convolution (mixer 'dwsep' or 'none'): there are no offsets")
    with captures(model, reads) as kept, torch.no_grad():
        model(images)
    found = {}
    for read, name in reads.items():
        convolution: Any = model.get_submodule(read.removesuffix(".offset"))
        found[name] = _points(name, kept.outputs[read].float().cpu(), convolution, images.shape[-2:])
    return found


def _gates_in(model: nn.Module, layers: Sequence[LayerChoice] | None) -> dict[str, Any]:
    if layers is None:
        return dict(find_blocks(model, _METHOD))
    found: dict[str, Any] = {}
    for layer in layers:
        found |= find_blocks(model, _METHOD, find_layer(model, layer).name)
    return found


def _deformable_in(block: nn.Module) -> str | None:
    """Where in a gate the layer is that predicts offsets, if there is one."""
    return next(
        (name for name, part in block.named_modules() if hasattr(part, "offset") and hasattr(part, "taps")), None
    )


def _points(name: str, predicted: Tensor, convolution: Any, image_size: torch.Size) -> SamplingPoints:
    """Split what was predicted, (B, 2 · taps [+ taps], H, W): (dy, dx) of each tap, then the logits of the weights."""
    taps, kernel = int(convolution.taps), int(convolution.weight.shape[-1])
    offsets = predicted[:, : 2 * taps].unflatten(1, (taps, 2))
    weights = predicted[:, 2 * taps :].sigmoid() if convolution.modulated else torch.ones_like(offsets[:, :, 0])
    steps = torch.arange(float(kernel)) - kernel // 2
    reach = torch.cartesian_prod(steps, steps).repeat(taps // kernel**2, 1)  # each group of offsets has all taps
    down, across = (max(1, round(whole / part)) for whole, part in zip(image_size, predicted.shape[2:], strict=True))
    return SamplingPoints(name, offsets, weights, reach, (down, across))


def arrow_scale(points: SamplingPoints, image: int = 0) -> int:
    """How many times `draw_offsets` enlarges: so often that the longest arrow still ends before the next one begins."""
    mean = points.mean_offsets()[image]
    longest = float(mean.norm(dim=0).max())
    return max(1, int(_step(mean) / longest)) if longest > _SHORTEST else 1


def _step(mean: Tensor) -> int:
    """Positions from one arrow to the next."""
    return max(1, -(-max(mean.shape[1:]) // _MOST_ARROWS))


def draw_offsets(points: SamplingPoints, picture: Image.Image, image: int = 0) -> Any:
    """A `matplotlib` figure: the picture in grey, an arrow a position, the mean offset, `arrow_scale` times as long.

    Args:
        points: of one gate.
        picture: what the model saw, at the size it saw it.
        image: which of the batch.
    """
    mean = points.mean_offsets()[image]
    height, width = mean.shape[1:]
    step, times = _step(mean), arrow_scale(points, image)
    rows, columns = torch.arange(0, height, step), torch.arange(0, width, step)
    down, across = points.stride
    y, x = (rows + 0.5) * down - 0.5, (columns + 0.5) * across - 0.5
    arrows = times * mean[:, rows][:, :, columns]
    figure = figure_of(4.2, 4.2 * picture.height / picture.width)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))  # the picture fills it
    axes.imshow(picture.convert("L"), cmap="gray", alpha=0.6)
    style = dict(angles="xy", scale_units="xy", scale=1, color="#c2410c", width=0.006)
    axes.quiver(x, y, arrows[1] * across, arrows[0] * down, **style)
    axes.set_axis_off()
    return figure


def draw_points(points: SamplingPoints, picture: Image.Image, row: int, column: int, image: int = 0) -> Image.Image:
    """The picture with the taps around one position of the map, sized by their weights, and a cross at the position.

    Args:
        points: of one gate.
        picture: what the model saw; of another size the points are scaled to it.
        row, column: the position.
        image: which of the batch.
    """
    down, across = points.stride
    seen = points.weights.shape[3] * across, points.weights.shape[2] * down
    times = max(1, -(-384 // max(picture.size)))
    shown = picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    scale = shown.width / seen[0], shown.height / seen[1]
    canvas = ImageDraw.Draw(shown)
    largest = max(4.0, min(shown.size) / 40)
    weights = points.weights[image, :, row, column]
    for (x, y), weight in zip(points.of(row, column, image).tolist(), weights.tolist(), strict=True):
        place, radius = ((x + 0.5) * scale[0], (y + 0.5) * scale[1]), largest * max(weight, 0.05) ** 0.5
        box = (place[0] - radius, place[1] - radius, place[0] + radius, place[1] + radius)
        canvas.ellipse(box, fill=(255, 140, 0), outline=(0, 0, 0))
    x, y = (column + 0.5) * across * scale[0], (row + 0.5) * down * scale[1]
    for line in ((x - largest, y, x + largest, y), (x, y - largest, x, y + largest)):
        canvas.line(line, fill=(0, 220, 255), width=max(2, round(largest / 3)))
    return shown
