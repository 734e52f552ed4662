"""Sparse R-CNN: a fixed set of learnt proposals, whose boxes six stages move; no anchors, no suppression.

Source: "Sparse R-CNN: end-to-end object detection with learnable proposals", Sun et al., CVPR 2021, arXiv 2011.12450,
as mmdetection computes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from convattn.detection.dynamic_head import DynamicHead, moved_boxes
from convattn.detection.post_processing import Surest, surest
from convattn.detection.region_features import region_features, regions_of_all_levels, with_images
from convattn.detection.set_losses import SPARSE, LossWeights, counted, match, set_losses
from convattn.detection.set_matching import CostWeights
from convattn.detection.truth import Truth

__all__ = ["SparseHead", "Stage", "read_all_levels", "read_own_level"]

Read = Callable[[Sequence[Tensor], Tensor], Tensor]  # levels, boxes xyxy (B, n, 4) -> regions (B · n, dim, 7, 7)

_SIDE = 7  # pixels of a region
_SAMPLES = 2  # of each pixel, at a side


def read_own_level(maps: Sequence[Tensor], boxes_xyxy: Tensor) -> Tensor:
    """What lies in the boxes (B, n, 4), each on the level of its size: (B · n, dim, 7, 7)."""
    return region_features(maps, with_images([*boxes_xyxy]), _SIDE, samples=_SAMPLES)


def read_all_levels(maps: Sequence[Tensor], boxes_xyxy: Tensor) -> Tensor:
    """The same, in steps that do not depend on the numbers: for exported files."""
    return regions_of_all_levels(maps, boxes_xyxy, _SIDE, samples=_SAMPLES)


@dataclass(frozen=True)
class Stage:
    """What a stage says."""

    logits: Tensor  # (B, n, classes)
    boxes_xyxy: Tensor  # (B, n, 4) pixels of the padded batch
    proposals: Tensor  # (B, n, dim)


class SparseHead(nn.Module):
    """All of Sparse R-CNN that stands on a neck.

    Args:
        dim: channels of the neck's levels, of strides 4, 8, 16 and 32.
        num_classes: classes of objects.
        proposals: objects that can be found in an image.
        stages: how many.
        heads, hidden, inner: as of `DynamicHead`.
        loss_weights, cost_weights: of classes, L1 and IoU.
        least: scores of what is found must be above; of 0 all are.
        most: objects of an image; as many as there are proposals by default.

    Raises:
        ValueError: if the heads do not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        proposals: int = 300,
        stages: int = 6,
        heads: int = 8,
        hidden: int = 2048,
        inner: int = 64,
        loss_weights: LossWeights | None = None,
        cost_weights: CostWeights | None = None,
        least: float = 0.0,
        most: int | None = None,
    ):
        super().__init__()
        self.num_classes, self.queries, self.least, self.most = num_classes, proposals, least, most or proposals
        self.loss_weights = loss_weights or LossWeights(label=2.0)
        self.cost_weights = cost_weights or CostWeights()
        self.proposal_boxes = nn.Embedding(proposals, 4)  # cxcywh, 0 to 1 over the image
        self.proposal_features = nn.Embedding(proposals, dim)
        self.stages = nn.ModuleList(
            DynamicHead(dim, num_classes, heads, hidden, inner, _SIDE**2) for _ in range(stages)
        )
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))

    @property
    def classifier_names(self) -> list[str]:
        """What tells classes, inside of this, stage by stage."""
        return [f"stages.{at}.classifier" for at in range(len(self.stages))]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace what tells classes by fresh layers."""
        self.num_classes = num_classes
        for stage in self.stages:
            stage.reset_classifier(num_classes)  # type: ignore[operator]

    def forward(
        self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], read: Read = read_own_level
    ) -> list[Stage]:
        """What each stage says of images.

        Args:
            maps: the neck's levels (B, dim, h, w).
            sizes: height and width of each image without padding, or one of all.
            read: how what lies in a box is read.
        """
        exact = torch.promote_types(maps[0].dtype, torch.float32)
        scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=exact, device=maps[0].device)
        boxes = box_convert(self.proposal_boxes.weight.to(exact), "cxcywh", "xyxy") * scale[:, None]
        boxes = boxes.expand(maps[0].shape[0], -1, -1)
        proposals = self.proposal_features.weight.expand(maps[0].shape[0], -1, -1)
        said = []
        for stage in self.stages:
            logits, deltas, proposals = stage(proposals, read(maps, boxes))
            moved = moved_boxes(boxes, deltas)
            said.append(Stage(logits, moved, proposals))
            boxes = moved.detach()
        return said

    def losses(
        self, maps: Sequence[Tensor], truths: Sequence[Truth], padding: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch by name, scalars; the step is taken on their sum.

        Args:
            maps: the neck's levels (B, dim, h, w).
            truths: of each image.
            padding: not looked at; the truths' sizes say it.
        """
        said = self(maps, [truth.size for truth in truths])
        scale = torch.stack([truth.scale for truth in truths])[:, None]
        boxes = [box_convert(stage.boxes_xyxy / scale, "xyxy", "cxcywh") for stage in said]
        chosen = match([stage.logits for stage in said], boxes, truths, SPARSE, self.cost_weights)
        named: dict[str, Tensor] = {}
        # The same of every stage. At least 1: mmdetection divides by almost nothing where no image has a box.
        count = counted(truths, chosen[0], SPARSE)
        for index, (stage, there, pairs) in enumerate(zip(said, boxes, chosen, strict=True)):
            parts = set_losses(stage.logits, there, truths, pairs, count, SPARSE, self.loss_weights)
            named |= {f"stage{index}.{name}": loss for name, loss in parts.items()}
        return named

    def places(self, maps: Sequence[Tensor]) -> int:
        """How many places there are for proposals to begin at: one for each, since they are learnt."""
        return self.queries

    def surest(
        self,
        maps: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        padding: Tensor | None = None,
        read: Read = read_own_level,
    ) -> Surest:
        """The surest pairs of proposal and class of each image, boxes in its pixels; they may reach beyond it.

        Args:
            maps: the neck's levels (B, dim, h, w).
            sizes: height and width of each image without padding, or one of all.
            padding: not looked at; sizes say it.
            read: how what lies in a box is read.
        """
        last = self(maps, sizes, read)[-1]
        return surest(last.logits, last.boxes_xyxy, self.most)

    def products(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Classes and boxes' steps of all stages: what costs are counted of. What lies in regions does not matter."""
        batch, dim = maps[0].shape[:2]
        regions = maps[0].new_zeros(batch * self.queries, dim, _SIDE, _SIDE)
        proposals, made = self.proposal_features.weight.expand(batch, -1, -1), []
        for stage in self.stages:
            logits, deltas, proposals = stage(proposals, regions)
            made += [logits, deltas]
        return made
