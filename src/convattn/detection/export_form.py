"""A detector as a graph of fixed shapes: a batch of images in, as many rows out for every image.

A graph can have no list of a length that only the numbers tell. So nothing is taken out of a table here: what is not
wanted stays in it with a score of -1, behind all that is, and as many rows as may be found are taken from the top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from convattn.detection.anchors import flattened
from convattn.detection.best import best
from convattn.detection.detector import DenseDetector, Detector, RegionDetector
from convattn.detection.image_batch import MULTIPLE
from convattn.detection.query_detectors import QueryDetector
from convattn.detection.query_form import query_numbers, query_rows
from convattn.detection.region_features import regions_of_all_levels
from convattn.detection.region_proposals import OVERLAP
from convattn.detection.region_stage import BOX_SIDE, MASK_SIDE, RegionStages

__all__ = ["MOST_PAIRS", "NOTHING", "ExportForm", "Numbers"]

NOTHING = -1  # the label of a row that holds nothing; its score is 0

MOST_PAIRS = 5000  # of region and class of an image, the surest: those that are looked at in the second stage


class _Form(nn.Module):
    """What is shared by the forms of a detector that are written to files.

    Args:
        detector: in evaluation mode when it is written.
    """

    task_kind = "detection"
    formats = ("onnx", "openvino", "torch_export", "aot_inductor")  # that know suppression, or can be taught it
    in_float32 = ("detector.bbox_head", "detector.rpn_head", "detector.roi_head", "detector.head")  # in files of 8 bits

    def __init__(self, detector: Detector):
        super().__init__()
        found: Any = detector
        self.detector = detector
        self.num_classes: int = detector.num_classes
        self.has_masks: bool = detector.has_masks
        self.fixed_size: tuple[int, int] | None = found.fixed_size
        self.size_multiple: int = found.size_multiple
        self.pretrained_cfg: dict[str, Any] = found.pretrained_cfg
        self.train(detector.training)

    def levels(self, images: Tensor) -> list[Tensor]:
        """The neck's levels of images (B, 3, H, W), which are padded to multiples of 32 as the detector does it."""
        height, width = images.shape[2:]
        padded = nn.functional.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        return self.detector.pyramid(padded)

    def products(self, images: Tensor) -> list[Tensor]:
        """As the detector's: what its layers compute, by shapes alone."""
        return self.detector.products(images)


class ExportForm(_Form):
    """A detector that gives what it finds as tables with a fixed number of rows, the surest first.

    Images are cut off at the size of the batch. What is found is what the detector finds, but for rounding, with two
    exceptions: of R-CNN `MOST_PAIRS` pairs of region and class are looked at, where the detector looks at all whose
    score is above its threshold; and boxes of Sparse R-CNN end at the image, which the detector's own may leave.

    Args:
        detector: any; thresholds and counts are those that it has when this is called.
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W), normalised -> tables of n rows, `detector.max_detections`.

        Returns:
            `boxes` (B, n, 4) xyxy in pixels of the images, `scores` (B, n), `labels` (B, n) int64 from 0; of detectors
            that draw masks `masks` (B, n, 28, 28), how sure the pixels of a box are of its object, 0 to 1, to be put
            into the picture by `convattn.detection.masks.pasted`. Rows behind the last object have score 0, label
            `NOTHING`, and boxes and masks of zeros.
        """
        detector, edges = self.detector, _edges(images)
        if isinstance(detector, QueryDetector):
            boxes, scores, labels = query_rows(detector, images)
            return _named(_Table(_cut(boxes, edges), scores, labels).rows(scores, detector.max_detections))
        levels = self.levels(images)
        if isinstance(detector, DenseDetector):
            head = detector.bbox_head
            likely = head.candidates(*head(levels))
            boxes = _cut(likely.boxes_xyxy, edges)
            there = likely.class_scores > head.least
            table = _Table(boxes, likely.scores.where(there, -1.0), likely.labels)
            return _named(_best(table, head.overlap, head.num_classes, head.most))
        assert isinstance(detector, RegionDetector)
        heads = detector.roi_head
        table = _pairs(heads, levels, _proposals(detector, levels, edges), edges)
        found = _best(table, heads.overlap, heads.num_classes, heads.most)
        return _named(found) | ({"masks": _shares(heads, levels, found)} if detector.has_masks else {})


class Numbers(_Form):
    """All that a detector computes before it decides anything: what two forms of it can be compared by.

    Regions that R-CNN looks at follow from comparisons of numbers, so here they are others: the same for every image,
    of every size.

    Args:
        detector: as `ExportForm` takes it.
    """

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) -> the maps of the heads by name and level, and what is said of the regions."""
        detector = self.detector
        if isinstance(detector, QueryDetector):
            return query_numbers(detector, images, images.new_tensor(_SHARES))
        levels = self.levels(images)
        if isinstance(detector, DenseDetector):
            parts = zip(("logits", "steps", "centers"), detector.bbox_head(levels), strict=True)
            return {
                f"{name}_{level}": one for name, maps in parts if maps is not None for level, one in enumerate(maps)
            }
        assert isinstance(detector, RegionDetector)
        logits, steps = detector.rpn_head(levels)
        found = {f"proposal_logits_{level}": one for level, one in enumerate(logits)}
        found |= {f"proposal_steps_{level}": one for level, one in enumerate(steps)}
        heads = detector.roi_head
        boxes = (images.new_tensor(_SHARES) * _edges(images)).expand(images.shape[0], -1, -1)
        there = boxes[..., 0] >= 0
        for number, head in enumerate(heads.box_heads):
            said, steps = head(_seen(heads, levels, boxes, there, BOX_SIDE))
            found |= {f"region_logits_{number}": said, f"region_steps_{number}": steps.flatten(1)}
        seen = _seen(heads, levels, boxes, there, MASK_SIDE)
        return found | {f"mask_logits_{number}": head(seen) for number, head in enumerate(heads.mask_heads)}


# Regions of the sides of an image that `Numbers` looks at, xyxy: some that are read from each level, of any size.
_SHARES = tuple(
    (left * side, top * side, (left + 1) * side, (top + 1) * side)
    for side in (1.0, 1 / 2, 1 / 4, 1 / 9, 1 / 25)
    for left, top in ((0, 0), (round(1 / side) // 2, round(1 / side) // 2), (round(1 / side) - 1, 0))
)


@dataclass(frozen=True)
class _Table:
    """Rows of images, some of which hold nothing: their score is below 0."""

    boxes: Tensor  # (B, n, 4) xyxy pixels
    scores: Tensor  # (B, n)
    labels: Tensor  # (B, n) int64: the class, or the level of a proposal

    @property
    def there(self) -> Tensor:
        """Which rows hold something, (B, n) bool."""
        return self.scores >= 0

    def rows(self, scores: Tensor, count: int) -> "_Table":
        """The `count` rows that are best by `scores` (B, n), the best first; of fewer the rest holds nothing."""
        # The number of rows may not be known, so there are enough of them in any case.
        table, scores = _filled(self, count), nn.functional.pad(scores, (0, count), value=-1.0)
        sure, index = scores.topk(count, dim=1)
        boxes = table.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return _Table(boxes, sure, table.labels.gather(1, index))


def _filled(table: _Table, count: int) -> _Table:
    """With `count` rows more, that hold nothing."""
    pad = nn.functional.pad
    return _Table(
        pad(table.boxes, (0, 0, 0, count)), pad(table.scores, (0, count), value=-1.0), pad(table.labels, (0, count))
    )


def _named(table: _Table) -> dict[str, Tensor]:
    there = table.there
    return {
        "boxes": table.boxes.where(there[..., None], 0.0),
        "scores": table.scores.where(there, 0.0),
        "labels": table.labels.where(there, NOTHING),
    }


def _edges(images: Tensor) -> Tensor:
    """Width, height, width, height of images (B, 3, H, W), in float32, which tells pixels apart; (4,)."""
    height, width = images.shape[2:]
    x, y = (torch.full((1,), side, dtype=torch.float32, device=images.device) for side in (width, height))
    return torch.cat([x, y, x, y])


def _cut(boxes: Tensor, edges: Tensor) -> Tensor:
    return torch.minimum(boxes.clamp(min=0), edges.to(boxes))


def _best(table: _Table, overlap: float, kinds: int, count: int) -> _Table:
    """The surest rows without those that overlap a surer one of the same label by more than `overlap`."""
    return table.rows(table.scores.where(_survives(table, overlap, kinds), -1.0), count)


def _survives(table: _Table, overlap: float, kinds: int) -> Tensor:
    """Which rows are overlapped by no surer one of their image and label, (B, n) bool.

    One suppression is done for all of them, with each image and label in a place of its own. The places lie in a
    square, where numbers stay small: behind one another they would be rounded to hundredths of a pixel.
    """
    boxes, there = table.boxes, table.there
    across = int(kinds**0.5 + 0.999)
    down = -(-kinds // across)
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    x = table.labels % across
    y = table.labels.div(across, rounding_mode="floor") + images * down
    place = torch.stack([x, y, x, y], -1).to(boxes) * (boxes.flatten().amax(0) + 1)
    nowhere = boxes.new_tensor([-3.0, -3.0, -2.0, -2.0])  # where all rows that hold nothing lie on one another
    apart = (boxes + place).where(there[..., None], nowhere)
    kept = nms(apart.flatten(0, 1), table.scores.flatten(), overlap)
    marked = torch.zeros_like(table.scores).flatten().scatter(0, kept, 1.0)
    return (marked.view_as(table.scores) > 0) & there


# R-CNN


def _proposals(detector: RegionDetector, levels: Sequence[Tensor], edges: Tensor) -> _Table:
    """Where there may be objects; the score of what is something is between 0 and 1."""
    head = detector.rpn_head
    kept = head.kept[False]
    logits, steps = head(levels)
    exact = torch.promote_types(logits[0].dtype, torch.float32)
    parts = []
    for number, (logit, step) in enumerate(zip(flattened(logits, 1), flattened(steps, 4), strict=True)):
        anchors = head.anchors.boxes(number, (logits[number].shape[2], logits[number].shape[3]), logit.to(exact))
        score, index = best(logit[..., 0].to(exact), kept.of_level)
        moves = step.to(exact).gather(1, index[..., None].expand(-1, -1, 4))
        boxes = _cut(head.coder.decode(anchors[index], moves), edges)
        parts.append((boxes, score, torch.full_like(index, number)))
    boxes, score, level = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    real = (boxes[..., 2:] - boxes[..., :2] > head.smallest).all(-1) & (score > -torch.inf)
    return _best(_Table(boxes, score.sigmoid().where(real, -1.0), level), OVERLAP, len(levels), kept.of_image)


def _pairs(heads: RegionStages, levels: Sequence[Tensor], proposals: _Table, edges: Tensor) -> _Table:
    """The surest pairs of region and class."""
    boxes, there, several = proposals.boxes, proposals.there, len(heads.stages)
    logits, steps = [], boxes
    for number, (head, stage) in enumerate(zip(heads.box_heads, heads.stages, strict=True)):
        said, steps = head(_seen(heads, levels, boxes, there, BOX_SIDE))
        exact = torch.promote_types(said.dtype, torch.float32)
        shape = (boxes.shape[0], boxes.shape[1])
        said, steps = said.to(exact).unflatten(0, shape), steps.to(exact).unflatten(0, shape)
        logits.append(said)
        if number + 1 < several:
            own = said[..., :-1].argmax(-1) if steps.shape[2] > 1 else torch.zeros_like(proposals.labels)
            moved = steps.gather(2, own[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
            boxes = _cut(stage.coder.decode(boxes, moved), edges)
    if heads.rules.averages == "logits":
        scores = (sum(logits) / several).softmax(-1)
    else:
        scores = sum(one.softmax(-1) for one in logits) / several
    scores = scores[..., :-1]
    scores = scores.where(there[..., None] & (scores > heads.least), -1.0).flatten(1)
    sure, index = best(scores, MOST_PAIRS)
    region, labels = index.div(heads.num_classes, rounding_mode="floor"), index % heads.num_classes
    own = labels if steps.shape[2] > 1 else torch.zeros_like(labels)
    moves = steps.flatten(1, 2).gather(1, (region * steps.shape[2] + own)[..., None].expand(-1, -1, 4))
    of_pairs = boxes.gather(1, region[..., None].expand(-1, -1, 4))
    return _Table(_cut(heads.stages[-1].coder.decode(of_pairs, moves), edges), sure, labels)


def _shares(heads: RegionStages, levels: Sequence[Tensor], found: _Table) -> Tensor:
    """How sure the pixels of each row's box are of its object, (B, n, 28, 28); 0 where there is none."""
    seen = _seen(heads, levels, found.boxes, found.there, MASK_SIDE)
    own = found.labels.flatten().where(found.there.flatten(), 0)
    shares = []
    for head in heads.mask_heads:
        logits = head(seen)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen = logits.gather(1, own[:, None, None, None].expand(-1, 1, *logits.shape[2:]))
        shares.append(chosen[:, 0].sigmoid())
    mean = (sum(shares) / len(shares)).unflatten(0, found.scores.shape)
    return mean.where(found.there[..., None, None], 0.0)


def _seen(heads: RegionStages, levels: Sequence[Tensor], boxes: Tensor, there: Tensor, side: int) -> Tensor:
    """Regions (B · n, C, side, side) of boxes (B, n, 4); zeros of what is nothing."""
    return regions_of_all_levels(levels, boxes, side, eps=heads.rules.level_eps, there=there)
