"""The room of classification: what `convattn.task` asks of a task, answered out of the files beside this one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from convattn.backbones.registry import create_model
from convattn.classification import exported
from convattn.classification.findings import Examination
from convattn.classification.labels import in_model_order
from convattn.classification.model import build_classifier, check_size, describe_input
from convattn.classification.options import WORDS, ClassificationOptions, EvaluationOptions, PredictionOptions
from convattn.classification.predict import ClassPrediction, classify
from convattn.classification.real_labels import RealDataset, RealScores, read_real_labels
from convattn.classification.scores import Scores
from convattn.classification.task import Classification, balanced_weights
from convattn.classification.teacher import Student, fit_teacher
from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError
from convattn.data.files import listing
from convattn.data.held_out import share_of
from convattn.data.joined_dataset import JoinedDataset
from convattn.data.labelled import ImageDataset
from convattn.data.names import NumberedClasses
from convattn.data.sources import is_stream, open_evaluation, open_training, open_unlabelled
from convattn.data.stream import StreamLoader
from convattn.data.transforms import PictureAlone, training_transform, transforms_for
from convattn.model_files import label_names, open_model
from convattn.task import Meter, TaskRoom

__all__ = ["ROOM"]

_TOP = 5  # classes among which an image's may be, for `top5`


class ClassificationRoom(TaskRoom):
    """See `convattn.task.TaskRoom`."""

    kind = "classification"
    words = WORDS

    create = staticmethod(create_model)
    describe = staticmethod(exported.describe)
    check_description = staticmethod(exported.check_description)
    agreement = staticmethod(exported.agreement)

    def build_model(self, config: Any, data: ImageDataset) -> nn.Module:
        """A model with one output per class that knows their names and its input."""
        path = config.model.pretrained_path
        model = build_classifier(
            config.model, len(data.classes), data.classes, label_names(path) if path is not None else []
        )
        describe_input(model, config.data.image_size, config.task.crop_ratio, data.classes)
        check_size(model, config.model, config.data.image_size)
        return model

    def open_training(self, config: Any) -> tuple[ImageDataset | None, ImageDataset]:
        """The training images, None for a stream, and the validation images."""
        data, unlabelled = config.data, config.task.distillation.unlabelled
        if is_stream(data.source) and (unlabelled is not None or data.repeats > 1):
            raise DataError(f"{data.source}: a pipe takes neither task.distillation.unlabelled nor data.repeats")
        train, validation = open_training(
            data.source,
            data.image_size or 32,
            validation=data.validation,
            validation_labels=config.task.validation_labels,
            seed=config.loop.seed,
        )
        if train is not None and unlabelled is not None:
            train = JoinedDataset(train, open_unlabelled(unlabelled))
        return train, validation

    def open_stream(self, config: Any, transform: Any, data: ImageDataset, **share: Any) -> StreamLoader:
        """Shards out of a pipe, under the classes of the validation images."""
        run = config.data
        return StreamLoader(run.source, transform, data.classes, run.batch_size, images=run.epoch_images, **share)

    def open_evaluation(
        self, source: str, model: nn.Module, options: EvaluationOptions, run: Any = None
    ) -> ImageDataset:
        """Labelled images, under the classes of the model."""
        cfg: Any = model.pretrained_cfg or {}
        size = cfg.get("input_size", 32)
        if run is not None and share_of(run.data.validation) is not None:
            return in_model_order(self.open_training(run)[1], model)
        labels = options.labels or (run and run.task.validation_labels)
        return in_model_order(open_evaluation(source, size, labels=labels), model)

    def further_evaluation(
        self, source: str, config: Any, model: nn.Module, validation: ImageDataset
    ) -> tuple[Any, Callable[[], Meter]]:
        """Labelled images elsewhere; of `real:FILE` the validation images under ImageNet's reassessed labels."""
        if source.startswith("real:"):
            data = RealDataset(in_model_order(validation, model), read_real_labels(source.removeprefix("real:")))
            return data, RealScores
        return self.open_evaluation(source, model, EvaluationOptions()), Scores

    def training_transform(self, model: nn.Module, config: Any) -> PictureAlone:
        """timm's, varied as the options say."""
        return PictureAlone(training_transform(model, config.task.augmentation))

    def evaluation_transform(self, model: nn.Module, options: Any = None) -> PictureAlone:
        """timm's, as the weights expect."""
        return PictureAlone(transforms_for(model))

    def left_out(self, data: ImageDataset, unreadable: Collection[str]) -> list[str]:
        """The classes of which no image is left."""
        if not unreadable:
            return []
        pairs = zip(data.paths, data.labels, strict=True)
        left = {label for path, label in pairs if path not in unreadable}
        lost = [data.classes[label] for label in sorted(set(data.labels) - left)]
        return [f"class {name!r} counts for nothing: none of its images can be read" for name in lost]

    def remarks(self, config: Any, train: ImageDataset | None, validation: ImageDataset) -> list[str]:
        """Classes that nothing is known of in validation, and a figure that says nothing."""
        lines = []
        if train is not None and share_of(config.data.validation) is None:  # what is held out has been told
            lacking = sorted({*train.labels} - {*validation.labels, -1})  # -1: without a label
            if lacking:
                names = listing(train.classes[label] for label in lacking)
                lines.append(f"without a validation image, so that no figure tells of it: {names}")
        if len(validation.classes) <= _TOP:
            lines.append(f"top-5 is always 100 % with {len(validation.classes)} classes; look at top-1")
        return lines

    def build(
        self,
        config: Any,
        model: nn.Module,
        train: ImageDataset | None,
        validation: ImageDataset,
        device: torch.device,
        note: Callable[[str], None],
    ) -> Classification:
        """Loss and metrics; with a teacher, told in a line each in what it differs from the model."""
        weights = None
        if config.task.class_weights == "balanced":
            if train is None:
                raise ConfigError("task.class_weights balanced needs images that can be counted, not a pipe")
            weights = balanced_weights(train.labels, len(train.classes)).to(device)
        classes = validation.classes if train is None else train.classes
        unnamed = isinstance(classes, NumberedClasses) and classes.are_places
        student = Student.of(model, None if unnamed else tuple(classes))
        return _task(config.task, student, weights, device, note)

    def rebuild(self, config: Any, model: nn.Module, state: Mapping[str, Any]) -> Classification:
        """The same from what a file has kept of it."""
        notes: list[str] = []  # told when the run began
        return _task(config.task, Student(**state["student"]), state["class_weights"], "cpu", notes.append)

    def predict(
        self,
        model: nn.Module,
        pictures: Sequence[Image.Image],
        options: PredictionOptions,
        on_part: Callable[[float], None] = lambda pictures: None,
    ) -> list[ClassPrediction]:
        """The most probable classes; a batch is done at once."""
        return classify(model, pictures, options)

    def examine(self, model: nn.Module, data: ImageDataset, source: str, options: EvaluationOptions) -> Examination:
        """Each image by itself."""
        return Examination(model, data, source, options)


def _task(
    options: ClassificationOptions,
    student: Student,
    class_weights: Tensor | None,
    device: torch.device | str,
    note: Callable[[str], None],
) -> Classification:
    name = options.distillation.teacher
    teacher = None if name is None else open_model(name)
    try:
        if teacher is not None:
            teacher = fit_teacher(teacher, student, str(name), note).to(device)
        return Classification(
            student.num_classes, options, class_weights=class_weights, teacher=teacher, student=student
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


ROOM = ClassificationRoom()
