"""Recipes of semantic segmentation: the authors' on ADE20K, and one for images and masks of your own."""

from dataclasses import dataclass, replace

from convattn.recipes.recipe import BUFFERS, NOT_RUN, Recipe, recipe, several_gpus
from convattn.segmentation.options import LabelOptions, SegmentationOptions
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)

__all__ = ["RECIPES", "segment_finetune"]

_GPUS = 8
_ADE20K = LabelOptions(reduce_zero_label=True)


@dataclass(frozen=True)
class _Row:
    """A published result on ADE20K's validation images, single scale, and what of its schedule is its own."""

    backbone: str
    miou: str  # percent, and at several scales with flips where that is published
    source: str
    drop_path: float
    no_decay: tuple[str, ...] = ()
    notes: str = ""


_SMT = "the article and the configurations of github.com/AFeng-x/SMT"
_NEXTVIT = "the article, the configurations and the logs of github.com/bytedance/Next-ViT"
_GROUPMIXFORMER = "the article of GroupMixFormer; no configuration was released"
_NORMS = ("*norm*", "*bn*")

_UPERNET = (
    _Row("smt_small", "49.2, 50.2 at several scales", _SMT, 0.2),
    _Row("smt_base", "49.6, 50.6 at several scales", _SMT, 0.3),
    _Row("nextvit_small", "48.1, 49.0 at several scales", _NEXTVIT, 0.2, _NORMS),
    _Row("nextvit_base", "50.4, 51.1 at several scales", _NEXTVIT, 0.2, _NORMS),
    _Row("nextvit_large", "50.1, 50.8 at several scales", _NEXTVIT, 0.2, _NORMS),
    _Row(
        "groupmixformer_base",
        "51.2",
        _GROUPMIXFORMER,
        0.4,
        ("*norm*",),
        "The learning rate is not known; chosen: 6e-5, that of the other rows. Chosen too: that norms do not decay.",
    ),
)
_SEMANTIC_FPN = (
    _Row("nextvit_small", "46.5", _NEXTVIT, 0.2),
    _Row("nextvit_base", "48.6", _NEXTVIT, 0.2),
    _Row("nextvit_large", "49.1", _NEXTVIT, 0.2),
    _Row(
        "groupmixformer_tiny",
        "46.2",
        _GROUPMIXFORMER,
        0.1,
        notes="Learning rate and weight decay are not known; chosen: 1e-4 each, those of Next-ViT's rows.",
    ),
)


def _run(row: _Row, head: str, batch_size: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> RunConfig:
    dense = {"extra_norm": True} if row.backbone.startswith("nextvit") else {}  # as the authors have it
    return RunConfig(
        model=ModelConfig(row.backbone, pretrained=True, drop_path_rate=row.drop_path, options=dense),
        data=DataConfig(source="ade20k", image_size=512, batch_size=batch_size, workers=4),
        optimizer=replace(optimizer, decay_all=True, no_decay=row.no_decay, betas=(0.9, 0.999)),
        schedule=schedule,
        task=SegmentationOptions(head=head, labels=_ADE20K),  # type: ignore[arg-type]
        loop=LoopConfig(
            accumulation=_GPUS, sync_batch_norm=True, validation_updates=16_000 if head == "upernet" else 4_000
        ),
    )


def _upernet(row: _Row) -> Recipe:
    config = _run(
        row,
        "upernet",
        2,
        OptimizerConfig(lr=6e-5, lr_batch_size=16, weight_decay=0.01),
        ScheduleConfig("poly", updates=160_000, warmup_updates=1_500, warmup_factor=1e-6),
    )
    return _recipe(row, "upernet", "UperNet", "160,000 updates of 16 images", config)


def _semantic_fpn(row: _Row) -> Recipe:
    ours = row.source == _GROUPMIXFORMER
    images, updates = (16, 80_000) if ours else (32, 40_000)
    warmup = dict(warmup_updates=1_500, warmup_factor=1e-6) if ours else {}
    config = _run(
        row,
        "semantic_fpn",
        images // _GPUS,
        OptimizerConfig(lr=1e-4, lr_batch_size=images, weight_decay=1e-4),
        ScheduleConfig("poly", updates=updates, power=0.9, min_lr=0.0 if ours else 1e-6, **warmup),  # type: ignore[arg-type]
    )
    return _recipe(row, "semantic_fpn", "Semantic FPN", f"{updates:,} updates of {images} images", config)


def _recipe(row: _Row, head: str, title: str, length: str, config: RunConfig) -> Recipe:
    notes = [
        *([row.notes] if row.notes else []),
        "The published figure is that of the last update. In one process batch norms measure a batch of "
        f"{config.data.batch_size}; over several they measure all of it.",
    ]
    return recipe(
        f"{head}_{row.backbone}_ade20k",
        f"{title} on {row.backbone}, ADE20K: {length}, crops of 512.",
        config,
        result=f"{row.miou} % mIoU ({row.source}). {NOT_RUN}",
        hardware=several_gpus(_GPUS, config.data.batch_size),
        source=f"{row.source}.",
        notes="\n".join([*notes, BUFFERS]),
    )


def segment_finetune() -> RunConfig:
    """A segmenter on a small data set of your own: images and masks, some dozens or more.

    Crops are as large as the images allow, up to 512 pixels; images are seen at the size that they have. A narrow
    UperNet stands on a trained network, and training ends when fifteen validations have brought nothing.

    Command: `convattn train segment_finetune --data DIR --output runs/segment_finetune`
    Hardware: a GPU, or a CPU and patience (`--model.name smt_nano` is a small network, `--task.head semantic_fpn` a
    small head).
    Source: ours.
    Result: none published; this recipe is ours.
    Classes are named by a file beside the data or by `--task.labels.classes FILE`; the number in masks that counts for
    nothing is `--task.labels.ignore-index`. Where left and right matter: `--task.flip 0`.
    """
    return RunConfig(
        model=ModelConfig("smt_tiny", pretrained=True, drop_path_rate=0.1),
        data=DataConfig(source="data", batch_size=8, workers=2),
        optimizer=OptimizerConfig(lr=3e-4, lr_batch_size=None, weight_decay=0.05, clip_grad=5.0),
        schedule=ScheduleConfig("poly", epochs=100, warmup_epochs=3, warmup_factor=0.01, power=0.9),
        task=SegmentationOptions(width=128, scale=None, loss_mean="valid"),
        loop=LoopConfig(precision="auto", ema_decay=0.998, early_stopping=15),
        output=OutputConfig("runs/segment_finetune"),
    )


RECIPES: tuple[Recipe, ...] = (*map(_upernet, _UPERNET), *map(_semantic_fpn, _SEMANTIC_FPN), segment_finetune)
