"""Detectors by name: which parts each is made of."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from convattn.backbones.levels import STRIDES, Level, dense_backbone
from convattn.backbones.on_levels import describe
from convattn.detection.dense_heads import ATSSHead, RetinaHead
from convattn.detection.detector import DenseDetector, Detector, RegionDetector
from convattn.detection.dino import FLAVOURS, DinoHead
from convattn.detection.feature_pyramid import Extra, FeaturePyramid
from convattn.detection.options import DetectorName, FlavourName, Style
from convattn.detection.query_detectors import DinoDetector, QueryDetector, SparseDetector
from convattn.detection.rcnn import BoxHeads, Plan, Widths, detectron2_stages, mmdet_stages
from convattn.detection.sampling import Choose, choose_randomly
from convattn.detection.sparse_rcnn import SparseHead
from convattn.nearest import nearest

__all__ = ["compose", "create_detector"]

_IMAGE_SIZE = (800, 1280)  # what papers count multiply-adds at

# What each kind of detector takes where nothing else is said.
_DENSE = dict(width=256, score_threshold=0.05, max_detections=100)
_REGIONS = _DENSE | dict(hidden=1024)
_SPARSE = dict(width=256, hidden=2048, score_threshold=0.0, max_detections=None, proposals=300, layers=6, heads=8)
_DINO = _SPARSE | dict(flavour="detrex", max_detections=300, queries=900, points=4, levels=4, denoising=100)
del _DINO["proposals"]
_LEVELS = (2, 5)  # of DINO


@dataclass(frozen=True)
class _Dense:
    """A detector of one stage."""

    head: type[RetinaHead | ATSSHead]
    extra: Extra  # where the two coarsest levels come from
    defaults: Mapping[str, Any] = field(default_factory=lambda: _DENSE)


@dataclass(frozen=True)
class _Regions:
    """A detector of two stages."""

    cascade: bool = False
    masks: bool = False
    defaults: Mapping[str, Any] = field(default_factory=lambda: _REGIONS)


@dataclass(frozen=True)
class _Queries:
    """A detector by queries."""

    defaults: Mapping[str, Any]

    @property
    def is_dino(self) -> bool:
        return "flavour" in self.defaults


_Row = _Dense | _Regions | _Queries
_ROWS: dict[str, _Row] = {
    "faster_rcnn": _Regions(),
    "mask_rcnn": _Regions(masks=True),
    "cascade_rcnn": _Regions(cascade=True),
    "cascade_mask_rcnn": _Regions(cascade=True, masks=True),
    "retinanet": _Dense(RetinaHead, "on_input"),
    "atss": _Dense(ATSSHead, "on_output"),
    "sparse_rcnn": _Queries(_SPARSE),
    "dino": _Queries(_DINO),
    "dino_nano": _Queries(_DINO | dict(width=128, hidden=512, layers=3, queries=100, max_detections=100)),
}
_BOX_HEADS: dict[str, BoxHeads] = {"mmdet": "2fc", "detectron2": "4conv1fc"}  # where nothing else is said


def create_detector(
    backbone: str | nn.Module,
    detector: DetectorName,
    num_classes: int = 80,
    *,
    style: Style = "mmdet",
    box_head: BoxHeads | None = None,
    flavour: FlavourName | None = None,
    queries: int | None = None,
    proposals: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    points: int | None = None,
    levels: int | None = None,
    denoising: int | None = None,
    pretrained: bool = False,
    width: int | None = None,
    hidden: int | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
    **backbone_options: Any,
) -> Detector:
    """A detector on any backbone with levels at strides 4, 8, 16 and 32 (8, 16 and 32 for those of one stage and DINO).

    In training it takes images and targets as torchvision's detectors do and gives losses by name; in evaluation it
    gives boxes, scores, labels and masks. Labels are 0 to `num_classes` - 1, without a background.

    `dino_nano` is DINO for small sets of data and two cores: 100 queries, three layers, 128 and 512 channels. Its
    options are DINO's, its weights its own.

    An image has fewer queries than were asked for where DINO's levels have fewer pixels; a `QueryNote` says so.

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
        flavour: of DINO: whose arithmetic and names of weights are followed, detrex's (SMT; by default) or
            mmdetection's.
        queries: of DINO: objects that can be found in an image, 900 by default.
        proposals: the same of Sparse R-CNN, 300 by default.
        layers: stages of Sparse R-CNN, or layers of DINO's encoder and as many of its decoder; 6 by default.
        heads: of the attention of both, which divide `width`; 8 by default.
        points: of DINO: places that a query looks at on each level with each head, 4 by default.
        levels: of DINO, 2 to 5: one beyond the backbone's coarsest and the rest its own, up to stride 4; 4 by default.
        denoising: of DINO: about how many pairs of denoising queries an image gets in training, 100 by default.
        pretrained: start from the published weights of the backbone's name; neck and heads start fresh.
        width: channels of the neck and of all layers behind it, 256 by default; for ATSS a multiple of 32, and 64 or
            more, for DINO a multiple of 32.
        hidden: channels of R-CNN's linear layers, 1024 by default; between the two linear layers of transformers, 2048.
        score_threshold: what is found has a score above it; 0 to 1. By default 0.05, of detectors by queries 0: all.
        max_detections: in an image; 100 by default, of DINO 300 and of Sparse R-CNN as many as proposals.
        frozen_stages: how many parts of the backbone do not learn: 1 for the stem, 2 for the first stage too, …; their
            norms keep their statistics.
        frozen_norms: batch norms of the backbone neither learn nor measure. Those of the heads do.
        **backbone_options: of `create_model`, such as `pretrained_path`, `drop_path_rate` and the family's own, with a
            name only.

    Raises:
        ValueError: for an unknown name or option, one of another detector, a number out of range, a backbone that lacks
            a level or has the heads of a task already; CheckpointError (a ValueError) when weights cannot be had or do
            not fit.
    """
    row = _row(detector, style, box_head)
    given = dict(
        flavour=flavour,
        queries=queries,
        proposals=proposals,
        layers=layers,
        heads=heads,
        points=points,
        levels=levels,
        denoising=denoising,
        width=width,
        hidden=hidden,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )
    numbers = _settled(detector, row, given)
    _check(detector, row, num_classes, numbers)
    if pretrained:
        backbone_options["pretrained"] = pretrained
    trunk, found = dense_backbone(backbone, _strides(row, numbers), task=Detector.task_kind, **backbone_options)
    like = next((p for p in trunk.parameters() if p.is_floating_point()), None)
    frozen: dict[str, Any] = dict(frozen_stages=frozen_stages, frozen_norms=frozen_norms)
    options: dict[str, Any] = {}
    with nullcontext() if like is None else like.device:
        if isinstance(row, _Queries):
            model: Detector = _by_queries(trunk, found, num_classes, numbers, **frozen)
        else:
            options = dict(style=style, box_head=box_head)
            widths = Widths(numbers["width"], numbers["width"], numbers.get("hidden", Widths.hidden))
            model = compose(trunk, found, detector, num_classes, widths=widths, **options, **frozen)
    if like is not None:
        for name, part in model.named_children():
            if name != "backbone":
                part.to(like.dtype)
    model.score_threshold, model.max_detections = numbers["score_threshold"], numbers["max_detections"]
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
    """A detector with anchors of a backbone and levels of it that are there; `create_detector` says the rest.

    Args:
        backbone, levels: its own, of the strides that the detector needs, the finest first.
        detector, num_classes, style, box_head, frozen_stages, frozen_norms: as in `create_detector`.
        widths: channels.
        choose: takes anchors and regions to learn from, of many.
    """
    row, widths = _row(detector, style, box_head), widths or Widths()
    frozen: dict[str, Any] = dict(frozen_stages=frozen_stages, frozen_norms=frozen_norms)
    channels = [level.channels for level in levels]
    assert not isinstance(row, _Queries)
    if isinstance(row, _Dense):
        neck = FeaturePyramid(channels, widths.neck, extra=row.extra)
        return DenseDetector(
            backbone, levels, neck, row.head(widths.neck, num_classes, conv_width=widths.convs), **frozen
        )
    plan = Plan(num_classes, row.cascade, row.masks, box_head or _BOX_HEADS[style], widths, choose)
    neck = FeaturePyramid(channels, widths.neck, norm="none" if style == "mmdet" else "batch")
    first, second = mmdet_stages(plan) if style == "mmdet" else detectron2_stages(plan)
    return RegionDetector(backbone, levels, neck, first, second, mmdet=style == "mmdet", **frozen)


def _by_queries(
    backbone: nn.Module, levels: Sequence[Level], num_classes: int, numbers: Mapping[str, Any], **frozen: Any
) -> QueryDetector:
    """DINO or Sparse R-CNN."""
    channels, width = [level.channels for level in levels], numbers["width"]
    if "flavour" not in numbers:
        sparse = SparseHead(
            width,
            num_classes,
            proposals=numbers["proposals"],
            stages=numbers["layers"],
            heads=numbers["heads"],
            hidden=numbers["hidden"],
        )
        neck = FeaturePyramid(channels, width, len(channels), extra="none")
        return SparseDetector(backbone, levels, neck, sparse, **frozen)
    dino = DinoHead(
        channels,
        num_classes,
        FLAVOURS[numbers["flavour"]],
        dim=width,
        queries=numbers["queries"],
        encoder_layers=numbers["layers"],
        decoder_layers=numbers["layers"],
        heads=numbers["heads"],
        points=numbers["points"],
        hidden=numbers["hidden"],
        denoising=numbers["denoising"],
    )
    return DinoDetector(backbone, levels, dino, **frozen)


def _row(detector: str, style: str, box_head: str | None) -> _Row:
    if detector not in _ROWS:
        raise ValueError(f"detector {detector!r} is unknown; {nearest(str(detector), _ROWS)}")
    if style not in get_args(Style):
        raise ValueError(f"style {style!r} is unknown; {nearest(str(style), get_args(Style))}")
    row = _ROWS[detector]
    if not isinstance(row, _Regions) and style != "mmdet":
        has = "flavours" if isinstance(row, _Queries) and row.is_dino else "mmdetection's only"
        raise ValueError(f"style {style!r} is of R-CNN; {detector} has {has}: leave it out")
    if not isinstance(row, _Regions) and box_head is not None:
        raise ValueError(f"box_head {box_head!r} is of R-CNN; {detector} has none: leave it out")
    if box_head is not None and box_head not in get_args(BoxHeads):
        raise ValueError(f"box_head {box_head!r} is unknown; {nearest(str(box_head), get_args(BoxHeads))}")
    return row


def _settled(detector: str, row: _Row, given: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a detector: those given, otherwise its own."""
    for name, value in given.items():
        if value is not None and name not in row.defaults:
            owners = ", ".join(owner for owner, other in _ROWS.items() if name in other.defaults)
            raise ValueError(f"{name} {value!r} is of {owners}; {detector} has no {name}: leave it out")
    numbers = {name: default if given[name] is None else given[name] for name, default in row.defaults.items()}
    if numbers["max_detections"] is None:
        numbers["max_detections"] = numbers["proposals"]
    return numbers


def _strides(row: _Row, numbers: Mapping[str, Any]) -> Sequence[int]:
    """Of the backbone's levels that a detector stands on."""
    if isinstance(row, _Queries) and row.is_dino:
        return STRIDES[1 - numbers["levels"] :]
    return STRIDES[1:] if isinstance(row, _Dense) else STRIDES


def _check(detector: str, row: _Row, num_classes: int, numbers: Mapping[str, Any]) -> None:
    for name, number in {"num_classes": num_classes, **numbers}.items():
        if name in ("flavour", "score_threshold"):
            continue
        if number < 1:
            raise ValueError(f"{name} {number} must be 1 or more")
        if number != int(number):
            raise ValueError(f"{name} {number} must be a whole number")
    least, width = numbers["score_threshold"], numbers["width"]
    if not 0 <= least <= 1:
        raise ValueError(f"score_threshold {least} must be 0 to 1")
    if isinstance(row, _Dense) and row.head is ATSSHead and (width % 32 or width < 64):
        raise ValueError(f"width {width} must be a multiple of 32, and 64 or more, for atss: its norms have 32 groups")
    if not isinstance(row, _Queries):
        return
    if width % numbers["heads"]:
        raise ValueError(f"{numbers['heads']} heads do not divide width {width}; take heads that do")
    if row.is_dino:
        flavour, levels = numbers["flavour"], numbers["levels"]
        if flavour not in FLAVOURS:
            raise ValueError(f"flavour {flavour!r} is unknown; {nearest(str(flavour), FLAVOURS)}")
        if width % 32:
            raise ValueError(f"width {width} must be a multiple of 32 for {detector}: its norms have 32 groups")
        if not _LEVELS[0] <= levels <= _LEVELS[1]:
            raise ValueError(f"levels {levels} must be {_LEVELS[0]} to {_LEVELS[1]}")
