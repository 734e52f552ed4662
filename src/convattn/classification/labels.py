"""The labels of a data set in a model's order."""

from collections.abc import Sequence

from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from convattn.data.class_names import own_names
from convattn.data.dataset import DataError
from convattn.data.known_classes import KnownClasses, LabelError
from convattn.data.labelled import ImageDataset, Labelled
from convattn.data.names import NumberedClasses
from convattn.data.spelling import spelled
from convattn.shown import brief

__all__ = ["RelabelledDataset", "in_model_order"]


def in_model_order(dataset: ImageDataset, model: nn.Module) -> ImageDataset:
    """The data set with the labels that `model` was trained with, matched by the names of the classes.

    ImageNet's folders are called by synset (`n01440764`); so are the classes of a 1,000-class model without names of
    its own. A data set may hold some of the model's classes only. Where its labels are numbers without names, they are
    the numbers of the model's outputs, unless its classes are called by numbers (`KnownClasses`).

    Raises:
        DataError: if a class of the data set is unknown to the model or could be two of its classes, naming it.
    """
    names = own_names(model)
    if names is None and model.num_classes == 1000:
        names = ImageNetInfo("imagenet-1k").label_names()
    if names is None:
        return _by_outputs(dataset, int(model.num_classes))  # type: ignore[arg-type]
    if list(map(spelled, dataset.classes)) == list(map(spelled, names)):  # two may be called alike
        return RelabelledDataset(dataset, names, range(len(names)))
    known, numbered = KnownClasses(names), isinstance(dataset.classes, NumberedClasses)
    places: list[int] = []
    unknown: list[str] = []
    for name in dataset.classes:
        try:
            place = known.of(name) if numbered else known.named(name)
        except LabelError as error:
            raise DataError(f"the data and the model do not go together: {error}") from None
        if place is None:
            unknown.append(name)
        else:
            places.append(place)
    if unknown:
        raise DataError(
            f"class {brief(map(repr, unknown))} of the data is unknown to the model, which knows {brief(names)}"
        )
    return RelabelledDataset(dataset, names, places)


def _by_outputs(dataset: ImageDataset, outputs: int) -> ImageDataset:
    """For a model without names: numbers are its outputs, and as many classes as it has are taken to be these."""
    if isinstance(dataset.classes, NumberedClasses):
        numbers = list(map(int, dataset.classes))
        if numbers[-1] >= outputs:
            raise DataError(f"the data has a label {numbers[-1]} and the model outputs 0 to {outputs - 1}")
        return RelabelledDataset(dataset, list(map(str, range(outputs))), numbers)
    if len(dataset.classes) != outputs:
        raise DataError(
            f"the data has {len(dataset.classes)} classes and the model {outputs} without names; they cannot be matched"
        )
    return dataset


class RelabelledDataset(Labelled):
    """A data set under other classes; `position` is the new label of each old one."""

    def __init__(self, dataset: ImageDataset, classes: Sequence[str], position: Sequence[int]):
        self._dataset = dataset
        self.classes = list(classes)
        self.paths = dataset.paths
        self.labels = [position[label] for label in dataset.labels]

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        return self._dataset.read(index)
