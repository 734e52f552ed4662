"""Sparse R-CNN: a fixed set of learnt proposals, whose boxes six stages move; no anchors, no suppression.

Source: "Sparse R-CNN: end-to-end object detection with learnable proposals", Sun et al., CVPR 2021, arXiv 2011.12450,
as mmdetection computes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from convattn.detection.dynamic_head import DynamicHead, moved_boxes
from convattn.detection.region_features import region_features, with_images
from convattn.detection.set_losses import SPARSE, LossWeights, counted, match, set_losses
from convattn.detection.set_matching import CostWeights
from convattn.detection.truth import Truth

__all__ = ["SparseHead", "Stage"]

_SIDE = 7  # pixels of a region
_SAMPLES = 2  # of each pixel, at a side


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
    ):
        super().__init__()
        self.num_classes = num_classes
        self.loss_weights = loss_weights or LossWeights(label=2.0)
        self.cost_weights = cost_weights or CostWeights()
        self.proposal_boxes = nn.Embedding(proposals, 4)  # cxcywh, 0 to 1 over the image
        self.proposal_features = nn.Embedding(proposals, dim)
        self.stages = nn.ModuleList(
            DynamicHead(dim, num_classes, heads, hidden, inner, _SIDE**2) for _ in range(stages)
        )
        with torch.no_grad():
            self.proposal_boxes.weight.copy_(torch.tensor([0.5, 0.5, 1.0, 1.0]))

    def forward(self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Stage]:
        """What each stage says of images.

        Args:
            maps: the neck's levels (B, dim, h, w).
            sizes: height and width of each image without padding.
        """
        exact = torch.promote_types(maps[0].dtype, torch.float32)
        scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=exact, device=maps[0].device)
        boxes = box_convert(self.proposal_boxes.weight.to(exact), "cxcywh", "xyxy") * scale[:, None]
        proposals = self.proposal_features.weight.expand(len(sizes), -1, -1)
        said = []
        for stage in self.stages:
            logits, deltas, proposals = stage(proposals, self._regions(maps, boxes))
            moved = moved_boxes(boxes, deltas)
            said.append(Stage(logits, moved, proposals))
            boxes = moved.detach()
        return said

    def losses(self, maps: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """The losses of a batch by name, scalars; the step is taken on their sum.

        Args:
            maps: the neck's levels (B, dim, h, w).
            truths: of each image.
        """
        said = self(maps, [truth.size for truth in truths])
        scale = torch.stack([truth.scale for truth in truths])[:, None]
        boxes = [box_convert(stage.boxes_xyxy / scale, "xyxy", "cxcywh") for stage in said]
        chosen = match([stage.logits for stage in said], boxes, truths, SPARSE, self.cost_weights)
        named: dict[str, Tensor] = {}
        for index, (stage, there, pairs) in enumerate(zip(said, boxes, chosen, strict=True)):
            # At least 1: mmdetection divides by almost nothing where no image has a box.
            count = counted(truths, pairs, SPARSE)
            parts = set_losses(stage.logits, there, truths, pairs, count, SPARSE, self.loss_weights)
            named |= {f"stage{index}.{name}": loss for name, loss in parts.items()}
        return named

    def detections(
        self, maps: Sequence[Tensor], sizes: Sequence[tuple[int, int]], most: int | None = None
    ) -> list[dict[str, Tensor]]:
        """The surest pairs of proposal and class of each image, as torchvision has them: boxes_xyxy, scores, labels.

        Args:
            maps: the neck's levels (B, dim, h, w).
            sizes: height and width of each image without padding.
            most: how many an image; as many as there are proposals by default.
        """
        last = self(maps, sizes)[-1]
        exact = torch.promote_types(last.logits.dtype, torch.float32)
        probable = last.logits.to(exact).sigmoid().flatten(1)
        scores, index = probable.topk(min(most or len(self.proposal_boxes.weight), probable.shape[1]), dim=1)
        query = index.div(self.num_classes, rounding_mode="floor")
        boxes = last.boxes_xyxy.gather(1, query[..., None].expand(-1, -1, 4))
        return [
            {"boxes": boxes[at], "scores": scores[at], "labels": index[at] % self.num_classes}
            for at in range(len(sizes))
        ]

    def _regions(self, maps: Sequence[Tensor], boxes_xyxy: Tensor) -> Tensor:
        """What lies in the boxes (B, n, 4), each on the level of its size: (B · n, dim, 7, 7)."""
        return region_features(maps, with_images([*boxes_xyxy]), _SIDE, samples=_SAMPLES)
