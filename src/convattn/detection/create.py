"""Detectors by name: which parts each is made of."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from convattn.backbones.levels import STRIDES, Level, dense_backbone
from convattn.backbones.on_levels import describe
from convattn.detection.dense_heads import ATSSHead, RetinaHead
from convattn.detection.detector import DenseDetector, Detector, RegionDetector
from convattn.detection.feature_pyramid import Extra, FeaturePyramid
from convattn.detection.rcnn import BoxHeads, Plan, Widths, detectron2_stages, mmdet_stages
from convattn.detection.sampling import Choose, choose_randomly
from convattn.nearest import nearest

__all__ = ["DetectorName", "Style", "compose", "create_detector"]

DetectorName = Literal["faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet", "atss"]
Style = Literal["mmdet", "detectron2"]

_IMAGE_SIZE = (800, 1280)  # what papers count multiply-adds at


@dataclass(frozen=True)
class _Dense:
    """A detector of one stage."""

    head: type[RetinaHead | ATSSHead]
    extra: Extra  # where the two coarsest levels come from


@dataclass(frozen=True)
class _Regions:
    """A detector of two stages."""

    cascade: bool = False
    masks: bool = False


_ROWS: dict[str, _Dense | _Regions] = {
    "faster_rcnn": _Regions(),
    "mask_rcnn": _Regions(masks=True),
    "cascade_rcnn": _Regions(cascade=True),
    "cascade_mask_rcnn": _Regions(cascade=True, masks=True),
    "retinanet": _Dense(RetinaHead, "on_input"),
    "atss": _Dense(ATSSHead, "on_output"),
}
_BOX_HEADS: dict[str, BoxHeads] = {"mmdet": "2fc", "detectron2": "4conv1fc"}  # where nothing else is said


def create_detector(
    backbone: str | nn.Module,
    detector: DetectorName,
    num_classes: int = 80,
    *,
    style: Style = "mmdet",
    box_head: BoxHeads | None = None,
    pretrained: bool = False,
    width: int = 256,
    hidden: int = 1024,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
    **backbone_options: Any,
) -> Detector:
    """A detector on any backbone with levels at strides 4, 8, 16 and 32 (8, 16 and 32 for those of one stage).

    In training it takes images and targets as torchvision's detectors do and gives losses by name; in evaluation it
    gives boxes, scores, labels and masks. Labels are 0 to `num_classes` - 1, without a background.

    Args:
        backbone: a name, as `create_model` takes it, built in its form for dense prediction (which a `FormNote` tells
            where it is not that of the bare name); or a model with timm's `feature_info`, with a head or without, of
            which a copy is taken: its weights are the start, and the two learn apart.
        detector: which.
        num_classes: of objects, 1 or more.
        style: whose arithmetic is followed: mmdetection's (SMT, GroupMixFormer, Next-ViT, DAS) or, of R-CNN, that of
            detectron2 (CoTNet), with norms in the neck and the heads.
        box_head: of R-CNN: two linear layers, or four convolutions with norms and one linear layer. By default "2fc" in
            mmdetection's style and "4conv1fc" in detectron2's. In mmdetection's cascades "4conv1fc" is SMT's published
            form, too: boxes of each class, compared by GIoU; "2fc" is the stock one: boxes of any class, smooth L1.
        pretrained: start from the published weights of the backbone's name; neck and heads start fresh.
        width: channels of the neck and of all convolutions behind it; for ATSS a multiple of 32, and 64 or more.
        hidden: channels of R-CNN's linear layers.
        score_threshold: what is found has a score above it; 0 to 1.
        max_detections: in an image.
        frozen_stages: how many parts of the backbone do not learn: 1 for the stem, 2 for the first stage too, …; their
            norms keep their statistics.
        frozen_norms: batch norms of the backbone neither learn nor measure. Those of the heads do.
        **backbone_options: of `create_model`, such as `pretrained_path`, `drop_path_rate` and the family's own, with a
            name only.

    Raises:
        ValueError: for an unknown name or option, a number out of range, a backbone that lacks a level or has the heads
            of a task already; CheckpointError (a ValueError) when weights cannot be had or do not fit.
    """
    row = _row(detector, style, box_head)
    _check(row, num_classes, width, hidden, score_threshold, max_detections)
    if pretrained:
        backbone_options["pretrained"] = pretrained
    strides = STRIDES if isinstance(row, _Regions) else STRIDES[1:]
    trunk, levels = dense_backbone(backbone, strides, task=Detector.task_kind, **backbone_options)
    like = next((p for p in trunk.parameters() if p.is_floating_point()), None)
    options: dict[str, Any] = dict(style=style, box_head=box_head)
    frozen: dict[str, Any] = dict(frozen_stages=frozen_stages, frozen_norms=frozen_norms)
    with nullcontext() if like is None else like.device:
        widths = Widths(width, width, hidden)
        model = compose(trunk, levels, detector, num_classes, widths=widths, **options, **frozen)
    if like is not None:
        for name, part in model.named_children():
            if name != "backbone":
                part.to(like.dtype)
    model.score_threshold, model.max_detections = score_threshold, max_detections
    numbers = dict(width=width, hidden=hidden, score_threshold=score_threshold, max_detections=max_detections)
    describe(
        model,
        detector,
        options | numbers | frozen,
        task=model.task_kind,
        image_size=_IMAGE_SIZE,
        num_classes=num_classes,
        classifier=model.classifier_names,
    )
    return model


def compose(
    backbone: nn.Module,
    levels: Sequence[Level],
    detector: DetectorName,
    num_classes: int,
    *,
    style: Style = "mmdet",
    box_head: BoxHeads | None = None,
    widths: Widths | None = None,
    choose: Choose = choose_randomly,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
) -> Detector:
    """A detector of a backbone and levels of it that are there; `create_detector` says the rest.

    Args:
        backbone, levels: its own, of the strides that the detector needs, the finest first.
        detector, num_classes, style, box_head, frozen_stages, frozen_norms: as in `create_detector`.
        widths: channels.
        choose: takes anchors and regions to learn from, of many.
    """
    row, widths = _row(detector, style, box_head), widths or Widths()
    frozen: dict[str, Any] = dict(frozen_stages=frozen_stages, frozen_norms=frozen_norms)
    channels = [level.channels for level in levels]
    if isinstance(row, _Dense):
        neck = FeaturePyramid(channels, widths.neck, extra=row.extra)
        return DenseDetector(
            backbone, levels, neck, row.head(widths.neck, num_classes, conv_width=widths.convs), **frozen
        )
    plan = Plan(num_classes, row.cascade, row.masks, box_head or _BOX_HEADS[style], widths, choose)
    neck = FeaturePyramid(channels, widths.neck, norm="none" if style == "mmdet" else "batch")
    first, second = mmdet_stages(plan) if style == "mmdet" else detectron2_stages(plan)
    return RegionDetector(backbone, levels, neck, first, second, mmdet=style == "mmdet", **frozen)


def _row(detector: str, style: str, box_head: str | None) -> _Dense | _Regions:
    if detector not in _ROWS:
        raise ValueError(f"detector {detector!r} is unknown; {nearest(str(detector), _ROWS)}")
    if style not in get_args(Style):
        raise ValueError(f"style {style!r} is unknown; {nearest(str(style), get_args(Style))}")
    row = _ROWS[detector]
    if isinstance(row, _Dense) and style != "mmdet":
        raise ValueError(f"style {style!r} is of R-CNN; {detector} has mmdetection's only: leave it out")
    if isinstance(row, _Dense) and box_head is not None:
        raise ValueError(f"box_head {box_head!r} is of R-CNN; {detector} has none: leave it out")
    if box_head is not None and box_head not in get_args(BoxHeads):
        raise ValueError(f"box_head {box_head!r} is unknown; {nearest(str(box_head), get_args(BoxHeads))}")
    return row


def _check(
    row: _Dense | _Regions, num_classes: int, width: int, hidden: int, score_threshold: float, max_detections: int
) -> None:
    numbers = dict(num_classes=num_classes, width=width, hidden=hidden, max_detections=max_detections)
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number} must be 1 or more")
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold {score_threshold} must be 0 to 1")
    if isinstance(row, _Dense) and row.head is ATSSHead and (width % 32 or width < 64):
        raise ValueError(f"width {width} must be a multiple of 32, and 64 or more, for atss: its norms have 32 groups")
