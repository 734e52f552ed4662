"""Detectors by queries in a graph of fixed shapes: what `ExportForm` and `Numbers` write of them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from convattn.detection.dino import DinoHead
from convattn.detection.image_batch import of_one_size
from convattn.detection.query_detectors import QueryDetector
from convattn.detection.sparse_rcnn import SparseHead, read_all_levels

__all__ = ["query_numbers", "query_rows"]


def query_rows(detector: QueryDetector, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The surest pairs of a query and a class in images (B, 3, H, W): boxes (B, n, 4) xyxy, scores and labels (B, n).

    The score of what the detector does not show is -1.
    """
    rows = detector.surest(images)
    shown = detector.shown(rows.boxes_xyxy, rows.scores)
    return rows.boxes_xyxy, rows.scores if shown is None else rows.scores.where(shown, -1.0), rows.labels


def query_numbers(detector: QueryDetector, images: Tensor, places: Tensor) -> dict[str, Tensor]:
    """All that layers say of images (B, 3, H, W), with queries that begin at boxes of their own.

    Where queries begin, and in Sparse R-CNN from which level a region is read, follows from comparisons of numbers. So
    boxes are given here, and Sparse R-CNN's stay where they are.

    Args:
        detector: any by queries.
        images: (B, 3, H, W), normalised.
        places: boxes xyxy from 0 to 1 over the images, (n, 4); as many queries take turns with them as there are.
    """
    batch = of_one_size(images, detector.side_multiple)
    levels, head = detector.pyramid(batch.pixels), detector.head
    places = places[torch.arange(head.queries, device=places.device) % len(places)].expand(images.shape[0], -1, -1)
    if isinstance(head, DinoHead):
        return _of_dino(head, levels, batch.padding, places)
    height, width = batch.sizes[0]
    scale = torch.stack([places.new_full((), side) for side in (width, height, width, height)])
    return _of_sparse(head, levels, places * scale)


def _of_dino(head: DinoHead, levels: Sequence[Tensor], padding: Tensor | None, places: Tensor) -> dict[str, Tensor]:
    seen = head.encoded(levels, padding)
    logits, box_logits = head.proposed(seen)
    queries = head.query_content.weight.expand(places.shape[0], -1, -1)
    said = head.decoded(seen, queries, box_convert(places, "xyxy", "cxcywh"))
    named = {"pixel_logits": logits, "pixel_boxes": box_logits}
    named |= {f"logits_{number}": one for number, one in enumerate(said.logits)}
    return named | {f"boxes_{number}": one for number, one in enumerate(said.boxes)}


def _of_sparse(head: SparseHead, levels: Sequence[Tensor], boxes_xyxy: Tensor) -> dict[str, Tensor]:
    regions, named = read_all_levels(levels, boxes_xyxy), {}
    proposals = head.proposal_features.weight.expand(boxes_xyxy.shape[0], -1, -1)
    for number, stage in enumerate(head.stages):
        named[f"logits_{number}"], named[f"steps_{number}"], proposals = stage(proposals, regions)
    return named
