"""DINO's encoder and decoder beside those of transformers' Deformable DETR of equal size: forward, and a training step.

Both have as many layers, channels, heads, levels, points and queries, see the same levels of one image, move the boxes
of their queries in every layer, and take turns. In the same turns the parts of ours: the reading of pixels, the linear
layers and the attention among queries, and the matching of all layers with the objects of an image, which the other
lacks here and which neither time holds.

Examples:
    python benchmarks/query_speed.py
    python benchmarks/query_speed.py --layers 2 --repeats 3 --processor
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.ops import MLP

from convattn.detection.dino_decoder import Decoder
from convattn.detection.dino_encoder import Encoder, pixel_references
from convattn.detection.multi_scale_attention import MultiScaleAttention
from convattn.detection.set_losses import DETREX, match
from convattn.detection.set_matching import CostWeights
from convattn.detection.truth import Truth
from convattn.ops.deformable_attention import deformable_attention

STRIDES = (8, 16, 32, 64)
CLASSES = 80


@dataclass(frozen=True)
class Options:
    size: tuple[int, int] = (480, 640)
    """Height and width of the image."""
    layers: int = 6
    """Of the encoder, and of the decoder."""
    dim: int = 256
    """Channels."""
    hidden: int = 2048
    """Channels between two linear layers."""
    heads: int = 8
    """Of the attention."""
    points: int = 4
    """That a query reads on each level with each head."""
    queries: int = 900
    """Of the decoder."""
    objects: int = 7
    """To match, COCO's mean."""
    repeats: int = 7
    """Of each, of which the median counts."""
    threads: int = 2
    """That compute."""
    processor: bool = False
    """Count the time of the processor, on one thread, instead of what passes: where others use the machine."""


def main(options: Options) -> None:
    torch.set_num_threads(1 if options.processor else options.threads)
    clock = time.process_time if options.processor else time.perf_counter
    torch.manual_seed(0)
    image = _image(options)
    ours, theirs = _Ours(options), _Theirs(options)
    table = Table("what", "ours", "transformers", "ratio", "reading", "products", "matching")
    for what, step in (("forward", _forward), ("training step", _training_step)):
        runs = {
            "ours": step(ours, lambda: ours(image)),
            "theirs": step(theirs, lambda: theirs(image)),
            **_parts(ours, image, step, options),
        }
        times = _interleaved(runs, options.repeats, clock)
        shares = (f"{100 * times[part] / times['ours']:.0f} %" for part in ("reading", "products", "matching"))
        milliseconds = (f"{1000 * times[who]:,.0f} ms" for who in ("ours", "theirs"))
        table.add_row(what, *milliseconds, f"{times['ours'] / times['theirs']:.2f}", *shares)
    Console(width=110).print(table)


@dataclass(frozen=True)
class _Image:
    """What both are given of an image."""

    sizes: list[tuple[int, int]]
    pixels: Tensor  # (1, Σ h·w, dim)
    position: Tensor
    queries: Tensor  # (1, n, dim)
    boxes: Tensor  # (1, n, 4)
    ratios: Tensor  # (1, levels, 2)


def _image(options: Options) -> _Image:
    sizes = [(-(-options.size[0] // stride), -(-options.size[1] // stride)) for stride in STRIDES]
    pixels, position = torch.randn(2, 1, sum(height * width for height, width in sizes), options.dim)
    boxes = torch.rand(1, options.queries, 4) * 0.4 + 0.1
    return _Image(
        sizes, pixels, position, torch.randn(1, options.queries, options.dim), boxes, torch.ones(1, len(sizes), 2)
    )


def _movers(options: Options) -> nn.ModuleList:
    return nn.ModuleList(MLP(options.dim, [options.dim, options.dim, 4]) for _ in range(options.layers))


class _Ours(nn.Module):
    def __init__(self, options: Options):
        super().__init__()
        parts = options.layers, options.dim, options.heads, len(STRIDES), options.points, options.hidden
        self.encoder, self.decoder, self.movers = Encoder(*parts), Decoder(*parts), _movers(options)

    def forward(self, image: _Image) -> Tensor:
        references = pixel_references(image.sizes, image.ratios)
        memory = self.encoder(image.pixels, image.position, references, image.sizes, None)
        states, moved = self.decoder(image.queries, image.boxes, memory, image.ratios, image.sizes, self.movers)
        return sum(each.mean() for each in states) + sum(each.mean() for each in moved)  # type: ignore[return-value]


class _Theirs(nn.Module):
    def __init__(self, options: Options):
        super().__init__()
        from transformers import DeformableDetrConfig
        from transformers.models.deformable_detr.modeling_deformable_detr import (
            DeformableDetrDecoder,
            DeformableDetrEncoder,
        )

        config = DeformableDetrConfig(
            d_model=options.dim,
            encoder_layers=options.layers,
            decoder_layers=options.layers,
            encoder_ffn_dim=options.hidden,
            decoder_ffn_dim=options.hidden,
            encoder_attention_heads=options.heads,
            decoder_attention_heads=options.heads,
            encoder_n_points=options.points,
            decoder_n_points=options.points,
            num_feature_levels=len(STRIDES),
            num_queries=options.queries,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
        )
        self.encoder, self.decoder = DeformableDetrEncoder(config), DeformableDetrDecoder(config)
        self.decoder.bbox_embed = _movers(options)

    def forward(self, image: _Image) -> Tensor:
        lengths = torch.tensor([height * width for height, width in image.sizes])
        levels = dict(
            spatial_shapes=torch.tensor(image.sizes),
            spatial_shapes_list=image.sizes,
            level_start_index=lengths.cumsum(0) - lengths,
            valid_ratios=image.ratios,
        )
        memory = self.encoder(
            inputs_embeds=image.pixels, spatial_position_embeddings=image.position, **levels
        ).last_hidden_state
        said = self.decoder(
            inputs_embeds=image.queries,
            encoder_hidden_states=memory,
            object_queries_position_embeddings=image.queries,
            reference_points=image.boxes,
            **levels,
        )
        return said.intermediate_hidden_states.mean() + said.intermediate_reference_points.mean()


Step = Callable[[nn.Module, Callable[[], Tensor]], Callable[[], None]]


def _forward(model: nn.Module, result: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        with torch.inference_mode():
            result()

    return run


def _training_step(model: nn.Module, result: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)

    def run() -> None:
        model.train()
        optimizer.zero_grad()
        result().backward()
        optimizer.step()

    return run


def _parts(model: _Ours, image: _Image, step: Step, options: Options) -> dict[str, Callable[[], None]]:
    """Parts of ours by themselves, on what they are given within it."""
    products: list[tuple[nn.Module, tuple[Tensor, ...], dict[str, Any]]] = []
    reads: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep_product(module: nn.Module, args: tuple[Tensor, ...], more: dict[str, Any]) -> None:
        products.append((module, tuple(each.clone().requires_grad_() for each in args), more))

    def keep_read(module: MultiScaleAttention, args: tuple[Any, ...]) -> None:
        query, position, value, references, sizes, _ = args
        places, weights = module.looks(query + position, references, sizes)
        pixels = module.value_proj(value).unflatten(2, (module.heads, -1))
        reads.append(tuple(each.clone().requires_grad_() for each in (pixels, places, weights)))  # type: ignore[arg-type]

    attentions = [part for part in model.modules() if isinstance(part, nn.MultiheadAttention)]
    inside = {id(part) for attention in attentions for part in attention.modules()} - set(map(id, attentions))
    linear = [part for part in model.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    hooks = [part.register_forward_pre_hook(keep_product, with_kwargs=True) for part in (*linear, *attentions)]
    looking = [part for part in model.modules() if isinstance(part, MultiScaleAttention)]
    hooks += [part.register_forward_pre_hook(keep_read) for part in looking]
    with torch.no_grad():
        model.train()(image)
    for hook in hooks:
        hook.remove()
    truth, logits, boxes = _to_match(options)

    def product() -> Tensor:
        made = [module(*args, **more) for module, args, more in products]
        return torch.stack([(each[0] if isinstance(each, tuple) else each).mean() for each in made]).sum()

    def reading() -> Tensor:
        return torch.stack([deformable_attention(one[0], image.sizes, *one[1:]).mean() for one in reads]).sum()

    return {
        "products": step(model, product),
        "reading": step(model, reading),
        "matching": lambda: match(logits, boxes, [truth], DETREX, CostWeights()) and None,
    }


def _to_match(options: Options) -> tuple[Truth, list[Tensor], list[Tensor]]:
    """Objects, and what the layers of the decoder and the encoder say of them."""
    height, width = options.size
    corners = torch.rand(options.objects, 2) * torch.tensor([width - 210.0, height - 210.0])
    boxes = torch.cat([corners, corners + 10 + 200 * torch.rand(options.objects, 2)], 1)
    truth = Truth(boxes, torch.randint(CLASSES, (options.objects,)), options.size)
    layers = range(options.layers + 1)
    logits = [torch.randn(1, options.queries, CLASSES) for _ in layers]
    return truth, logits, [torch.rand(1, options.queries, 4) * 0.4 + 0.1 for _ in layers]


def _interleaved(runs: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, in turns, behind one that does not count."""
    times: dict[str, list[float]] = {who: [] for who in runs}
    for repeat in range(repeats + 1):
        for who, run in runs.items():
            started = clock()
            run()
            if repeat:
                times[who].append(clock() - started)
    return {who: median(each) for who, each in times.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
