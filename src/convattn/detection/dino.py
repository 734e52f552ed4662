"""DINO: a transformer whose queries stand for objects, on four levels of a backbone and one beyond.

    maps -> projections -> encoder -> the best pixels' boxes -> decoder -> classes and boxes, no suppression

Source: "DINO: DETR with improved denoising anchor boxes", Zhang et al., ICLR 2023, arXiv 2203.03605. Two
implementations are in use, detrex's and mmdetection's; `Flavour` says where they differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import MLP, box_convert

from convattn.detection.denoising import Denoising, Draw, denoising_queries, draw_noise
from convattn.detection.dino_decoder import Decoder
from convattn.detection.dino_encoder import Encoder, pixel_references
from convattn.detection.positions import inverse_sigmoid, level_padding, map_positions, valid_ratios
from convattn.detection.post_processing import Surest, surest
from convattn.detection.query_selection import Selected, pixel_proposals, select
from convattn.detection.set_losses import (
    DETREX,
    MMDET,
    LossWeights,
    Rules,
    counted,
    counted_noisy,
    match,
    set_losses,
)
from convattn.detection.set_matching import CostWeights
from convattn.detection.truth import Truth

__all__ = ["FLAVOURS", "DinoHead", "Encoded", "Flavour", "Predicted"]

_GROUPS = 32  # of the projections' norms
_PRIOR = -math.log(99)  # bias of a class at first: one pixel in a hundred is of it


@dataclass(frozen=True)
class Flavour:
    """Where detrex's DINO and mmdetection's differ."""

    name: str
    position_offset: float
    temperature: float  # of the positions of pixels
    projection_bias: bool
    refine_eps: float  # of the inverse sigmoid behind the last layer's box
    drops_empty: bool  # detections without an area inside of the image are left out
    rules: Rules


FLAVOURS = {
    "detrex": Flavour("detrex", -0.5, 10_000.0, True, 1e-3, True, DETREX),
    "mmdet": Flavour("mmdet", 0.0, 20.0, False, 1e-5, False, MMDET),
}


class Projection(nn.Module):
    """A convolution and a group norm: a level of the backbone -> a level of the transformer."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, bias: bool):
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.GroupNorm(_GROUPS, dim)
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@dataclass(frozen=True)
class Encoded:
    """Images as the decoder sees them."""

    memory: Tensor  # the pixels of all levels, (B, Σ h·w, dim)
    sizes: list[tuple[int, int]]  # height and width of each level
    ratios: Tensor  # how much of each level is image, (B or 1, levels, 2), width first
    paddings: list[Tensor]  # of each level, true for pixels of no image, (B or 1, h, w)
    flat: Tensor | None  # the same of all levels, (B, Σ h·w); None where there are none


@dataclass(frozen=True)
class Predicted:
    """Classes and boxes of every layer, the first layer first."""

    logits: list[Tensor]  # (B, n, classes)
    boxes: list[Tensor]  # (B, n, 4) cxcywh, 0 to 1

    def part(self, queries: slice) -> "Predicted":
        return Predicted([each[:, queries] for each in self.logits], [each[:, queries] for each in self.boxes])


class DinoHead(nn.Module):
    """All of DINO that stands on a backbone's levels.

    Args:
        channels: of the backbone's levels, the finest first; a further level is made of the last.
        num_classes: classes of objects.
        flavour: of the implementation: one of `FLAVOURS`.
        dim: channels of the transformer; a multiple of 32 and of the heads.
        queries: objects that can be found in an image; of an image with fewer pixels as many.
        encoder_layers, decoder_layers: how many.
        heads, points: of the attention.
        hidden: channels between two linear layers.
        denoising: about how many pairs of denoising queries an image with many boxes gets in training.
        loss_weights, cost_weights: of classes, L1 and IoU.
        draw: makes the noise of the denoising queries.
        least: scores of what is found must be above; of 0 all are.
        most: objects of an image.

    Raises:
        ValueError: if `dim` is no multiple of 32 and the heads.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        flavour: Flavour = FLAVOURS["detrex"],
        *,
        dim: int = 256,
        queries: int = 900,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        heads: int = 8,
        points: int = 4,
        hidden: int = 2048,
        denoising: int = 100,
        loss_weights: LossWeights | None = None,
        cost_weights: CostWeights | None = None,
        draw: Draw = draw_noise,
        least: float = 0.0,
        most: int = 300,
    ):
        super().__init__()
        if dim % _GROUPS or dim % heads:
            raise ValueError(f"dim {dim} must be a multiple of {_GROUPS} and of {heads} heads")
        self.flavour, self.num_classes, self.queries, self.least, self.most = flavour, num_classes, queries, least, most
        self.denoising, self.draw = denoising, draw
        self.loss_weights, self.cost_weights = loss_weights or LossWeights(), cost_weights or CostWeights()
        bias, levels = flavour.projection_bias, len(channels) + 1
        self.projections = nn.ModuleList(Projection(width, dim, 1, 1, bias) for width in channels)
        self.extra_projection = Projection(channels[-1], dim, 3, 2, bias)
        self.level_embedding = nn.Parameter(torch.randn(levels, dim))
        self.encoder = Encoder(encoder_layers, dim, heads, levels, points, hidden)
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.decoder = Decoder(decoder_layers, dim, heads, levels, points, hidden)
        self.query_content = nn.Embedding(queries, dim)
        self.label_content = nn.Embedding(num_classes, dim)
        # One of each for every layer of the decoder; the last are those of the encoder's pixels.
        self.classifiers = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(decoder_layers + 1))
        self.box_movers = nn.ModuleList(MLP(dim, [dim, dim, 4]) for _ in range(decoder_layers + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The authors' rule, for what its layers do not do themselves."""
        for module in (self.encoder, self.decoder, self.memory_proj):
            for name, weight in module.named_parameters():
                if weight.ndim > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                    nn.init.xavier_uniform_(weight)
        nn.init.xavier_uniform_(self.query_content.weight)
        for classifier in self.classifiers:
            nn.init.constant_(classifier.bias, _PRIOR)  # type: ignore[arg-type]
        for mover in self.box_movers:
            nn.init.zeros_(mover[-2].weight)  # type: ignore[index]
            nn.init.zeros_(mover[-2].bias)  # type: ignore[index]

    @property
    def classifier_names(self) -> list[str]:
        """What is of classes, inside of this: their vectors, what judges pixels, then the decoder's layers in turn."""
        layers = len(self.classifiers) - 1
        return ["label_content", *(f"classifiers.{at}" for at in (layers, *range(layers)))]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace what is of classes by fresh ones."""
        self.num_classes, weight = num_classes, self.label_content.weight
        with weight.device:
            self.label_content = nn.Embedding(num_classes, weight.shape[1], dtype=weight.dtype)
            for at in range(len(self.classifiers)):
                self.classifiers[at] = nn.Linear(weight.shape[1], num_classes, dtype=weight.dtype)
                nn.init.constant_(self.classifiers[at].bias, _PRIOR)  # type: ignore[arg-type]

    def losses(
        self, maps: Sequence[Tensor], truths: Sequence[Truth], padding: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch by name, scalars; the step is taken on their sum.

        Args:
            maps: the backbone's levels (B, C, h, w).
            truths: of each image.
            padding: true for pixels of no image, (B, H, W); None where there are none.
        """
        noisy = denoising_queries(
            [truth.boxes_cxcywh for truth in truths],
            [truth.labels for truth in truths],
            self.label_content,
            self.denoising,
            draw=self.draw,
        )
        selected, predicted = self(maps, padding, noisy)
        noise = 0 if noisy is None else noisy.count
        found = predicted.part(slice(noise, None))
        rules = self.flavour.rules
        logits, there = [*found.logits, selected.logits], [*found.boxes, selected.boxes]
        pairs = match(logits, there, truths, rules, self.cost_weights)
        named: dict[str, Tensor] = {}
        names = [*_layer_names(len(found.logits)), "encoder"]
        count = counted(truths, pairs[0], rules)  # of each layer, since all have as many queries
        for name, scores, moved, chosen in zip(names, logits, there, pairs, strict=True):
            parts = set_losses(scores, moved, truths, chosen, count, rules, self.loss_weights)
            named |= {f"{name}.{part}": loss for part, loss in parts.items()}
        return named | self._denoising_losses(predicted.part(slice(noise)), noisy, truths)

    def forward(
        self, maps: Sequence[Tensor], padding: Tensor | None = None, noisy: Denoising | None = None
    ) -> tuple[Selected, Predicted]:
        """What the encoder has selected, and what every layer of the decoder says.

        Args:
            maps: the backbone's levels (B, C, h, w).
            padding: true for pixels of no image, (B, H, W); none by default.
            noisy: denoising queries, which then stand in front.
        """
        seen = self.encoded(maps, padding)
        logits, box_logits = self.proposed(seen)
        selected = select(logits, box_logits, self.queries)
        boxes, content = selected.boxes.detach(), self.query_content.weight[: selected.boxes.shape[1]]
        queries, blocked = content.expand(boxes.shape[0], -1, -1), None
        if noisy is not None:
            queries = torch.cat([noisy.content, queries], 1)
            blocked = noisy.blocked(boxes.shape[1])
            boxes = torch.cat([noisy.boxes.to(boxes), boxes], 1)
        return selected, self.decoded(seen, queries, boxes, blocked)

    def encoded(self, maps: Sequence[Tensor], padding: Tensor | None = None) -> Encoded:
        """What the pixels of all levels become; maps and padding as in `forward`."""
        pixels = [project(level) for project, level in zip(self.projections, maps, strict=True)]
        pixels.append(self.extra_projection(maps[-1]))
        sizes = [(level.shape[2], level.shape[3]) for level in pixels]
        exact = torch.promote_types(pixels[0].dtype, torch.float32)
        if padding is None:
            paddings = [level.new_zeros(1, *level.shape[2:], dtype=torch.bool) for level in pixels]  # of all images
        else:
            paddings = level_padding(padding, sizes)
        flat = None if padding is None else torch.cat([each.flatten(1) for each in paddings], 1)
        flavour, dim = self.flavour, pixels[0].shape[1]
        positions = [
            map_positions(padding, dim // 2, flavour.temperature, flavour.position_offset, exact)
            for padding in paddings
        ]
        position = torch.cat(
            [each.flatten(2).transpose(1, 2) + self.level_embedding[level] for level, each in enumerate(positions)],
            1,
        )
        ratios = valid_ratios(paddings, exact)
        tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in pixels], 1)
        references = pixel_references(sizes, ratios)
        memory = self.encoder(tokens, position.to(tokens.dtype), references, sizes, flat)
        return Encoded(memory, sizes, ratios, paddings, flat)

    def proposed(self, seen: Encoded) -> tuple[Tensor, Tensor]:
        """What each pixel says: logits of classes (B, Σ h·w, classes), and of a box cxcywh (B, Σ h·w, 4).

        Those of the box are infinite where a pixel does not count.
        """
        proposals, counts = pixel_proposals(seen.paddings, seen.ratios.dtype)
        kept = seen.memory.masked_fill(~counts[..., None], 0.0)
        kept = self.memory_norm(self.memory_proj(kept))
        return self.classifiers[-1](kept), self.box_movers[-1](kept).to(proposals) + proposals

    def decoded(self, seen: Encoded, queries: Tensor, boxes: Tensor, blocked: Tensor | None = None) -> Predicted:
        """What every layer of the decoder says of queries.

        Args:
            seen: the images.
            queries: (B, n, dim).
            boxes: where they begin, cxcywh from 0 to 1, (B, n, 4).
            blocked: true where a query does not see another, (n, n).
        """
        movers = self.box_movers[:-1]
        states, moved = self.decoder(queries, boxes, seen.memory, seen.ratios, seen.sizes, movers, seen.flat, blocked)
        logits = [classify(state) for classify, state in zip(self.classifiers, states, strict=False)]
        before = [boxes, *moved[:-1]]
        there = [
            (mover(state) + inverse_sigmoid(box, self.flavour.refine_eps)).sigmoid()
            for mover, state, box in zip(self.box_movers, states, before, strict=False)
        ]
        return Predicted(logits, there)

    def surest(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], padding: Tensor | None = None) -> Surest:
        """The surest pairs of query and class of each image, boxes in its pixels; they may reach beyond it.

        detrex masks no padding in use, since it takes one image at a time; where there is some, it is masked here.

        Args:
            maps: the backbone's levels (B, C, h, w).
            sizes: height and width of each image without padding, or one of all.
            padding: true for pixels of no image, (B, H, W) or (1, H, W) of all; None where there are none.
        """
        _, predicted = self(maps, padding)
        boxes = predicted.boxes[-1]
        scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype, device=boxes.device)
        return surest(predicted.logits[-1], box_convert(boxes, "cxcywh", "xyxy") * scale[:, None], self.most)

    def places(self, maps: Sequence[Tensor]) -> int:
        """How many pixels of all levels there are for queries to begin at."""
        height, width = maps[-1].shape[2:]
        return sum(level.shape[2] * level.shape[3] for level in maps) + -(-height // 2) * -(-width // 2)

    def _denoising_losses(
        self, predicted: Predicted, noisy: Denoising | None, truths: Sequence[Truth]
    ) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        layers, groups = len(predicted.logits), 0 if noisy is None else noisy.groups
        total = counted_noisy(truths, groups, self.flavour.rules)  # by every process, whether it has boxes or not
        for name, logits, there in zip(_layer_names(layers), predicted.logits, predicted.boxes, strict=True):
            if noisy is None:  # the class vectors still take part, for who waits for their gradient
                parts = dict.fromkeys(("label", "l1", "iou"), 0.0 * self.label_content.weight.sum())
            else:
                parts = set_losses(logits, there, truths, noisy.targets, total, self.flavour.rules, self.loss_weights)
            named |= {f"denoising_{name}.{part}": loss for part, loss in parts.items()}
        return named


def _layer_names(count: int) -> list[str]:
    return [f"layer{index}" for index in range(count)]
