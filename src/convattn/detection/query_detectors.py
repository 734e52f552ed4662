"""Detectors by queries: a set of vectors, each of which stands for one object or for none; nothing is suppressed.

Sparse R-CNN stands on a feature pyramid, DINO on the backbone's own levels.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from convattn.backbones.levels import Level
from convattn.detection.detector import Detector, Sizes
from convattn.detection.dino import DinoHead
from convattn.detection.feature_pyramid import FeaturePyramid
from convattn.detection.image_batch import ImageBatch, of_one_size
from convattn.detection.post_processing import Surest, stretch
from convattn.detection.sparse_rcnn import SparseHead, read_all_levels
from convattn.detection.truth import Truth
from convattn.weights.detectors import NO_WEIGHTS
from convattn.weights.query_detectors import DETREX_DINO_NAMES, MMDET_DINO_NAMES, SPARSE_RCNN_NAMES
from convattn.weights.rename import SAME_NAMES, NameMap, Part, joined_names

__all__ = ["DinoDetector", "QueryDetector", "QueryNote", "SparseDetector"]


class QueryNote(UserWarning):
    """Fewer queries look for objects than were asked for, or than there are objects."""


class QueryDetector(Detector):
    """What both have in common.

    Args:
        head: all that stands on the neck's levels.
        backbone, levels, neck, frozen_stages, frozen_norms: as in `Detector`.
    """

    head: SparseHead | DinoHead

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[Level],
        neck: nn.Module,
        head: SparseHead | DinoHead,
        **frozen: Any,
    ):
        super().__init__(backbone, levels, neck, **frozen)
        self.head = head

    @property
    def finder(self) -> SparseHead | DinoHead:
        """The head that says what is found."""
        return self.head

    @property
    def classifier_names(self) -> list[str]:
        """The modules that tell classes, the last layer's at the end."""
        return [f"head.{name}" for name in self.head.classifier_names]

    def losses_of(
        self, levels: Sequence[Tensor], truths: Sequence[Truth], padding: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As `Detector.losses_of`; padding is true for pixels of no image, (B, H, W), None where there are none."""
        queries = self._queries(levels)
        most = max(map(len, truths))
        if most > queries:
            warnings.warn(
                f"an image has {most} objects and {queries} queries look for them: {most - queries} are not learnt",
                QueryNote,
                stacklevel=2,
            )
        return self.head.losses(levels, truths, padding)

    def found_in(
        self, levels: Sequence[Tensor], sizes: Sizes, originals: Sizes | None = None, padding: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """As `Detector.found_in`, with the number of each one's query, `queries` (n,); padding as in `losses_of`."""
        rows = self.surest_of(levels, sizes, padding)
        found = []
        for at, size in enumerate(sizes):
            boxes = rows.boxes_xyxy[at]
            if originals is not None:
                boxes = boxes / stretch(size, originals[at], boxes)
            one = {"boxes": boxes, "scores": rows.scores[at], "labels": rows.labels[at], "queries": rows.queries[at]}
            kept = self.shown(boxes, one["scores"])
            found.append(one if kept is None else {name: part[kept] for name, part in one.items()})
        return found

    def surest(self, images: Tensor) -> Surest:
        """What is found in images (B, 3, H, W), in a number of rows that does not depend on what they hold.

        Neither `score_threshold` nor an empty box takes a row away, and no image is looked at for itself: the form for
        exported files. There are `max_detections` rows an image, or as many as there are pairs of a query and a class.
        """
        batch = of_one_size(images, self.side_multiple)
        return self.surest_of(self.pyramid(batch.pixels), batch.sizes, batch.padding)

    def surest_of(self, levels: Sequence[Tensor], sizes: Sizes, padding: Tensor | None = None) -> Surest:
        """The same of the neck's levels; sizes are height and width of the images without padding, or one of all."""
        self._queries(levels)
        return self.head.surest(levels, sizes, padding)

    def shown(self, boxes_xyxy: Tensor, scores: Tensor) -> Tensor | None:
        """Which rows with boxes (…, 4) and scores (…) are shown, (…) bool; None for all."""
        return scores > self.head.least if self.head.least > 0 else None

    def _losses_in(self, batch: ImageBatch, truths: Sequence[Truth]) -> dict[str, Tensor]:
        return self.losses_of(self.pyramid(batch.pixels), truths, batch.padding)

    def _found_in(self, batch: ImageBatch, originals: Sizes | None) -> list[dict[str, Tensor]]:
        return self.found_in(self.pyramid(batch.pixels), batch.sizes, originals, batch.padding)

    def _queries(self, levels: Sequence[Tensor]) -> int:
        """How many queries there are for these levels; a note where they are fewer than were asked for."""
        places = self.head.places(levels)
        if places < self.head.queries:
            warnings.warn(
                f"images of this size have {places} places for {self.head.queries} queries to begin at, so {places} "
                "are used; take larger images, or fewer queries",
                QueryNote,
                stacklevel=2,
            )
        return min(places, self.head.queries)


class SparseDetector(QueryDetector):
    """Sparse R-CNN, as mmdetection computes it. Boxes that are found may reach beyond the image.

    Args:
        backbone, levels, frozen_stages, frozen_norms: as in `Detector`, levels of strides 4, 8, 16 and 32.
        neck: with as many levels.
        head: on them.
    """

    head: SparseHead

    def __init__(
        self, backbone: nn.Module, levels: Sequence[Level], neck: FeaturePyramid, head: SparseHead, **frozen: Any
    ):
        super().__init__(backbone, levels, neck, head, **frozen)

    @property
    def official_names(self) -> NameMap:
        """The names of mmdetection, and the backbone's authors' behind `backbone.`."""
        parts = [self.backbone_names(), Part("neck", "neck", SAME_NAMES), Part("head", "", SPARSE_RCNN_NAMES)]
        return joined_names(parts, no_weights=NO_WEIGHTS)

    def surest(self, images: Tensor) -> Surest:
        """As `QueryDetector.surest`; every level is asked for all regions."""
        batch = of_one_size(images, self.side_multiple)
        return self.head.surest(self.pyramid(batch.pixels), batch.sizes, read=read_all_levels)

    def products(self, images: Tensor) -> list[Tensor]:
        """All that stages say of a batch (B, 3, H, W), whose sides are multiples of 32: what costs are counted of."""
        return self.head.products(self.pyramid(images))


class DinoDetector(QueryDetector):
    """DINO, as detrex or mmdetection computes it. Images of a batch are padded to the largest, and that is masked.

    Args:
        backbone, levels, frozen_stages, frozen_norms: as in `Detector`.
        head: on these levels.
    """

    head: DinoHead

    def __init__(self, backbone: nn.Module, levels: Sequence[Level], head: DinoHead, **frozen: Any):
        super().__init__(backbone, levels, nn.Identity(), head, **frozen)

    @property
    def side_multiple(self) -> int:
        """What the sides of images are padded to multiples of: no more than the backbone needs."""
        return self.size_multiple

    @property
    def official_names(self) -> NameMap:
        """The names of the implementation that is followed, and the backbone's authors' behind `backbone.`."""
        return next(iter(self.official_forms.values()))

    @property
    def official_forms(self) -> Mapping[str, NameMap]:
        """The names of either implementation, by the option that builds it; its own first."""
        own = self.head.flavour.name
        names = {"detrex": DETREX_DINO_NAMES, "mmdet": MMDET_DINO_NAMES}
        return {
            f"flavour={name!r}": joined_names([self.backbone_names(), Part("head", "", heads)], no_weights=NO_WEIGHTS)
            for name, heads in sorted(names.items(), key=lambda item: item[0] != own)
        }

    def products(self, images: Tensor) -> list[Tensor]:
        """Classes and boxes of the selection and of all layers for a batch (B, 3, H, W): what costs are counted of."""
        selected, predicted = self.head(self.pyramid(images))
        return [selected.logits, selected.boxes, *predicted.logits, *predicted.boxes]

    def surest_of(self, levels: Sequence[Tensor], sizes: Sizes, padding: Tensor | None = None) -> Surest:
        """As `QueryDetector.surest_of`; boxes end at their image."""
        rows = super().surest_of(levels, sizes, padding)
        boxes = rows.boxes_xyxy
        ends = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype, device=boxes.device)[:, None]
        return replace(rows, boxes_xyxy=torch.minimum(boxes.clamp(min=0), ends))

    def shown(self, boxes_xyxy: Tensor, scores: Tensor) -> Tensor | None:
        """As `QueryDetector.shown`; detrex leaves out what has no area inside of the image, too."""
        kept = super().shown(boxes_xyxy, scores)
        if not self.head.flavour.drops_empty:
            return kept
        full = (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(-1)
        return full if kept is None else kept & full
