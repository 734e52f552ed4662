"""Denoising queries: true boxes with noise, which the decoder learns to mend (little noise) or to refuse (more of it).

Source: "DINO", Zhang et al., ICLR 2023, arXiv 2203.03605, section 3.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convattn.detection.positions import inverse_sigmoid

__all__ = ["Denoising", "Noise", "denoising_queries", "draw_noise"]

_NOISY_LABELS = 0.25  # share of the rows whose label is drawn anew: half of the paper's rate


@dataclass(frozen=True)
class Noise:
    """What is random about the denoising queries of a batch, a row for each box and repeat."""

    chance: Tensor  # (rows,) 0 to 1: below a quarter the label is drawn anew
    labels: Tensor  # (rows,) int64, those drawn
    signs: Tensor  # (rows, 4) -1 or 1
    parts: Tensor  # (rows, 4) 0 to 1


Draw = Callable[[int, int, torch.device, torch.dtype], Noise]  # rows, classes -> noise


def draw_noise(rows: int, classes: int, device: torch.device, dtype: torch.dtype) -> Noise:
    """Noise from torch's generator."""
    return Noise(
        torch.rand(rows, device=device),
        torch.randint(0, classes, (rows,), device=device),
        torch.randint(0, 2, (rows, 4), device=device).to(dtype) * 2 - 1,
        torch.rand(rows, 4, device=device, dtype=dtype),
    )


@dataclass(frozen=True)
class Denoising:
    """The denoising queries of a batch; they stand in front of the others."""

    content: Tensor  # (B, n, dim)
    boxes: Tensor  # (B, n, 4) cxcywh, 0 to 1
    groups: int
    size: int  # queries of a group: as many positive as negative ones
    targets: list[tuple[Tensor, Tensor]]  # of each image the queries that stand for a box, and which of its boxes

    @property
    def count(self) -> int:
        """How many they are."""
        return self.groups * self.size

    def blocked(self, others: int) -> Tensor:
        """True where a query does not see another, with so many others behind.

        Those see no noisy one, and a group of these sees no other group.
        """
        device, count = self.content.device, self.count
        group = torch.arange(count + others, device=device).div(self.size, rounding_mode="floor").clamp(max=self.groups)
        is_noisy = torch.arange(count + others, device=device) < count
        return is_noisy[None] & (group[:, None] != group[None])


def denoising_queries(
    boxes_cxcywh: Sequence[Tensor],
    labels: Sequence[Tensor],
    embedding: nn.Embedding,
    number: int,
    box_noise: float = 1.0,
    draw: Draw = draw_noise,
) -> Denoising | None:
    """The queries of a batch; None where no image has a box.

    Args:
        boxes_cxcywh: of each image, (n, 4), 0 to 1.
        labels: of these, (n,) int64.
        embedding: a vector for each class.
        number: about how many pairs of queries the image with the most boxes gets.
        box_noise: how far a corner of a positive query may lie from the true one, in halves of the box; that of a
            negative one lies beyond, up to twice as far.
        draw: makes the noise.
    """
    counts = [len(each) for each in boxes_cxcywh]
    most, total, device = max(counts, default=0), sum(counts), embedding.weight.device
    if not total:
        return None
    groups = max(1, number // most)
    every, truth = torch.cat([*boxes_cxcywh]), torch.cat([*labels])
    rows = 2 * groups * total
    noise = draw(rows, embedding.num_embeddings, device, every.dtype)
    repeat = torch.arange(2 * groups, device=device)
    drawn = torch.where(noise.chance < _NOISY_LABELS, noise.labels, truth.repeat(2 * groups))
    moved = _moved(every.repeat(2 * groups, 1), noise, (repeat % 2 == 1).repeat_interleave(total), box_noise)
    image = torch.cat([torch.full((count,), at, device=device) for at, count in enumerate(counts)])
    within = torch.cat([torch.arange(count, device=device) for count in counts])
    slot = (repeat[:, None] * most + within).flatten()
    image = image.repeat(2 * groups)
    content = embedding.weight.new_zeros(len(counts), 2 * groups * most, embedding.embedding_dim)
    content = content.index_put((image, slot), embedding(drawn).to(content.dtype))
    there = moved.new_full((len(counts), 2 * groups * most, 4), 0.5)
    there = there.index_put((image, slot), moved)
    steps = torch.arange(groups, device=device)[:, None] * (2 * most)
    targets = []
    for count in counts:
        own = torch.arange(count, device=device)
        targets.append(((steps + own).flatten(), own.repeat(groups)))
    return Denoising(content, there, groups, 2 * most, targets)


def _moved(boxes_cxcywh: Tensor, noise: Noise, negative: Tensor, strength: float) -> Tensor:
    """Boxes with their corners moved, clamped to the image; corners may cross."""
    parts = noise.parts + negative[:, None].to(noise.parts)
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    corners = torch.cat([centre - half, centre + half], 1)
    corners = (corners + noise.signs * parts * torch.cat([half, half], 1) * strength).clamp(0, 1)
    low, high = corners[:, :2], corners[:, 2:]
    moved = torch.cat([(low + high) / 2, high - low], 1)
    return inverse_sigmoid(moved).sigmoid()  # as the decoder takes them
