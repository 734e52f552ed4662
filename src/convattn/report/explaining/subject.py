"""A model and what it is shown: pictures as it sees them."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn

from convattn.data.class_names import distinct_names
from convattn.data.images import read_image
from convattn.data.transforms import picture_seen, transforms_for
from convattn.explain.targets import find_object
from convattn.nearest import nearest
from convattn.sizes import Size, image_shape

__all__ = ["Subject", "budgets"]

_SHOWN = 288  # pixels of the longer side of a picture on the page, at least


class Subject:
    """One of the models that are set side by side.

    Args:
        label: what the page calls it.
        model: with a `pretrained_cfg`, which says how it sees pictures.
        pictures: files.
        size: of the images in the place of the model's own.
        is_squashed: whether pictures are resized to that size without keeping their aspect, as the effective receptive
            field has them, instead of cropped.
    """

    def __init__(
        self,
        label: str,
        model: nn.Module,
        pictures: Sequence[str],
        size: Size | None = None,
        *,
        is_squashed: bool = False,
    ):
        self.label, self.model, self.pictures = label, model, [*pictures]
        self.size, self._is_squashed = size, is_squashed

    def first(self, count: int) -> "Subject":
        """The same with the first pictures alone."""
        return Subject(self.label, self.model, self.pictures[:count], self.size, is_squashed=self._is_squashed)

    def squashed(self, size: Size) -> "Subject":
        """The same with pictures resized to a size without keeping their aspect, bicubic."""
        return Subject(self.label, self.model, self.pictures, size, is_squashed=True)

    @property
    def names(self) -> list[str]:
        """What the pictures are called, without their folders."""
        return [Path(picture).name for picture in self.pictures]

    def each(self) -> Iterator[Tensor]:
        """The images one by one, (1, C, H, W): so many as there are need not be in memory together."""
        return (self._transform(read_image(picture))[None].to(self._device) for picture in self.pictures)

    @cached_property
    def images(self) -> Tensor:
        """All of them, (B, C, H, W)."""
        return torch.cat([*self.each()])

    @property
    def height_width(self) -> tuple[int, int]:
        """Of the images."""
        return self.images.shape[2], self.images.shape[3]

    def budget(self) -> str:
        """How many images of which size, for a title."""
        height, width = self.height_width
        return f"{len(self.pictures)} image{'s' * (len(self.pictures) != 1)} at {height} x {width}"

    def seen(self, index: int) -> Image.Image:
        """A picture as the model saw it, RGB, enlarged where it is small."""
        picture = picture_seen(self.images[index], self._config).convert("RGB")
        times = max(1, -(-_SHOWN // max(picture.size)))
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)

    def region(self, mask: Image.Image) -> Tensor:
        """(H, W) bool: the part of a mask that the model sees, moved as its picture is."""
        mean, std = (torch.tensor(self._config[key])[:, None, None] for key in ("mean", "std"))
        return ((self._transform(mask.convert("RGB")) * std + mean)[0] > 0.5).cpu()

    # Classes

    def target(self, wanted: str | None) -> int | None:
        """The number of a class by its name or number; None for the predicted one."""
        if wanted is None:
            return None
        classes, names = int(getattr(self.model, "num_classes", 0)), distinct_names(self.model)
        if names is not None and wanted in names:
            return names.index(wanted)
        if wanted.isdecimal() and int(wanted) < classes:
            return int(wanted)
        known = f"; {nearest(wanted, names)}" if names else ""
        raise ValueError(f"{self.label} has no class {wanted!r}; give a name or a number, 0 to {classes - 1}{known}")

    def said(self, index: int, target: int | None, box_xyxy: Sequence[float] | None = None) -> str:
        """The class that is explained, for a caption; with its probability, score or share of the pixels."""
        output = self._outputs[index]
        names = distinct_names(self.model)
        if isinstance(output, dict):
            meant = find_object(output, target, None if box_xyxy is None else torch.tensor(box_xyxy), index)
            chosen = int(output["labels"][meant])
            return f"{names[chosen] if names else f'class {chosen}'} {100 * float(output['scores'][meant]):.0f} %"
        if output.ndim == 3:
            shares = torch.bincount(output.argmax(0).flatten(), minlength=len(output)) / output[0].numel()
        else:
            shares = output.float().softmax(0)
        chosen = int(shares.argmax()) if target is None else target
        return f"{names[chosen] if names else f'class {chosen}'} {100 * float(shares[chosen]):.0f} %"

    @cached_property
    def _outputs(self) -> list[Any]:
        """What the model says of each image: logits (n,) or (n, H, W), or of a detector a dict."""
        with torch.inference_mode():
            return [self.model(image)[0] for image in self.images.split(1)]

    @cached_property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    @cached_property
    def _config(self) -> dict[str, Any]:
        return resolve_data_config(pretrained_cfg=self._described, model=self.model)

    @cached_property
    def _described(self) -> dict[str, Any]:
        own: Any = dict(getattr(self.model, "pretrained_cfg", None) or {})
        channels = own.get("input_size", (3,))[0]
        if self.size is not None:
            own["input_size"] = image_shape(self.size, channels, "size")
        if self._is_squashed:
            own |= dict(crop_mode="squash", crop_pct=1.0, interpolation="bicubic")
        return own

    @cached_property
    def _transform(self) -> Any:
        return transforms_for(SimpleNamespace(pretrained_cfg=self._described))  # type: ignore[arg-type]


def budgets(subjects: Sequence[Subject]) -> str:
    """How much was looked at, as a sentence: once if it is the same for all."""
    each = {subject.label: subject.budget() for subject in subjects}
    if len({*each.values()}) == 1:
        return f"On {next(iter(each.values()))}."
    return f"On {'; '.join(f'{label}: {budget}' for label, budget in each.items())}."
