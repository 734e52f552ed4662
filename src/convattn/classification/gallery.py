"""Samples for a report: which ones, and how they look with the heat map laid over them."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from convattn.data.images import as_png
from convattn.data.labelled import ImageDataset
from convattn.data.transforms import input_config, picture_seen, transforms_for
from convattn.explain.grad_cam import grad_cam
from convattn.explain.overlay import overlay
from convattn.extras import MissingExtra
from convattn.page import Gallery, GalleryItem

__all__ = ["choose_samples", "gallery"]

_MOST_RIGHT = 20  # classes; each picture is on the page, and goes through Grad-CAM
_TITLE = "Where it looks"
_SHOWN = "Each image beside its Grad-CAM map: the brighter, the more a place speaks for the predicted class."
_SHOWN_SIZE = 192  # pixels: twice as many as a card has room for, so that it stays sharp on dense screens


def choose_samples(confidences: Tensor, predicted: Tensor, labels: Tensor, most_wrong: int = 10) -> list[int]:
    """The mistakes, most confident first, then the first image that is right of every class, or of 20 among many.

    Args:
        confidences: (N,) probabilities of the predicted classes.
        predicted: (N,) these classes.
        labels: (N,).
        most_wrong: how many mistakes at most.
    """
    mistakes = (predicted != labels).nonzero()[:, 0]
    wrong = mistakes[confidences[mistakes].argsort(descending=True, stable=True)][:most_wrong].tolist()
    right: dict[int, int] = {}
    for index in (predicted == labels).nonzero()[:, 0].tolist():
        right.setdefault(int(labels[index]), index)
    classes = sorted(right)
    step = max(1, -(-len(classes) // _MOST_RIGHT))
    return wrong + [right[label] for label in classes[::step]]


def gallery(
    model: nn.Module,
    dataset: ImageDataset,
    indices: Sequence[int],
    class_names: Sequence[str],
    layer: nn.Module | str | None = None,
) -> Gallery:
    """What the model says about some images of a data set, and where it looks for the class that it predicts.

    Where captum is missing, or the model gives no gradients (an exported file), the pictures are shown without heat
    maps, and the page says so. `layer` is that of `grad_cam`.
    """
    if not indices:
        return Gallery(_TITLE, "", ())
    transform = transforms_for(model)
    images = torch.stack([transform(dataset.read(index)) for index in indices])
    device = next((parameter.device for parameter in model.parameters()), images.device)
    with torch.inference_mode():
        probabilities = model(images.to(device)).float().softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    heats, why_not = _heats(model, images.to(device), predicted, layer)
    items = []
    for row, index in enumerate(indices):
        shown = _picture(model, images[row])
        true, said = class_names[dataset.labels[index]], class_names[int(predicted[row])]
        explained = shown if heats is None else overlay(shown, heats[row])
        told = f"the same with the evidence for {said} in bright colours"
        seen = ((as_png(shown), true), (as_png(explained), told))
        is_right, share, name = said == true, float(confidence[row]), dataset.paths[index]
        items.append(GalleryItem(seen, said, share, "" if is_right else true, is_right, name))
    mistakes = sum(not item.is_right for item in items)
    words = {0: "No mistakes", 1: "The one mistake"}.get(mistakes, f"{mistakes} mistakes, the most confident first")
    chosen = f"{words}, then images that are right, each the first of its class.{why_not}"
    return Gallery(_TITLE, f"{_SHOWN} {chosen}", tuple(items))


def _heats(
    model: nn.Module, images: Tensor, predicted: Tensor, layer: nn.Module | str | None
) -> tuple[Tensor | None, str]:
    """Where the model looks for the classes that it predicts; or why that is not known."""
    if next(model.parameters(), None) is None:
        return None, " An exported file does not tell where it looks."
    try:
        with torch.enable_grad():
            return grad_cam(model, images, predicted, layer).cpu(), ""
    except (MissingExtra, ValueError) as error:  # no captum; a network without a map to look at
        return None, f" Without heat maps: {error}."


def _picture(model: nn.Module, image: Tensor) -> Image.Image:
    """What the model saw, so that the heat map lies where it belongs."""
    picture = picture_seen(image, input_config(model))
    scale = _SHOWN_SIZE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)
