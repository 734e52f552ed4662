"""Detectors: a backbone, a neck on its levels, and heads that find objects; in one stage or in two."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from convattn.backbones.levels import Level, level_maps
from convattn.backbones.on_levels import OnLevels
from convattn.detection.dense_heads import DenseHead
from convattn.detection.feature_pyramid import FeaturePyramid
from convattn.detection.image_batch import ImageBatch, batched
from convattn.detection.region_proposals import RegionProposals
from convattn.detection.region_stage import RegionStages
from convattn.detection.targets import truths_of
from convattn.detection.truth import Truth
from convattn.weights.detectors import DETECTRON2_NECK_NAMES, DETECTRON2_REGION_NAMES, MMDETECTION_1, NO_WEIGHTS
from convattn.weights.rename import SAME_NAMES, NameMap, Part, joined_names

__all__ = ["DenseDetector", "Detector", "Finder", "RegionDetector", "Sizes", "Targets"]

Targets = Sequence[Mapping[str, Any]]
Sizes = Sequence[tuple[int, int]]


class Finder(Protocol):
    """The head of a detector that says what is found."""

    least: float  # scores of what is found are above
    most: int  # objects of an image

    @property
    def num_classes(self) -> int:
        """Of objects."""

    def reset_classifier(self, num_classes: int) -> None:
        """Replace by fresh ones the layers that tell classes."""


class Detector(OnLevels):
    """What all detectors are: images in, losses by name or what was found out.

    Classes are 0 to `num_classes` - 1, with no background among them: torchvision's own detectors begin at 1.

    Args:
        backbone, levels, frozen_stages, frozen_norms: as in `OnLevels`.
        neck: on these levels: maps -> maps, the finest first.
        mmdet: what is not learnt from follows mmdetection, otherwise detectron2.
    """

    task_kind: Literal["detection"] = "detection"

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[Level],
        neck: nn.Module,
        *,
        mmdet: bool = True,
        frozen_stages: int = 0,
        frozen_norms: bool = False,
    ):
        super().__init__(backbone, levels, frozen_stages=frozen_stages, frozen_norms=frozen_norms)
        self.neck, self.mmdet = neck, mmdet

    def forward(
        self, images: Sequence[Tensor] | Tensor, targets: Targets | None = None, original_sizes: Sizes | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """In training the losses of images, in evaluation what is found in them.

        Args:
            images: (3, H, W) each, of any sizes, normalised; or all of one size as (B, 3, H, W).
            targets: of each image in training, as in `convattn.detection.targets`.
            original_sizes: in evaluation, as in `detections`.

        Returns:
            As `losses`, or as `detections`.

        Raises:
            ValueError: for images or targets that are not as they should be, in one line; if targets are lacking in
                training, or given in evaluation.
        """
        if self.training:
            if targets is None:
                raise ValueError("a detector that trains needs targets; give them, or call eval() first")
            return self.losses(images, targets)
        if targets is not None:
            raise ValueError("in evaluation a detector takes no targets; losses(images, targets) gives the losses")
        return self.detections(images, original_sizes)

    def losses(self, images: Sequence[Tensor] | Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses by name, scalars in float32 or better; a step is taken on their sum.

        Images and targets as in `forward`. Under autocast the networks run in lower precision; what follows does not.
        """
        batch = self._batch(images)
        truths = truths_of(targets, batch, self.num_classes, with_masks=self.has_masks, mmdet=self.mmdet)
        return self._losses_in(batch, truths)

    @torch.no_grad()
    def detections(
        self, images: Sequence[Tensor] | Tensor, original_sizes: Sizes | None = None
    ) -> list[dict[str, Tensor]]:
        """What is found in each image, the surest first.

        Args:
            images: as in `forward`.
            original_sizes: height and width of the picture behind each image, if it has been resized; boxes and masks
                are then in its pixels.

        Returns:
            Of each image `boxes` (n, 4) xyxy, `scores` (n,), `labels` (n,) from 0; of detectors that draw masks
            `masks` (n, H, W) bool, where torchvision has shares (n, 1, H, W); of detectors by queries `queries` (n,),
            the number of each one's query.

        Raises:
            ValueError: for images that are not as they should be, or another number of sizes.
        """
        batch = self._batch(images)
        originals = None if original_sizes is None else _originals(original_sizes, len(batch.sizes))
        return self._found_in(batch, originals)

    def pyramid(self, pixels: Tensor) -> list[Tensor]:
        """The neck's levels of a batch (B, 3, H, W), the finest first."""
        maps: list[Tensor] = self.neck(level_maps(self.backbone, pixels, self.levels))
        return maps

    def products(self, images: Tensor) -> list[Tensor]:
        """What all layers compute for a batch (B, 3, H, W), by shapes alone: costs and folded norms are seen in it."""
        raise NotImplementedError

    @property
    def has_masks(self) -> bool:
        """Whether it learns and draws masks."""
        return False

    @property
    def finder(self) -> Finder:
        """The head that says what is found."""
        raise NotImplementedError

    @property
    def score_threshold(self) -> float:
        """What is found has a score above it; may be set."""
        return self.finder.least

    @score_threshold.setter
    def score_threshold(self, least: float) -> None:
        self.finder.least = least

    @property
    def max_detections(self) -> int:
        """How many are found in an image at most; may be set."""
        return self.finder.most

    @max_detections.setter
    def max_detections(self, most: int) -> None:
        self.finder.most = most

    @property
    def num_classes(self) -> int:
        """Of objects."""
        return self.finder.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Replace by fresh ones the layers that tell classes, and those whose boxes or masks are of a class."""
        self.finder.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """The layer that tells the classes, of the last stage."""
        return self.get_submodule(self.classifier_names[-1])

    @property
    def classifier_names(self) -> list[str]:
        """The modules that tell classes."""
        raise NotImplementedError

    @property
    def side_multiple(self) -> int:
        """What the sides of images are padded to multiples of."""
        return 32

    def _batch(self, images: Sequence[Tensor] | Tensor) -> ImageBatch:
        like: Any = self.get_classifier().weight
        channels: Any = getattr(self.backbone, "in_chans", 3)
        return batched(images, like, channels, self.side_multiple)

    def _losses_in(self, batch: ImageBatch, truths: Sequence[Truth]) -> dict[str, Tensor]:
        return self.losses_of(self.pyramid(batch.pixels), truths)

    def _found_in(self, batch: ImageBatch, originals: Sizes | None) -> list[dict[str, Tensor]]:
        return self.found_in(self.pyramid(batch.pixels), batch.sizes, originals)

    def losses_of(self, levels: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """As `losses`, of the neck's levels and of targets in our own words."""
        raise NotImplementedError

    def found_in(
        self, levels: Sequence[Tensor], sizes: Sizes, originals: Sizes | None = None
    ) -> list[dict[str, Tensor]]:
        """As `detections`, of the neck's levels; `sizes` are height and width of the images without padding."""
        raise NotImplementedError


def _originals(sizes: Sizes, count: int) -> list[tuple[int, int]]:
    """Height and width of the picture behind each of so many images."""
    if len(sizes) != count:
        raise ValueError(f"{len(sizes)} original sizes for {count} images; give one each")
    found = []
    for number, size in enumerate(sizes):
        sides = tuple(float(side) for side in size)
        if len(sides) != 2 or not all(side >= 1 and side.is_integer() for side in sides):
            told = " × ".join(f"{side:g}" for side in sides)
            raise ValueError(f"original size {number} is {told}; give height and width in pixels, whole numbers from 1")
        found.append((int(sides[0]), int(sides[1])))
    return found


class DenseDetector(Detector):
    """RetinaNet or ATSS: a class and a box at every anchor of every level.

    Args:
        head: over all levels of the neck.
        backbone, levels, neck, frozen_stages, frozen_norms: as in `Detector`.
    """

    def __init__(
        self, backbone: nn.Module, levels: Sequence[Level], neck: FeaturePyramid, head: DenseHead, **frozen: Any
    ):
        super().__init__(backbone, levels, neck, **frozen)
        self.bbox_head = head

    @property
    def official_names(self) -> NameMap:
        """The names of mmdetection, which are ours, and the backbone's authors' behind `backbone.`."""
        parts = [Part(name, name, SAME_NAMES) for name in ("neck", "bbox_head")]
        return joined_names([self.backbone_names(), *parts], no_weights=NO_WEIGHTS)

    @property
    def finder(self) -> DenseHead:
        """The head that says what is found."""
        return self.bbox_head

    @property
    def classifier_names(self) -> list[str]:
        """The module that tells classes."""
        return [f"bbox_head.{self.bbox_head.classifier_name}"]

    def products(self, images: Tensor) -> list[Tensor]:
        """All maps of the head for a batch (B, 3, H, W), whose sides are multiples of 32: what costs are counted of."""
        return [level for maps in self.bbox_head(self.pyramid(images)) if maps is not None for level in maps]

    def losses_of(self, levels: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """As `Detector.losses_of`."""
        return {name: of_levels.sum() for name, of_levels in self.bbox_head.losses(levels, truths).items()}

    def found_in(
        self, levels: Sequence[Tensor], sizes: Sizes, originals: Sizes | None = None
    ) -> list[dict[str, Tensor]]:
        """As `Detector.found_in`."""
        return self.bbox_head.detections(levels, sizes, originals)


class RegionDetector(Detector):
    """Faster, Mask or Cascade R-CNN: where something may be, then what it is.

    Args:
        proposals: the first stage.
        regions: the second, once or several times over.
        backbone, levels, neck, mmdet, frozen_stages, frozen_norms: as in `Detector`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[Level],
        neck: FeaturePyramid,
        proposals: RegionProposals,
        regions: RegionStages,
        **rules: Any,
    ):
        super().__init__(backbone, levels, neck, **rules)
        self.rpn_head = proposals
        self.roi_head = regions

    @property
    def has_masks(self) -> bool:
        """Whether it learns and draws masks."""
        return bool(self.roi_head.mask_heads)

    @property
    def official_names(self) -> NameMap:
        """The names of mmdetection, which are ours, or of detectron2; and the backbone's authors'."""
        return next(iter(self.official_forms.values()))

    @property
    def official_forms(self) -> Mapping[str, NameMap]:
        """The names of either style, by the option that builds it; its own first."""
        same = [Part(name, name, SAME_NAMES) for name in ("neck", "rpn_head", "roi_head")]
        theirs = [
            Part("neck", "backbone", DETECTRON2_NECK_NAMES),
            Part("rpn_head", "proposal_generator.rpn_head", DETECTRON2_REGION_NAMES),
            Part("roi_head", "roi_heads", DETECTRON2_REGION_NAMES),
        ]
        mmdet = joined_names([self.backbone_names(), *same], no_weights=NO_WEIGHTS, older=MMDETECTION_1)
        detectron2 = joined_names([self.backbone_names("backbone.bottom_up"), *theirs], no_weights=NO_WEIGHTS)
        forms = [("style='mmdet'", mmdet), ("style='detectron2'", detectron2)]
        return dict(forms if self.mmdet else forms[::-1])

    @property
    def finder(self) -> RegionStages:
        """The head that says what is found."""
        return self.roi_head

    @property
    def classifier_names(self) -> list[str]:
        """The modules that tell classes, one a stage."""
        heads = {id(head.fc_cls) for head in self.roi_head.box_heads}
        return [name for name, module in self.named_modules() if id(module) in heads]

    def products(self, images: Tensor, regions: int = 1000, masks: int = 100) -> list[Tensor]:
        """All that is computed for a batch (B, 3, H, W), whose sides are multiples of 32, of so many regions and masks.

        Which regions does not matter to what it costs: they are all the whole image.
        """
        levels = self.pyramid(images)
        logits, steps = self.rpn_head(levels)
        return [*logits, *steps, *self.roi_head(levels, images, regions, masks)]

    def losses_of(self, levels: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, Tensor]:
        """As `Detector.losses_of`."""
        logits, steps = self.rpn_head(levels)
        first, _ = self.rpn_head.losses(logits, steps, truths)
        proposals = self.rpn_head.proposals(logits, steps, [truth.size for truth in truths])
        second, _ = self.roi_head.losses(levels, [one.boxes_xyxy for one in proposals], truths)
        return {f"proposal.{name}": of_levels.sum() for name, of_levels in first.items()} | second

    def found_in(
        self, levels: Sequence[Tensor], sizes: Sizes, originals: Sizes | None = None
    ) -> list[dict[str, Tensor]]:
        """As `Detector.found_in`."""
        logits, steps = self.rpn_head(levels)
        proposals = self.rpn_head.proposals(logits, steps, sizes)
        return self.roi_head.detections(levels, [one.boxes_xyxy for one in proposals], sizes, originals)
