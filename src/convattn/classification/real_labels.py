"""ReaL, the reassessed labels of ImageNet's validation images: each has all the classes that are in it, or none.

Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159; the file is `real.json` of
github.com/google-research/reassessed-imagenet.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image
from timm.data import RealLabelsImagenet
from torch import Tensor

from convattn.data.dataset import DataError
from convattn.data.labelled import ImageDataset
from convattn.task import Batch, Meter

__all__ = ["RealDataset", "RealLabels", "RealScores", "read_real_labels"]

_IMAGES = 50_000
_CLASSES = 1000
_INDICES = frozenset(range(_CLASSES))
_LARGEST = 2**26  # bytes


class RealLabels:
    """The classes of each validation image.

    Args:
        classes: 50,000 lists of ImageNet-1k class indices, in the order of the images' numbers.
    """

    def __init__(self, classes: Sequence[Sequence[int]]):
        self._classes = classes

    def of(self, path: str) -> Sequence[int]:
        """The classes of the image `…/ILSVRC2012_val_000000NN.JPEG`, its directory aside; none where ReaL has none.

        Its synset may follow: `ILSVRC2012_val_000000NN_n01440764.JPEG`.

        Raises:
            DataError: if the file has another name.
        """
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})(_n\d{8})?", PurePath(path).stem)
        if match is None or not 1 <= int(match[1]) <= _IMAGES:
            raise DataError(
                f"{path}: ReaL labels go by the names of ImageNet's validation images, ILSVRC2012_val_00000001 to "
                f"ILSVRC2012_val_{_IMAGES:08d}; evaluate those, or leave the labels out"
            )
        return self._classes[int(match[1]) - 1]

    def accuracy(self, paths: Sequence[str], predictions: Tensor) -> tuple[float, int]:
        """How often the predicted class is one of the image's, over the images that have any.

        Args:
            paths: N files.
            predictions: (N,) ImageNet-1k class indices.

        Returns:
            Accuracy in percent, and the number of images that it is over.

        Raises:
            DataError: if a file is no validation image, or none has a label.
        """
        pairs = zip(map(self.of, paths), predictions.tolist(), strict=True)
        right = [predicted in classes for classes, predicted in pairs if classes]
        if not right:
            raise DataError(
                f"none of the {len(paths)} images has a ReaL label; evaluate others, or leave the labels out"
            )
        return 100 * torch.tensor(right).double().mean().item(), len(right)


class RealDataset:
    """ImageNet's validation images under their reassessed labels; DataError if a file is none of them."""

    def __init__(self, images: ImageDataset, labels: RealLabels):
        self._images = images
        self.paths = images.paths
        self._classes = [labels.of(path) for path in images.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """The image at `index`, RGB; raises ImageError if it cannot be read."""
        return self._images.read(index)

    def target(self, index: int) -> Tensor:
        """Which classes are in it, (1000,) of truths; none where ReaL has no label."""
        found = torch.zeros(_CLASSES, dtype=torch.bool)
        found[list(self._classes[index])] = True
        return found


class RealScores(Meter):
    """The meter of `top1`, percent: how often the predicted class is one of the image's, over images that have any."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count a batch by its logits (B, 1000)."""
        right = batch.targets.gather(1, outputs.argmax(dim=1, keepdim=True)).sum()
        sums = torch.stack([batch.targets.any(dim=1).sum(), right])
        self._sums = sums if self._sums is None else self._sums + sums

    def parts(self) -> dict[str, Any]:
        """The sums, for those of other processes to be added."""
        return {"sums": torch.zeros(2, dtype=torch.int64) if self._sums is None else self._sums}

    def result(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """The accuracy; not a number where no image has a label."""
        images, right = parts["sums"].tolist()
        return {"top1": 100 * right / images if images else float("nan")}


def read_real_labels(path: str | Path) -> RealLabels:
    """The labels in a file `real.json`, of timm's copy for "timm"; DataError if it is no 50,000 lists of classes."""
    if str(path) == "timm":
        return RealLabels(list(RealLabelsImagenet(range(_IMAGES)).real_labels.values()))
    try:
        size = Path(path).stat().st_size
        if size > _LARGEST:
            raise DataError(f"{path}: {size:,} bytes; ReaL labels are a file real.json of less than {_LARGEST:,}")
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: no JSON ({error}); ReaL labels are a file real.json") from None
    if not isinstance(content, list) or len(content) != _IMAGES:
        found = f"{len(content):,} entries" if isinstance(content, list) else f"a {type(content).__name__}"
        raise DataError(f"{path}: holds {found}; ReaL labels are a list of {_IMAGES:,} lists, one a validation image")
    return RealLabels([_indices(path, number, entry) for number, entry in enumerate(content, 1)])


def _indices(path: str | Path, number: int, entry: object) -> list[int]:
    numbers = isinstance(entry, list) and all(type(label) in (int, float) and label in _INDICES for label in entry)
    if not isinstance(entry, list) or not numbers:
        shown = repr(entry)[:60]
        raise DataError(f"{path}: entry {number} is {shown}; it must be a list of class indices, 0 to {_CLASSES - 1}")
    return [int(label) for label in entry]
