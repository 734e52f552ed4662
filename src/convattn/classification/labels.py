"""The labels of a data set in a model's order."""

from collections.abc import Sequence

from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

from convattn.data.class_names import own_names
from convattn.data.dataset import DataError, ImageDataset
from convattn.data.names import NumberedClasses

__all__ = ["RelabelledDataset", "in_model_order"]


def in_model_order(dataset: ImageDataset, model: nn.Module) -> ImageDataset:
    """The data set with the labels that `model` was trained with, matched by the names of the classes.

    ImageNet's folders are called by synset (`n01440764`); so are the classes of a 1,000-class model without names of
    its own. A data set may hold some of the model's classes only. Where its labels are numbers without names, they are
    the numbers of the model's outputs.

    Raises:
        DataError: if a class of the data set is unknown to the model, naming it.
    """
    names = own_names(model)
    if names is None and model.num_classes == 1000:
        names = ImageNetInfo("imagenet-1k").label_names()
    if isinstance(dataset.classes, NumberedClasses) and names is not None:
        if len(dataset.classes) > len(names):
            raise DataError(
                f"the data has a label {len(dataset.classes) - 1} and the model outputs 0 to {len(names) - 1}"
            )
        return RelabelledDataset(dataset, names, range(len(names)))
    if names is None:
        if len(dataset.classes) != model.num_classes:
            raise DataError(
                f"the data has {len(dataset.classes)} classes and the model {model.num_classes} without names; "
                "they cannot be matched"
            )
        return dataset
    position = {name: index for index, name in enumerate(names)}
    unknown = [name for name in dataset.classes if name not in position]
    if unknown:
        raise DataError(
            f"class {', '.join(map(repr, unknown[:5]))} of the data is unknown to the model, which knows "
            f"{', '.join(list(names)[:5])}{', …' if len(names) > 5 else ''}"
        )
    return RelabelledDataset(dataset, names, [position[name] for name in dataset.classes])


class RelabelledDataset:
    """A data set under other labels.

    Args:
        dataset: the images.
        classes: the new classes.
        position: the new label of each old one.
    """

    def __init__(self, dataset: ImageDataset, classes: Sequence[str], position: Sequence[int]):
        self._dataset = dataset
        self.classes = list(classes)
        self.paths = dataset.paths
        self.labels = [position[label] for label in dataset.labels]

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        return self._dataset.read(index)
