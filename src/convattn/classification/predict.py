"""What a classifier says of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from convattn.classification.options import PredictionOptions
from convattn.data.class_names import distinct_names
from convattn.data.transforms import transforms_for
from convattn.task import Prediction

__all__ = ["ClassPrediction", "classify"]


@dataclass(frozen=True)
class ClassPrediction(Prediction):
    """The most probable classes of an image."""

    indices: tuple[int, ...]  # outputs of the model, the most probable first
    names: tuple[str, ...]  # theirs; the index as text where nothing is known
    probabilities: tuple[float, ...]  # theirs, 0 to 1

    def as_json(self) -> dict[str, Any]:
        """`{"predictions": [{"class": …, "probability": …, "index": …}, …]}`."""
        return {"predictions": self.rows()}

    def rows(self) -> list[dict[str, Any]]:
        """A class each, the most probable first."""
        found = zip(self.names, self.probabilities, self.indices, strict=True)
        return [{"class": name, "probability": p, "index": index} for name, p, index in found]

    def line(self) -> str:
        """The classes with their probabilities in percent."""
        rows = zip(self.names, self.probabilities, strict=True)
        return ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in rows)

    def draw(self, picture: Image.Image) -> Image.Image:
        """The picture with the most probable class written on it."""
        drawn = picture.convert("RGB")
        canvas = ImageDraw.Draw(drawn)
        size = max(10, min(drawn.size) // 16)
        text = f"{self.names[0]} {100 * self.probabilities[0]:.0f} %"
        font = ImageFont.load_default(size)
        left, top, right, bottom = canvas.textbbox((size // 3, size // 3), text, font=font)
        canvas.rectangle((left - size // 3, top - size // 3, right + size // 3, bottom + size // 3), fill=(0, 0, 0))
        canvas.text((size // 3, size // 3), text, fill=(255, 255, 255), font=font)
        return drawn


@torch.inference_mode()
def classify(model: nn.Module, pictures: Sequence[Image.Image], options: PredictionOptions) -> list[ClassPrediction]:
    """The most probable classes of RGB pictures, seen as the weights of `model` expect."""
    transform, device = transforms_for(model), next((p.device for p in model.parameters()), torch.device("cpu"))
    images = torch.stack([transform(picture) for picture in pictures]).to(device)
    probabilities = model(images).float().softmax(dim=1)
    values, indices = probabilities.topk(min(options.top, probabilities.shape[1]), dim=1)
    names = distinct_names(model)
    return [
        ClassPrediction(tuple(found), tuple(str(at) if names is None else names[at] for at in found), tuple(shares))
        for found, shares in zip(indices.tolist(), values.tolist(), strict=True)
    ]
