"""Building a segmenter: its backbone by name or as a model, its heads, and how a file builds it again."""

from contextlib import nullcontext
from typing import Any, Literal

from torch import nn

from convattn.backbones.levels import dense_backbone
from convattn.nearest import nearest
from convattn.segmentation.segmenter import Segmenter, check_classes

__all__ = ["build_segmenter", "create_segmenter"]

HEADS = {"upernet": 512, "semantic_fpn": 256}  # head -> its width: UperNet's own, that of Semantic FPN's pyramid

_IMAGE_SIZE = 512  # pixels a side of the crops that published segmenters of ADE20K learn from


def create_segmenter(
    backbone: str | nn.Module,
    head: Literal["upernet", "semantic_fpn"] = "upernet",
    num_classes: int = 150,
    *,
    pretrained: bool = False,
    width: int | None = None,
    dropout: float = 0.1,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
    **backbone_options: Any,
) -> Segmenter:
    """A segmenter on any backbone with levels at strides 4, 8, 16 and 32.

    In evaluation it gives logits (B, num_classes, H, W) of images (B, 3, H, W); in training a dict with those of each
    head at their own strides.

    Args:
        backbone: a name, as `create_model` takes it, built in its form for dense prediction (which a `FormNote` tells
            where it is not that of the bare name); or a model with timm's `feature_info`, with a head or without, of
            which a copy is taken: its weights are the start, and the two learn apart.
        head: "upernet" (with a second head in training), or "semantic_fpn".
        num_classes: 2 or more.
        pretrained: start from the published weights of the backbone's name; the heads start fresh.
        width: channels of UperNet (512; its second head has half of it), or of Semantic FPN's pyramid (256; the head
            behind it has half of it).
        dropout: share of the channels that are dropped in front of the last layer, in training.
        frozen_stages: how many parts of the backbone do not learn: 1 for the stem, 2 for the first stage too, …; their
            norms keep their statistics.
        frozen_norms: batch norms of the backbone neither learn nor measure. Those of the heads do.
        **backbone_options: of `create_model`, such as `pretrained_path`, `drop_path_rate` and the family's own, with a
            name only.

    Raises:
        ValueError: for an unknown name or option, a number out of range, a backbone that lacks a level or has a head on
            its levels already; CheckpointError (a ValueError) when weights cannot be had or do not fit.
    """
    if head not in HEADS:
        raise ValueError(f"head {head!r} is unknown; {nearest(str(head), HEADS)}")
    width = HEADS[head] if width is None else width
    if width < 2:
        raise ValueError(f"width {width} must be 2 or more")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} must be at least 0 and below 1")
    check_classes(num_classes)
    if pretrained:
        backbone_options["pretrained"] = pretrained
    trunk, levels = dense_backbone(backbone, **backbone_options)
    like = next((p for p in trunk.parameters() if p.is_floating_point()), None)
    options: dict[str, Any] = dict(
        width=width, dropout=dropout, frozen_stages=frozen_stages, frozen_norms=frozen_norms
    )
    with nullcontext() if like is None else like.device:
        model = Segmenter(trunk, levels, head, num_classes, **options)
    if like is not None:
        for part in (model.neck, model.decode_head, model.auxiliary_head):
            if part is not None:
                part.to(like.dtype)
    _describe(model, head, options)
    return model


def build_segmenter(head: str, *, backbone: str, **options: Any) -> Segmenter:
    """The segmenter of a `built_as`: `create_segmenter` by the name of the head."""
    return create_segmenter(backbone, head, **options)  # type: ignore[arg-type]


def _describe(model: Segmenter, head: str, options: dict[str, Any]) -> None:
    """Tell the model what it takes, and what builds it again where that is known."""
    trunk = model.backbone
    cfg: Any = getattr(trunk, "pretrained_cfg", None) or {}
    described = {key: cfg[key] for key in ("mean", "std") if key in cfg} | {
        "architecture": f"{head}_{cfg.get('architecture') or type(trunk).__name__}",
        "input_size": (getattr(trunk, "in_chans", 3), _IMAGE_SIZE, _IMAGE_SIZE),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": model.num_classes,
        "classifier": tuple(
            f"{name}.conv_seg" for name in ("decode_head", "auxiliary_head") if getattr(model, name) is not None
        ),
    }
    model.pretrained_cfg = model.default_cfg = described  # type: ignore[assignment]
    built_as: Any = vars(trunk).pop("built_as", None)
    if built_as is not None:
        own = {"backbone": built_as["name"], "num_classes": model.num_classes, **options}
        vars(model)["built_as"] = {"task": model.task_kind, "name": head, "options": built_as["options"] | own}
    surgery = [
        {**row, "place": f"backbone.{row['place']}"} for row in vars(trunk).pop("surgery", ()) if _has(trunk, row["place"])
    ]
    if surgery:
        vars(model)["surgery"] = surgery


def _has(model: nn.Module, place: str) -> bool:
    return any(name == place for name, _ in model.named_modules())
