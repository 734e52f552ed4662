"""The two stages of Faster, Mask and Cascade R-CNN as mmdetection puts them together, and as detectron2 does."""

from dataclasses import dataclass, replace
from typing import Literal

from convattn.detection.anchors import Anchors
from convattn.detection.assigning import MaxIoU
from convattn.detection.box_coder import BoxCoder
from convattn.detection.region_heads import BoxHead, MaskHead
from convattn.detection.region_proposals import RegionProposals
from convattn.detection.region_stage import DETECTRON2_REGIONS, MMDET_REGIONS, RegionStages, StageRules
from convattn.detection.sampling import Choose, Sampler, choose_randomly

__all__ = ["BoxHeads", "Plan", "Widths", "detectron2_stages", "mmdet_stages"]

BoxHeads = Literal["2fc", "4conv1fc"]

_ANCHORS = Anchors((4, 8, 16, 32, 64), (8.0,))
_ANCHORS_OF_DETECTRON2 = replace(_ANCHORS, heights_by_widths=True)
_FIRST = (256, 0.5)  # anchors of an image that are learnt from, and the largest share of objects
_SECOND = (512, 0.25)  # the same of regions
_MOST = {False: (2000, 1000), True: (2000, 2000)}  # proposals of a level and of an image in training; of a cascade
_OVERLAPS = (0.5, 0.6, 0.7)  # IoU from which a region stands for an object, stage by stage
_WEIGHTS = (1.0, 0.5, 0.25)  # of the stages' losses in mmdetection
_SPREADS = ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))  # of the steps that stages learn, of centres and of sides
_SPREADS_OF_DETECTRON2 = (*_SPREADS[:2], (1 / 30, 1 / 15))


@dataclass(frozen=True)
class Widths:
    """Channels: of the neck and the first stage, of the heads' convolutions, of their linear layers."""

    neck: int = 256
    convs: int = 256
    hidden: int = 1024


@dataclass(frozen=True)
class Plan:
    """What is wanted of R-CNN.

    Args:
        num_classes: of objects.
        cascade: three stages of regions instead of one.
        masks: they are drawn, too.
        box_heads: two linear layers, or four convolutions with norms and one linear layer.
        widths: channels.
        choose: takes anchors and regions to learn from, of many.
    """

    num_classes: int
    cascade: bool
    masks: bool
    box_heads: BoxHeads
    widths: Widths
    choose: Choose = choose_randomly

    @property
    def stages(self) -> int:
        """Of regions."""
        return 3 if self.cascade else 1

    def heads(self, by_class: bool) -> list[BoxHead]:
        """One a stage, with boxes of each class or of any."""
        four = self.box_heads == "4conv1fc"
        widths = dict(hidden=self.widths.hidden, conv_width=self.widths.convs)
        form = dict(convs=4, layers=1) if four else dict(convs=0, layers=2)
        return [
            BoxHead(
                self.widths.neck,
                self.num_classes,
                norm="batch" if four else "none",
                by_class=by_class,
                **widths,
                **form,
            )
            for _ in range(self.stages)
        ]


def mmdet_stages(plan: Plan) -> tuple[RegionProposals, RegionStages]:
    """Both stages as mmdetection has them.

    Of cascades there are two forms: the stock one, where boxes are of any class and differences of steps below 1 count
    squared ("2fc"), and SMT's and GroupMixFormer's, with boxes of each class that are compared themselves ("4conv1fc").
    """
    compares = plan.cascade and plan.box_heads == "4conv1fc"
    first = RegionProposals(
        plan.widths.neck,
        _ANCHORS,
        training=_MOST[plan.cascade],
        beta=1 / 9 if plan.cascade else 0.0,
        border=0 if plan.cascade else None,
        sampler=Sampler(*_FIRST, plan.choose),
    )
    stages = [
        StageRules(
            MaxIoU(overlap, overlap, "all" if plan.masks and not plan.cascade else "none", overlap),
            BoxCoder(_four(spread)),
            beta=1.0 if plan.cascade else 0.0,
            compares_boxes=compares,
            weight=weight,
        )
        for overlap, spread, weight in list(zip(_OVERLAPS, _SPREADS, _WEIGHTS, strict=True))[: plan.stages]
    ]
    masks = plan.stages if plan.masks else 0
    second = RegionStages(
        plan.heads(by_class=compares or not plan.cascade),
        stages,
        [MaskHead(plan.widths.neck, plan.num_classes, conv_width=plan.widths.convs) for _ in range(masks)],
        rules=MMDET_REGIONS,
        sampler=Sampler(*_SECOND, plan.choose),
    )
    return first, second


def detectron2_stages(plan: Plan) -> tuple[RegionProposals, RegionStages]:
    """Both stages as detectron2 has them; cascades have boxes of any class, and one head for masks."""
    first = RegionProposals(
        plan.widths.neck,
        _ANCHORS_OF_DETECTRON2,
        training=_MOST[plan.cascade],
        assign=MaxIoU(0.7, 0.3, "own"),
        sampler=Sampler(*_FIRST, plan.choose),
        coder=BoxCoder(shrinks_freely=True),
        fixed_count=True,
        eps=0.0,
    )
    stages = [
        StageRules(MaxIoU(overlap, overlap), BoxCoder(_four(spread), shrinks_freely=True))
        for overlap, spread in list(zip(_OVERLAPS, _SPREADS_OF_DETECTRON2, strict=True))[: plan.stages]
    ]
    widths = plan.widths
    masks = [MaskHead(widths.neck, plan.num_classes, conv_width=widths.convs, norm="batch")] if plan.masks else []
    second = RegionStages(
        plan.heads(by_class=not plan.cascade),
        stages,
        masks,
        rules=DETECTRON2_REGIONS,
        sampler=Sampler(*_SECOND, plan.choose),
    )
    return first, second


def _four(spread: tuple[float, float]) -> tuple[float, float, float, float]:
    centre, side = spread
    return centre, centre, side, side
