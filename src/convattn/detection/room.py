"""The room of detection: what the loop, the commands, the report and the export ask of a task."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor, nn

from convattn.backbones.on_levels import built_by
from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError
from convattn.data.held_out import share_of
from convattn.data.some_images import sizes_of_some
from convattn.detection import exported
from convattn.detection.aspect_order import aspect_order
from convattn.detection.batch_targets import ImageTargets
from convattn.detection.collecting import tell
from convattn.detection.create import create_detector
from convattn.detection.dataset import DetectionImages
from convattn.detection.findings import Examination
from convattn.detection.options import WORDS, EvaluationOptions, PredictionOptions
from convattn.detection.predict import ObjectPrediction, detect
from convattn.detection.query_pictures import detect_queries
from convattn.detection.sources import open_evaluation, open_training
from convattn.detection.task import Detection
from convattn.detection.transforms import EvaluationTransform, evaluation_transform, training_transform
from convattn.detection.variation import Variation
from convattn.detection.writers import coco_dataset
from convattn.shown import shown
from convattn.task import Pairs, TaskRoom

__all__ = ["ROOM", "DetectionRoom"]

_MULTIPLE = 32  # of a size that is chosen by the images
_LEAST_SIDE, _MOST_SIDE = 160, 640  # short sides that are chosen
_VARIED = (0.75, 1.25)  # times that, in training
_SIZES_OF_VARIATION = ("short_sides", "between", "longest_side")
_PASSED_ON = (  # options of the task that are those of `create_detector`
    *("style", "box_head", "flavour", "width", "hidden", "layers", "queries", "proposals", "heads", "points", "levels"),
    *("denoising", "frozen_stages", "frozen_norms", "score_threshold", "max_detections"),
)
_EMPTY_SHOWN = 0.5  # share of images without objects from which on it is told


class DetectionRoom(TaskRoom):
    """Objects: boxes, classes, and masks."""

    kind = "detection"
    words = WORDS

    # Networks

    def create(self, name: str, **options: Any) -> nn.Module:
        """`create_detector` of that name."""
        return create_detector(detector=name, **options)  # type: ignore[arg-type]

    def build_model(self, config: Any, data: DetectionImages) -> nn.Module:
        """The detector of the configuration on its backbone; it knows the classes and the size of images."""
        model, task = config.model, config.task
        heads = {name: getattr(task, name) for name in _PASSED_ON}
        network = built_by(
            create_detector,
            model,
            "a detector; leave it out",
            detector=task.detector,
            num_classes=len(data.classes),
            **heads,
        )
        if network.fixed_size is not None:
            raise ConfigError(
                f"model {model.name} takes images of {network.fixed_size[0]} x {network.fixed_size[1]} alone, and a "
                "detector learns from many sizes; take another backbone"
            )
        longest, shortest = task.scale or (_round_up(_MOST_SIDE * 5 / 3), _MOST_SIDE)
        described: dict[str, Any] = dict(
            input_size=(3, _round_up(shortest), _round_up(longest)),
            label_names=data.classes,
            num_classes=len(data.classes),
            scale=(longest, shortest),
        )
        if task.variation.antialias:
            described["antialias"] = True
        network.pretrained_cfg = network.default_cfg = {**network.pretrained_cfg, **described}
        return network

    # Data

    def open_training(self, config: Any) -> tuple[DetectionImages, DetectionImages]:
        """The images with objects of a run."""
        data, task = config.data, config.task
        train, validation = open_training(
            data.source, masks=task.masks, validation=data.validation, seed=config.loop.seed
        )
        for images, which in ((train, "training"), (validation, "validation")):
            _check_objects(images, which)
        if not task.without_objects and train.without_objects:
            left_out = {*train.without_objects}
            tell(f"{shown(train.where)}: {len(left_out):,} of {len(train):,} training images show no object: left out")
            train = train.part([at for at in range(len(train)) if at not in left_out])
        return train, validation

    def open_evaluation(
        self, source: str, model: nn.Module, options: EvaluationOptions, run: Any = None
    ) -> DetectionImages:
        """Images with objects, under the classes of the model."""
        if run is not None and share_of(run.data.validation) is not None:
            return self.open_training(run)[1]
        found: Any = model
        data = open_evaluation(source, masks=found.has_masks, classes=_names(model))
        _check_objects(data, "evaluation")
        return data

    def order(self, config: Any, train: DetectionImages) -> Any:
        """Wide images together, and tall ones."""
        return aspect_order(train.sizes)

    def collate(self, targets: list[Any]) -> ImageTargets:
        """One entry an image."""
        return ImageTargets(targets)

    def training_transform(self, model: nn.Module, config: Any) -> Any:
        """Resized, mirrored, and what else the configuration varies."""
        cfg: Any = model.pretrained_cfg
        return training_transform(config.task.variation, cfg["mean"], cfg["std"], masks=config.task.masks)

    def evaluation_transform(self, model: nn.Module, options: Any = None) -> EvaluationTransform:
        """Resized as large as fits into the scale of the weights."""
        cfg: Any = model.pretrained_cfg
        height, width = cfg["input_size"][1:]
        scale = cfg.get("scale") or (max(height, width), min(height, width))
        return evaluation_transform(scale, cfg["mean"], cfg["std"], antialias=cfg.get("antialias", False))

    def fitted(self, config: Any, train: DetectionImages) -> tuple[Any, list[str]]:
        """Norms that learn in a network from scratch; images about as large as they are, smaller and larger too."""
        config, lines = _with_norms_that_learn(config)
        config, more = _with_sizes(config, train)
        return config, [*lines, *more]

    def remarks(self, config: Any, train: DetectionImages, validation: DetectionImages) -> list[str]:
        """Classes that no validation object is of, and images that show nothing."""
        found = []
        counts = validation.counts().tolist()
        absent = [name for name, count in zip(validation.classes, counts, strict=True) if not count]
        if absent:
            found.append(f"without a validation object, so that no figure tells of it: {shown(', '.join(absent))}")
        empty = len(train.without_objects)
        if empty > _EMPTY_SHOWN * len(train):
            found.append(
                f"{empty:,} of {len(train):,} training images show no object; --task.no-without-objects leaves them out"
            )
        return found

    # Runs

    def rebuild(self, config: Any, model: nn.Module, state: Mapping[str, Any]) -> Detection:
        """Losses and meter."""
        found: Any = model
        size = found.pretrained_cfg["input_size"][1:]
        return Detection(found.num_classes, masks=found.has_masks, image_size=size)

    # Use

    def examine(self, model: nn.Module, data: DetectionImages, source: str, options: EvaluationOptions) -> Examination:
        """By COCO's rules."""
        found: Any = model
        every = PredictionOptions(score=getattr(found, "score_threshold", 0.0))
        longest, shortest = self.evaluation_transform(model).scale
        return Examination(
            model,
            data,
            options,
            lambda other, picture: self.predict(other, [picture], every)[0],
            f"short side {shortest}, long at most {longest}",
            masks=found.has_masks,
        )

    def predict(
        self,
        model: nn.Module,
        pictures: Sequence[Image.Image],
        options: PredictionOptions,
        on_part: Callable[[float], None] = lambda pictures: None,
    ) -> list[ObjectPrediction]:
        """The objects in each, or how queries have come to them."""
        transform = self.evaluation_transform(model)
        names, seen = _names(model), exported.as_detector(model)
        say: Any = detect_queries if options.show == "queries" else detect
        return say(seen, pictures, options, lambda picture: transform(picture, None)[0], names, on_part)

    def files_of_all(self, found: Sequence[Mapping[str, Any]], model: nn.Module) -> dict[str, bytes]:
        """A data set in COCO's format."""
        return {"coco.json": json.dumps(coco_dataset(found, _names(model))).encode()}

    # Exported files

    def for_export(self, model: nn.Module, options: Any) -> nn.Module:
        """Tables with a fixed number of rows."""
        return exported.for_export(model)

    def numbers(self, model: nn.Module) -> nn.Module | None:
        """All that the layers compute."""
        return exported.numbers(model)

    def paired(self, got: Sequence[Tensor], want: Sequence[Tensor], exact: bool = True) -> Pairs | None:
        """Rows that show the same object."""
        return exported.paired(got, want, exact)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Classes, and how large images are seen."""
        return exported.describe(model)

    def check_description(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """The same from anybody's file."""
        return exported.check_description(described)

    def agreement(self, got: Sequence[Tensor], want: Sequence[Tensor]) -> dict[str, float]:
        """How alike what was found is."""
        return exported.agreement(got, want)


def _with_norms_that_learn(config: Any) -> tuple[Any, list[str]]:
    """Fresh norms have measured nothing: kept so, they scale no map, and gradients grow beyond all bounds."""
    model, task = config.model, config.task
    if model.pretrained or model.pretrained_path is not None or not task.frozen_norms:
        return config, []
    line = "task.frozen_norms False: norms of a network from scratch have measured nothing that could be kept"
    return replace(config, task=replace(task, frozen_norms=False)), [line]


def _with_sizes(config: Any, train: DetectionImages) -> tuple[Any, list[str]]:
    """A scale that is left open, by the sizes of some images; the sizes of training around it, unless they are set."""
    if config.task.scale is not None:
        return config, []
    seen = sizes_of_some(train)
    if not seen:
        return config, []
    typical = statistics.median(map(min, seen))
    ratio = min(2.0, max(max(size) / min(size) for size in seen))
    short = min(_MOST_SIDE, max(_LEAST_SIDE, round(typical / _MULTIPLE) * _MULTIPLE))
    longest, variation = round(short * ratio), config.task.variation
    line = f"task.scale {longest} {short}"
    if all(getattr(variation, name) == getattr(Variation(), name) for name in _SIZES_OF_VARIATION):
        low, high = (round(short * times / _MULTIPLE) for times in _VARIED)
        sides = tuple(side * _MULTIPLE for side in range(low, high + 1))
        most = max(round(longest * _VARIED[1]), sides[-1])
        variation = replace(variation, short_sides=sides, longest_side=most)
        line += f", and short sides of {sides[0]} to {sides[-1]} in training"
    line += f": images have a short side of about {typical:.0f} pixels"
    return replace(config, task=replace(config.task, scale=(longest, short), variation=variation)), [line]


def _names(model: Any) -> tuple[str, ...]:
    names = (model.pretrained_cfg or {}).get("label_names")
    return tuple(names or map(str, range(model.num_classes)))


def _check_objects(data: DetectionImages, which: str) -> None:
    if not int(data.counts().sum()):
        raise DataError(f"{shown(data.where)}: none of the {len(data):,} {which} images shows an object that counts")


def _round_up(side: float) -> int:
    return -(-int(side) // _MULTIPLE) * _MULTIPLE


ROOM = DetectionRoom()
