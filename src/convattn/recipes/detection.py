"""Recipes of object detection: the authors' on COCO, and one for images with objects of your own."""

from dataclasses import dataclass, replace
from typing import Any

from convattn.detection.options import DetectionOptions, DetectorName
from convattn.detection.variation import Variation
from convattn.recipes.recipe import BUFFERS, NOT_RUN, Recipe, recipe, several_gpus
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)

__all__ = ["RECIPES", "detect_finetune"]

_GPUS, _IMAGES = 8, 2  # in each
_TITLES: dict[DetectorName, str] = {
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "cascade_rcnn": "Cascade R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "retinanet": "RetinaNet",
    "atss": "ATSS",
    "sparse_rcnn": "Sparse R-CNN",
    "dino": "DINO",
}
_MULTI_SCALE = Variation(short_sides=tuple(range(480, 801, 32)), crop=0.5)  # mmdetection's 3x schedules
_LENGTHS = {
    "1x": ScheduleConfig("multistep", epochs=12, milestones=(8, 11), warmup_updates=500, warmup_factor=1e-3),
    "3x": ScheduleConfig("multistep", epochs=36, milestones=(27, 33), warmup_updates=500, warmup_factor=1e-3),
    "90k": ScheduleConfig(
        "multistep", updates=90_000, milestones=(60_000, 80_000), warmup_updates=1_000, warmup_factor=1e-3
    ),
}

_SMT = "the article, the README and the configurations of github.com/AFeng-x/SMT"
_NEXTVIT = "the README and the configurations of github.com/bytedance/Next-ViT"
_COTNET = (
    "the README, the configurations and the logs of github.com/JDAI-CV/CoTNet-ObjectDetection-InstanceSegmentation"
)
_GROUPMIXFORMER = "the article of GroupMixFormer; no configuration was released"
_DAS = "the article of DAS; no configuration was released"

_LEARNING_NORMS = f"In one process the batch norms that learn measure {_IMAGES} images."
_FIXED_NORMS = (
    "Batch norms of the backbone keep their statistics, there and here; there the weights and biases of those behind "
    "the first stage learn all the same."
)


@dataclass(frozen=True)
class _Row:
    """A published result on COCO's validation images of 2017, and what of its run is its own."""

    detector: DetectorName
    backbone: str
    length: str
    box: str  # AP, percent; empty where none is known
    mask: str = ""
    drop_path: float = 0.0
    notes: str = ""


# mmdetection: AdamW, norms by the name that the authors' networks have for them.

_ALL_DECAY = "All weights decay, norms and biases too."
_SMT_NORMS = ("*.stages.*.norm[12].*", "*.stages.?.norm.*", "*.downsample.norm.*", "*.stem.norm2.*")
_SMT_ROWS = (
    _Row("mask_rcnn", "smt_small", "1x", "", drop_path=0.2),
    _Row("mask_rcnn", "smt_small", "3x", "49.0", "43.4", 0.2),
    _Row("mask_rcnn", "smt_base", "1x", "", drop_path=0.2),
    _Row("mask_rcnn", "smt_base", "3x", "49.8", "44.0", 0.3),
    _Row("cascade_mask_rcnn", "smt_small", "3x", "51.9", "44.7", 0.2),
    _Row("retinanet", "smt_small", "3x", "47.3", drop_path=0.2),
    _Row("atss", "smt_small", "3x", "49.9", drop_path=0.2),
)


def _smt(row: _Row) -> Recipe:
    mask, cascade = row.detector == "mask_rcnn", row.detector == "cascade_mask_rcnn"
    decay = dict(decay_all=True, no_decay=_SMT_NORMS if mask else ())
    decaying = "All weights decay but those that the authors call norm." if mask else _ALL_DECAY
    notes = [
        decaying,
        "The authors' networks drop single values in training where this one drops a whole branch, and they start the "
        "depthwise convolutions of the attention blocks afresh, by another name, where this one loads them.",
        _LEARNING_NORMS,
    ]
    if cascade:
        notes.append(
            "The authors measure the norms of the heads over all GPUs, those of the backbone on each; here all are "
            "measured over all processes."
        )
    if not row.box:
        notes.append("The article's figures of this schedule are not known to us.")
    return _recipe(
        row,
        _SMT,
        _adamw(2e-4 if mask else 1e-4, **decay),
        variation=_MULTI_SCALE if row.length == "3x" else Variation(),
        notes=notes,
        loop=dict(sync_batch_norm=cascade),
        task=dict(box_head="4conv1fc") if cascade else {},
    )


_NEXTVIT_ROWS = (
    _Row("mask_rcnn", "nextvit_small", "1x", "45.9", "41.8", 0.1),
    _Row("mask_rcnn", "nextvit_small", "3x", "48.0", "43.2", 0.1),
    _Row("mask_rcnn", "nextvit_base", "1x", "47.2", "42.8", 0.2),
    _Row("mask_rcnn", "nextvit_base", "3x", "49.5", "44.4", 0.2),
    _Row("mask_rcnn", "nextvit_large", "1x", "48.0", "43.2", 0.2),
    _Row("mask_rcnn", "nextvit_large", "3x", "50.2", "44.8", 0.2),
)


def _nextvit(row: _Row) -> Recipe:
    return _recipe(
        row,
        _NEXTVIT,
        _adamw(1e-4, decay_all=True, no_decay=("*norm*",)),
        schedule=replace(_LENGTHS[row.length], warmup_factor=1e-6),
        variation=_MULTI_SCALE if row.length == "3x" else Variation(),
        model=dict(options={"extra_norm": False}),  # the norms behind the stages are of the authors' segmenters
        task=dict(frozen_stages=2, frozen_norms=True),
        loop=dict(precision="fp16"),
        notes=[
            "All weights decay but those of norms. Stem and first stage do not learn.",
            _FIXED_NORMS,
            "The loss is multiplied by 512 there, by a factor that finds itself here.",
        ],
    )


_DECAY_TOO = "The weight decay is not known, either."
_GROUPMIXFORMER_ROWS = (
    _Row("mask_rcnn", "groupmixformer_tiny", "3x", "47.5", "42.4", 0.1),
    _Row("mask_rcnn", "groupmixformer_small", "3x", "", drop_path=0.2, notes="No figure of this row is known to us."),
    _Row("mask_rcnn", "groupmixformer_base", "3x", "51.5", "45.9", 0.4),
    _Row("retinanet", "groupmixformer_tiny", "3x", "46.3", drop_path=0.1, notes=_DECAY_TOO),
    _Row("retinanet", "groupmixformer_base", "3x", "50.2", drop_path=0.4, notes=_DECAY_TOO),
    _Row("cascade_mask_rcnn", "groupmixformer_tiny", "3x", "about 51.5", drop_path=0.1, notes=_DECAY_TOO),
    _Row("cascade_mask_rcnn", "groupmixformer_small", "3x", "51.9", drop_path=0.2, notes=_DECAY_TOO),
)


def _groupmixformer(row: _Row) -> Recipe:
    cascade = row.detector == "cascade_mask_rcnn"
    return _recipe(
        row,
        _GROUPMIXFORMER,
        _adamw(1e-4, decay_all=True, no_decay=("*norm*", "*.bn.*") if cascade else ("*norm*",)),
        schedule=replace(_LENGTHS["3x"], milestones=(24, 33)),
        variation=_MULTI_SCALE,
        task=dict(box_head="4conv1fc") if cascade else {},
        loop=dict(sync_batch_norm=True),
        notes=[
            "The rate falls after epochs 24 and 33, as the article has it; elsewhere it is 27 and 33.",
            "Neither learning rate nor batch is known; chosen: 1e-4 for 16 images, as in other rows of mmdetection.",
            *([row.notes] if row.notes else []),
            "Chosen too: a weight decay of 0.05, as of Mask R-CNN, but of norms none; the drop path of classification; "
            "the sizes and the crops of SMT's 3x schedule for multi-scale; norms that learn, over all processes.",
            *(["Its parameters are those of the article with these box heads."] if cascade else []),
            _LEARNING_NORMS,
        ],
    )


def _adamw(lr: float, **decay: Any) -> OptimizerConfig:
    return OptimizerConfig(lr=lr, lr_batch_size=_GPUS * _IMAGES, weight_decay=0.05, betas=(0.9, 0.999), **decay)


# detectron2: SGD, 90,000 updates, norms in neck and heads.

_COTNET_NORMS = ("*.bn*", "*.norm.*", "*.embed.[14].*", "*.gate.1.*", "*.key.1.*", "*.value.1.*")
_COTNET_FIGURES = {  # AP of boxes by Faster and Cascade R-CNN; of boxes and masks by Mask and Cascade Mask R-CNN
    "cotnet_50": ("43.50", "46.11", "44.06", "39.28", "46.94", "40.25"),
    "cotnext_50": ("44.06", "46.79", "44.47", "39.62", "47.63", "40.76"),
    "se_cotnetd_50": ("43.96", "46.77", "44.16", "39.38", "47.44", "40.73"),
    "cotnet_101": ("45.35", "48.19", "46.17", "40.86", "48.97", "41.98"),
    "cotnext_101": ("46.10", "49.02", "46.66", "41.21", "49.35", "42.20"),
    "se_cotnetd_101": ("45.66", "49.02", "46.67", "41.53", "49.24", "42.38"),
}
_COTNET_ROWS = tuple(
    row
    for backbone, (faster, cascade, box, mask, cascade_box, cascade_mask) in _COTNET_FIGURES.items()
    for row in (
        _Row("faster_rcnn", backbone, "90k", faster),
        _Row("cascade_rcnn", backbone, "90k", cascade),
        _Row("mask_rcnn", backbone, "90k", box, mask),
        _Row("cascade_mask_rcnn", backbone, "90k", cascade_box, cascade_mask),
    )
)


def _cotnet(row: _Row) -> Recipe:
    masks = "mask" in row.detector
    shortcut = "*.downsample.2.*" if row.backbone.startswith("se_cotnetd") else "*.downsample.1.*"
    return _recipe(
        row,
        _COTNET,
        _sgd(no_decay=(*_COTNET_NORMS, shortcut)),
        variation=Variation(
            short_sides=tuple(range(640, 801, 32)) if masks else (640, 800), between=not masks, antialias=True
        ),
        task=dict(style="detectron2", frozen_stages=2),
        loop=dict(sync_batch_norm=True, validation_updates=10_000),
        notes=[
            "All weights decay but those of norms. Stem and first stage do not learn, nor measure.",
            "The authors measure the norms anew over 200 batches at the end (precise BN), which is not done here: the "
            "running statistics serve.",
            _LEARNING_NORMS,
        ],
    )


def _das() -> Recipe:
    row = _Row("faster_rcnn", "resnet50_das", "1x", "39.7")
    return _recipe(
        row,
        _DAS,
        _sgd(),
        model=dict(pretrained=False, pretrained_path="runs/resnet50_das_imagenet/last.safetensors"),
        task=dict(frozen_stages=2, frozen_norms=True),
        notes=[
            "Starts from the run of `resnet50_das_imagenet`, for no weights were released. The authors train the "
            "backbone alone first, then all of it for some epochs, and start the run from these weights; how is not "
            "told, and it is not done here.",
            "Assumed, as in mmdetection's configuration of ResNet-50: 12 epochs, the warm-up, images of one size, "
            "momentum 0.9, decay of everything, stem and first stage (with its gate) that do not learn.",
            _FIXED_NORMS,
        ],
    )


def _sgd(**decay: Any) -> OptimizerConfig:
    return OptimizerConfig(  # without Nesterov's momentum
        "momentum", lr=0.02, lr_batch_size=_GPUS * _IMAGES, weight_decay=1e-4, momentum=0.9, decay_all=True, **decay
    )


def _recipe(
    row: _Row,
    source: str,
    optimizer: OptimizerConfig,
    *,
    schedule: ScheduleConfig | None = None,
    variation: Variation | None = None,
    model: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    loop: dict[str, Any] | None = None,
    notes: list[str],
) -> Recipe:
    """A row as a recipe; `model`, `task` and `loop` are fields of these parts of its configuration."""
    schedule, variation, loop = schedule or _LENGTHS[row.length], variation or Variation(), loop or {}
    config = RunConfig(
        model=ModelConfig(row.backbone, drop_path_rate=row.drop_path, **{"pretrained": True, **(model or {})}),
        data=DataConfig(source="coco", batch_size=_IMAGES, workers=4),
        optimizer=optimizer,
        schedule=schedule,
        task=DetectionOptions(detector=row.detector, without_objects=False, variation=variation, **(task or {})),
        loop=LoopConfig(accumulation=_GPUS, **loop),
    )
    images = _GPUS * _IMAGES
    length = f"{schedule.updates:,} updates" if schedule.updates else f"{schedule.epochs} epochs"
    figures = [f"{figure} % {kind} AP" for figure, kind in ((row.box, "box"), (row.mask, "mask")) if figure]
    result = f"{', '.join(figures)} on the validation images" if figures else "none that is known to us"
    learns = not config.task.frozen_norms  # type: ignore[attr-defined]
    return recipe(
        f"{row.detector}_{row.backbone}_coco_{row.length}",
        f"{_TITLES[row.detector]} on {row.backbone}, COCO: {length} of {images} images ({row.length}).",
        config,
        result=f"{result} ({source}). {NOT_RUN}",
        hardware=several_gpus(_GPUS, _IMAGES),
        source=f"{source}.",
        notes="\n".join([*notes, *([BUFFERS] if learns else [])]),
    )


def _by_queries(row: _Row, optimizer: OptimizerConfig, schedule: ScheduleConfig | None, *notes: str) -> Recipe:
    return _recipe(row, _SMT, optimizer, schedule=schedule, variation=_MULTI_SCALE, notes=[*notes, _LEARNING_NORMS])


_QUERY_RECIPES = (
    _by_queries(
        _Row("sparse_rcnn", "smt_small", "3x", "50.2", drop_path=0.2),
        OptimizerConfig(
            lr=2.5e-5, lr_batch_size=16, weight_decay=1e-4, decay_all=True, betas=(0.9, 0.999), clip_grad=1.0
        ),
        None,
        _ALL_DECAY,
    ),
    _by_queries(
        _Row("dino", "smt_small", "3x", "54.0", drop_path=0.2),
        OptimizerConfig(
            lr=1e-4,
            lr_batch_size=16,
            weight_decay=1e-4,
            decay_all=True,
            no_decay=("*norm*",),
            betas=(0.9, 0.999),
            backbone_lr=0.1,
            clip_grad=0.1,
        ),
        ScheduleConfig("multistep", epochs=36, milestones=(30,)),
        "Which of detrex's schedules the published figure is of is not known; chosen: 36 epochs, the rate divided by "
        "ten after 30.",
        "In the crop branch detrex resizes the smaller copy without a limit to its long side; here it is 1333 pixels.",
    ),
)


def detect_finetune() -> RunConfig:
    """A detector on a small data set of your own: images with boxes, some dozens or more.

    Images are seen about as large as they are, up to a short side of 640 pixels, and in training smaller and larger.
    The norms of the backbone stay as they were trained. Training ends when fifteen validations have brought nothing.

    Command: `convattn train detect_finetune --data DIR --output runs/detect_finetune`
    Hardware: a GPU, or a CPU and patience (`--model.name smt_nano --model.no-pretrained` is a small network, which has
    no published weights, `--task.detector retinanet --task.width 96` a small detector).
    Source: ours.
    Result: none published; this recipe is ours.
    With outlines: `--task.detector mask_rcnn`. Where left and right matter: `--task.variation.flip 0`.
    """
    return RunConfig(
        model=ModelConfig("smt_tiny", pretrained=True, drop_path_rate=0.1),
        data=DataConfig(source="data", batch_size=4, workers=2),
        optimizer=OptimizerConfig(lr=2e-4, lr_batch_size=None, weight_decay=0.05, clip_grad=10.0),
        schedule=ScheduleConfig("cosine", epochs=60, warmup_epochs=2, warmup_factor=0.01),
        task=DetectionOptions(width=128, frozen_norms=True, scale=None),
        loop=LoopConfig(precision="auto", ema_decay=0.998, early_stopping=15),
        output=OutputConfig("runs/detect_finetune"),
    )


RECIPES: tuple[Recipe, ...] = (
    *map(_smt, _SMT_ROWS),
    *_QUERY_RECIPES,
    *map(_nextvit, _NEXTVIT_ROWS),
    *map(_cotnet, _COTNET_ROWS),
    *map(_groupmixformer, _GROUPMIXFORMER_ROWS),
    _das(),
    detect_finetune,
)
