"""A segmenter: a backbone, a head on its levels, and in training a second head beside it."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from convattn.backbones.levels import Level, dense_backbone, level_maps
from convattn.backbones.on_levels import OnLevels, describe
from convattn.nearest import nearest
from convattn.segmentation.fcn import AuxiliaryHead
from convattn.segmentation.resize import resized
from convattn.segmentation.semantic_fpn import FPNHead, Neck
from convattn.segmentation.upernet import UPerHead
from convattn.weights.rename import SAME_NAMES, NameMap, Part, joined_names

__all__ = ["Segmenter", "create_segmenter"]

HEADS = {"upernet": 512, "semantic_fpn": 256}  # head -> its width: UperNet's own, that of Semantic FPN's pyramid

_IMAGE_SIZE = 512  # pixels a side of the crops that published segmenters of ADE20K learn from

_AUXILIARY = 2  # the level that the second head sees, of stride 16

# The neck is torchvision's, and mmsegmentation calls its layers otherwise.
_NECK_NAMES = NameMap({"inner_blocks.{i}.0": "lateral_convs.{i}.conv", "layer_blocks.{i}.0": "fpn_convs.{i}.conv"})


class Segmenter(OnLevels):
    """Images to the logits of each pixel's class.

    Args:
        backbone: gives maps at the levels' strides.
        levels: of it, at strides 4, 8, 16, 32.
        head: "upernet": UPerHead, beside an FCN head on the level of stride 16 in training; "semantic_fpn": a feature
            pyramid and the head of Panoptic FPN.
        num_classes: n.
        width: channels of UperNet, of which its second head has half; of the feature pyramid, of which the head behind
            it has half.
        dropout: share of the channels that are dropped in front of the last layers, in training.
        frozen_stages: how many parts of the backbone do not learn: 1 for the stem, 2 for the first stage too, ….
        frozen_norms: batch norms of the backbone do not learn, nor measure.

    Raises:
        ValueError: for a number out of range, or a backbone that does not tell where its stages end if they are to be
            frozen.
    """

    task_kind = "segmentation"

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[Level],
        head: str,
        num_classes: int,
        *,
        width: int,
        dropout: float = 0.1,
        frozen_stages: int = 0,
        frozen_norms: bool = False,
    ):
        super().__init__(backbone, levels, frozen_stages=frozen_stages, frozen_norms=frozen_norms)
        _check_classes(num_classes)
        channels = [level.channels for level in levels]
        self.num_classes = num_classes
        self.neck: Neck | None = None
        self.decode_head: UPerHead | FPNHead
        self.auxiliary_head: AuxiliaryHead | None = None
        if head == "upernet":
            self.decode_head = UPerHead(channels, width, num_classes, dropout)
            self.auxiliary_head = AuxiliaryHead(channels[_AUXILIARY], width // 2, num_classes, dropout)
        else:
            self.neck = Neck(channels, width)
            self.decode_head = FPNHead(width, [level.stride for level in levels], width // 2, num_classes, dropout)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Images (B, 3, H, W) -> in evaluation logits (B, n, H, W); in training those of each head, not resized.

        Returns:
            In training a dict: "decode": (B, n, H', W') at the finest level's size, and of UperNet "auxiliary": at the
            size of the level of stride 16.

        Raises:
            ValueError: for a size that the backbone refuses.
        """
        height, width = images.shape[-2:]
        images = self._padded(images)
        maps = level_maps(self.backbone, images, self.levels)
        logits = self.decode_head(maps if self.neck is None else self.neck(maps))
        if not self.training:
            logits = resized(logits, images.shape[-2:])
            return logits if self.size_multiple == 1 else logits[..., :height, :width]
        outputs = {"decode": logits}
        if self.auxiliary_head is not None:
            outputs["auxiliary"] = self.auxiliary_head(maps[_AUXILIARY])
        return outputs

    def _padded(self, images: Tensor) -> Tensor:
        """Images with zeros at the right and below, where the backbone takes multiples of a side alone."""
        times = self.size_multiple
        if times == 1:
            return images
        height, width = images.shape[-2:]
        below, right = -height % times, -width % times
        if self.training and (below or right):
            raise ValueError(
                f"images of {height} x {width}: to learn, this backbone takes sides that are multiples of {times}; "
                f"crop or pad images and labels to them"
            )
        return F.pad(images, (0, right, 0, below))

    # The contract of networks

    @property
    def official_names(self) -> NameMap:
        """The names of mmsegmentation: the backbone's authors' behind `backbone.`, and those of the heads."""
        parts = [self.backbone_names(), Part("decode_head", "decode_head", SAME_NAMES)]
        if self.neck is not None:
            parts.append(Part("neck", "neck", _NECK_NAMES))
        if self.auxiliary_head is not None:
            parts.append(Part("auxiliary_head", "auxiliary_head", SAME_NAMES))
        return joined_names(parts, aliases={"auxiliary_head.0.": "auxiliary_head."})  # where there could be several

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.decode_head.conv_seg

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer of each head by a fresh one."""
        _check_classes(num_classes)
        self.num_classes = num_classes
        for head in (self.decode_head, self.auxiliary_head):
            if head is not None:
                head.reset_classifier(num_classes)


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
    _check_classes(num_classes)
    if pretrained:
        backbone_options["pretrained"] = pretrained
    trunk, levels = dense_backbone(backbone, **backbone_options)
    like = next((p for p in trunk.parameters() if p.is_floating_point()), None)
    options: dict[str, Any] = dict(width=width, dropout=dropout, frozen_stages=frozen_stages, frozen_norms=frozen_norms)
    with nullcontext() if like is None else like.device:
        model = Segmenter(trunk, levels, head, num_classes, **options)
    if like is not None:
        for part in (model.neck, model.decode_head, model.auxiliary_head):
            if part is not None:
                part.to(like.dtype)
    heads = [name for name in ("decode_head", "auxiliary_head") if getattr(model, name) is not None]
    describe(
        model,
        head,
        options,
        task=model.task_kind,
        image_size=(_IMAGE_SIZE, _IMAGE_SIZE),
        num_classes=num_classes,
        classifier=[f"{name}.conv_seg" for name in heads],
    )
    return model


def _check_classes(num_classes: int) -> None:
    """Refuse a number of classes among which there is nothing to choose; raises ValueError."""
    if num_classes < 2:
        raise ValueError(f"num_classes {num_classes} must be 2 or more: what is not the one class is a class, too")
