"""The room of segmentation: what the loop, the commands, the report and the export ask of a task."""

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from convattn.backbones.on_levels import built_by
from convattn.config_errors import ConfigError
from convattn.data.colours import default_colours
from convattn.data.held_out import share_of
from convattn.data.images import ImageError
from convattn.data.some_images import sizes_of_some
from convattn.segmentation import exported
from convattn.segmentation.arg_max import ArgMax
from convattn.segmentation.dataset import MaskedImages
from convattn.segmentation.findings import Examination
from convattn.segmentation.label_maps import collate
from convattn.segmentation.looking import MOST_PIXELS, look_of
from convattn.segmentation.options import (
    WORDS,
    EvaluationOptions,
    ExportOptions,
    LabelOptions,
    OtherLabels,
    PredictionOptions,
)
from convattn.segmentation.predict import MaskPrediction, segment
from convattn.segmentation.segmenter import create_segmenter
from convattn.segmentation.sources import open_evaluation, open_training
from convattn.segmentation.task import Segmentation
from convattn.segmentation.transforms import evaluation_transform, training_transform
from convattn.task import TaskRoom

__all__ = ["ROOM", "SegmentationRoom"]

_CROP = 512  # side of training crops, pixels
_LEAST_CROP = 64
_MULTIPLE = 32  # of a crop that is chosen by the images
_MASKS_READ = 1000  # validation images up to which their masks are read before a run, to find absent classes


class SegmentationRoom(TaskRoom):
    """The class of every pixel."""

    kind = "segmentation"
    words = WORDS

    # Networks

    def create(self, name: str, **options: Any) -> nn.Module:
        """`create_segmenter` with the head of that name."""
        return create_segmenter(head=name, **options)  # type: ignore[arg-type]

    def build_model(self, config: Any, data: MaskedImages) -> nn.Module:
        """The head of the configuration on its backbone; it knows the classes, their colours and the size of images."""
        model, task = config.model, config.task
        network = built_by(
            create_segmenter,
            model,
            "a segmenter; there is task.dropout",
            head=task.head,
            num_classes=len(data.classes),
            width=task.width,
            dropout=task.dropout,
            frozen_stages=task.frozen_stages,
            frozen_norms=task.frozen_norms,
        )
        described = dict(
            input_size=(3, *_crop(network, config.data.image_size)),
            label_names=data.classes,
            label_colours=data.colours,
            ignore_index=task.labels.ignore_index,
            reduce_zero_label=task.labels.reduce_zero_label,
        )
        network.pretrained_cfg = {**network.pretrained_cfg, **described, "num_classes": len(data.classes)}
        if task.scale is not None:
            network.pretrained_cfg["scale"] = task.scale
        network.default_cfg = network.pretrained_cfg
        return network

    # Data

    def open_training(self, config: Any) -> tuple[MaskedImages, MaskedImages]:
        """The images with masks of a run."""
        data = config.data
        return open_training(data.source, config.task.labels, validation=data.validation, seed=config.loop.seed)

    def open_evaluation(
        self, source: str, model: nn.Module, options: EvaluationOptions, run: Any = None
    ) -> MaskedImages:
        """Images with masks, under the classes of the model."""
        if run is not None and share_of(run.data.validation) is not None:
            return self.open_training(run)[1]
        cfg: Any = model.pretrained_cfg or {}
        known = {name: cfg[name] for name in ("ignore_index", "reduce_zero_label") if name in cfg}
        labels = options.labels.over(LabelOptions(**known) if run is None else run.task.labels)
        return open_evaluation(source, labels, classes=self._classes(model), colours=cfg.get("label_colours"))

    def further_evaluation(
        self, source: str, config: Any, model: nn.Module, validation: Any
    ) -> tuple[Any, Callable[[], Any]]:
        """Images elsewhere, whose masks are as those of the run."""
        options = EvaluationOptions(labels=OtherLabels(**vars(config.task.labels)))
        data = self.open_evaluation(source, model, options)
        return data, lambda: self.examine(model, data, source, options)

    def collate(self, targets: list[Any]) -> Any:
        """Label maps, of several sizes in a list."""
        return collate(targets)

    def training_transform(self, model: nn.Module, config: Any) -> Any:
        """Scaled, cropped, mirrored, varied in colour."""
        cfg: Any = model.pretrained_cfg
        return training_transform(config.task, cfg["input_size"][-1], cfg["mean"], cfg["std"])

    def evaluation_transform(self, model: nn.Module, options: EvaluationOptions | None = None) -> Any:
        """Resized by the rule of the weights; the picture itself where it is looked at in several sizes."""
        if options is not None and options.looks_again:
            return lambda picture, target: (pil_to_tensor(picture), torch.as_tensor(target))
        return self._transform(model)

    def fitted(self, config: Any, train: MaskedImages) -> tuple[Any, list[str]]:
        """Crops no larger than the images."""
        if config.data.image_size is not None:
            return config, []
        sides = [min(size) for size in sizes_of_some(train)]
        if not sides or _takes_one_size(config):
            return config, []
        seen = config.task.scale[1] if config.task.scale else int(statistics.median(sides))
        side = max(_LEAST_CROP, min(_CROP, seen // _MULTIPLE * _MULTIPLE))
        line = f"data.image_size {side}, the side of training crops: images have a short side of about {seen} pixels"
        return replace(config, data=replace(config.data, image_size=side)), [line]

    def remarks(self, config: Any, train: Any, validation: MaskedImages) -> list[str]:
        """Classes that no validation pixel is of."""
        if len(validation) > _MASKS_READ:
            return []
        seen = set[int]()
        for index in range(len(validation)):
            with suppress(ImageError):  # told where it matters
                seen |= {*torch.as_tensor(validation.target(index)).unique().tolist()}
        absent = [name for label, name in enumerate(validation.classes) if label not in seen]
        return [f"without a validation pixel, so that no figure tells of it: {', '.join(absent)}"] if absent else []

    # Runs

    def rebuild(self, config: Any, model: nn.Module, state: Mapping[str, Any]) -> Segmentation:
        """Losses and meter."""
        found: Any = model
        return Segmentation(found.num_classes, config.task, found.pretrained_cfg["input_size"][1:])

    # Use

    def examine(self, model: nn.Module, data: MaskedImages, source: str, options: EvaluationOptions) -> Examination:
        """Each image by itself."""
        views = partial(self._views, model, options) if options.looks_again else _alone
        return Examination(model, data, options, views, self._again(options), _seen(model, options))

    def predict(
        self,
        model: nn.Module,
        pictures: Sequence[Image.Image],
        options: PredictionOptions,
        on_part: Callable[[float], None] = lambda pictures: None,
    ) -> list[MaskPrediction]:
        """The class of each pixel."""
        names = self._classes(model)
        colours = _colours(model, len(names))
        transform = self._transform(model)
        return segment(model, pictures, options, lambda picture: transform(picture, None)[0], names, colours, on_part)

    # Exported files

    def for_export(self, model: nn.Module, options: ExportOptions) -> nn.Module:
        """With the arg max inside, if asked for."""
        return ArgMax(model) if options.arg_max else model

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Classes, colours and the size of images."""
        return exported.describe(model)

    def check_description(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """The same from anybody's file."""
        return exported.check_description(described)

    def agreement(self, got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
        """The share of equal pixels."""
        return exported.agreement(got, want)

    def _classes(self, model: Any) -> tuple[str, ...]:
        names = (model.pretrained_cfg or {}).get("label_names")
        return tuple(names or map(str, range(model.num_classes)))

    def _transform(self, model: Any, ratio: float = 1.0) -> Any:
        cfg = model.pretrained_cfg
        return evaluation_transform(cfg.get("scale"), cfg["mean"], cfg["std"], ratio)

    def _views(self, model: Any, options: EvaluationOptions, picture: Tensor) -> list[Tensor]:
        return [self._transform(model, ratio)(picture, None)[0] for ratio in options.scales]

    def _again(self, options: EvaluationOptions) -> Callable[[nn.Module, Image.Image], MaskPrediction]:
        whole = PredictionOptions(options.window, options.step)
        return lambda model, picture: self.predict(model, [picture], whole)[0]


def _takes_one_size(config: Any) -> bool:
    """Whether the backbone of a configuration takes images of one size alone; its weights are not looked at."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # told when the run builds it
            network = create_segmenter(config.model.name, config.task.head, 2, width=16, **config.model.options)
    except (TypeError, ValueError):  # as above
        return False
    return network.fixed_size is not None


def _crop(network: Any, asked: int | None) -> tuple[int, int]:
    """Height and width of training crops; ConfigError for others than the only ones that a backbone takes."""
    fixed: tuple[int, int] | None = network.fixed_size
    if fixed is None:
        return (asked or _CROP,) * 2
    if asked is not None and fixed != (asked, asked):
        raise ConfigError(f"data.image_size {asked}: this backbone takes {fixed[0]} x {fixed[1]} alone; leave it out")
    return fixed


def _alone(image: Tensor) -> list[Tensor]:
    return [image]


def _colours(model: Any, classes: int) -> tuple[tuple[int, int, int], ...]:
    colours = (model.pretrained_cfg or {}).get("label_colours")
    return tuple(map(tuple, colours or default_colours(classes)))


def _seen(model: Any, options: EvaluationOptions) -> str:
    """How images are looked at, in words."""
    scale = model.pretrained_cfg.get("scale")
    size = "as they are" if scale is None else f"short side {scale[1]}, long at most {scale[0]}"
    look = look_of(model, options)
    part = f"windows of {look.side[0]} x {look.side[1]}, {look.step[0]} apart"
    if not look.always and not look.fixed:
        is_bounded = scale is not None and scale[0] * scale[1] <= MOST_PIXELS
        part = "whole" if is_bounded else f"whole up to {MOST_PIXELS:,} pixels, beyond by {part}"
    several = f", at {' '.join(f'{each:g}' for each in options.scales)} times" if options.scales != (1.0,) else ""
    return f"{size}, {part}{several}{', mirrored too' if options.flip else ''}"


ROOM = SegmentationRoom()
