"""What is explained: a number for each image, of a classifier, a segmenter or a detector, that gradients can reach."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

__all__ = ["Target", "find_object", "score_of"]

Target = int | Tensor | None

_MULTIPLE = 32  # of the sides of what this package's detectors take as one batch


def score_of(
    model: nn.Module, target: Target = None, *, mask: Tensor | None = None, box_xyxy: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from images (B, 3, H, W) to what is explained of each (B,).

    A classifier: the logit of the class. A segmenter: the sum of the class's logits over the pixels that it gives to
    the class, or over `mask`. A detector: the score of the object whose box is nearest to `box_xyxy`; its logarithm
    would give the same map, since heat is relative.

    Args:
        model: a network that gives logits (B, n) or (B, n, H, W), or a list with `boxes`, `scores` and `labels` of each
            image, as torchvision's detectors do; this package's too.
        target: a class, one for all images or one each (B,). By default the predicted one: of a segmenter the one with
            the most pixels; of a detector, any.
        mask: (H, W) or (B, H, W) bool, for a segmenter.
        box_xyxy: (4,) or (B, 4) in pixels of the image, for a detector; by default the surest box.

    Raises:
        ValueError: for a model without classes, a class that is none of it, or a mask or box that does not fit; when
            called.
    """
    if getattr(model, "num_classes", None) == 0:
        raise ValueError(f"{type(model).__name__} has no classes (num_classes is 0); there is no class to explain")

    def score(images: Tensor) -> Tensor:
        outputs = _outputs(model, images)
        is_map = isinstance(outputs, Tensor) and outputs.ndim == 4 and outputs.shape[2:] == images.shape[2:]
        if mask is not None and not is_map:
            raise ValueError(
                f"a mask is of a segmenter, and {type(model).__name__} gives no map of logits; leave it out"
            )
        if isinstance(outputs, list):
            return _score_of_box(outputs, target, box_xyxy)
        if box_xyxy is not None:
            raise ValueError(f"a box is of a detector, and {type(model).__name__} finds none; leave it out")
        if not isinstance(outputs, Tensor) or not (is_map or outputs.ndim == 2):
            raise ValueError(
                f"{type(model).__name__} does not return logits (B, classes), logits of every pixel (B, classes, H, W) "
                "or boxes; there is no class to explain"
            )
        return _sum_over_pixels(outputs, target, mask) if is_map else _logit(outputs, target)

    return score


def _outputs(model: Any, images: Tensor) -> Any:
    """What the model says, with gradients; of a detector a list."""
    if hasattr(model, "found_in"):  # this package's detectors: their forward in evaluation keeps no gradients
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
        return model.found_in(model.pyramid(padded), [(height, width)] * len(images))
    if hasattr(model, "roi_heads") or hasattr(model, "anchor_generator"):  # torchvision's take a list
        return model(list(images))
    outputs = model(images)
    return outputs["out"] if isinstance(outputs, dict) and "out" in outputs else outputs  # torchvision's segmenters


def _logit(logits: Tensor, target: Target) -> Tensor:
    """The logit of each image's class: (B, classes) -> (B,)."""
    classes = logits.argmax(1) if target is None else _classes(target, logits)
    return logits.gather(1, classes[:, None])[:, 0]


def _sum_over_pixels(logits: Tensor, target: Target, mask: Tensor | None) -> Tensor:
    """(B, classes, H, W) -> (B,): the class's logits over its pixels, or those of the mask."""
    labels = logits.argmax(1)
    if target is None:
        inside = labels if mask is None else labels.where(_mask(mask, labels), logits.shape[1])
        shares = F.one_hot(inside.flatten(1), logits.shape[1] + 1).sum(1)[:, : logits.shape[1]]
        classes = shares.argmax(1)
    else:
        classes = _classes(target, logits)
    own = logits.gather(1, classes[:, None, None, None].expand(-1, 1, *labels.shape[1:]))[:, 0]
    where = labels == classes[:, None, None] if mask is None else _mask(mask, labels)
    empty = (~where.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        which = f"class {int(classes[empty[0]])} has no pixel" if mask is None else "the mask has no pixel"
        raise ValueError(f"{which} in image {empty[0]}; give another class, or a mask")
    return (own * where).sum((1, 2))


def _mask(mask: Tensor, labels: Tensor) -> Tensor:
    if mask.shape not in (labels.shape, labels.shape[1:]):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; the images' maps of classes are {tuple(labels.shape)}")
    return mask.to(labels.device).bool().expand(labels.shape)


def _score_of_box(found: list[dict[str, Tensor]], target: Target, box_xyxy: Tensor | None) -> Tensor:
    """The score in each image of the object whose box overlaps the wanted one most, or of the surest object."""
    wanted = None if box_xyxy is None else torch.as_tensor(box_xyxy, dtype=torch.float32)
    if wanted is not None and wanted.shape not in ((4,), (len(found), 4)):
        raise ValueError(f"box has shape {tuple(wanted.shape)}; expected x0, y0, x1, y1, once or for each image")
    boxes = [None] * len(found) if wanted is None else [*wanted.expand(len(found), 4)]
    classes = [None] * len(found) if target is None else torch.as_tensor(target).expand(len(found)).tolist()
    each = enumerate(zip(found, classes, boxes, strict=True))
    return torch.stack([one["scores"][find_object(one, label, box, index)] for index, (one, label, box) in each])


def find_object(found: dict[str, Tensor], label: int | None, box_xyxy: Tensor | None, image: int = 0) -> int:
    """Which of the objects found in one image is meant: the one that overlaps a box (4,) most, or the surest.

    `found` has `boxes` (n, 4), `scores` and `labels` (n,), of which those of `label` count; ValueError for none.
    """
    kept = torch.ones_like(found["labels"], dtype=torch.bool) if label is None else found["labels"] == label
    if not kept.any():
        what = "nothing" if label is None else f"nothing of class {label}"
        raise ValueError(f"{what} is found in image {image}; lower the model's score_threshold (score_thresh)")
    if box_xyxy is None:
        return int(found["scores"].detach().where(kept, -1.0).argmax())
    overlaps = box_iou(found["boxes"].detach(), box_xyxy.to(found["boxes"])[None])[:, 0].where(kept, 0.0)
    if overlaps.max() == 0:
        raise ValueError(f"no object found in image {image} overlaps the box {box_xyxy.tolist()}; give another")
    return int(overlaps.argmax())


def _classes(target: int | Tensor, logits: Tensor) -> Tensor:
    """One class for each image (B,)."""
    classes = torch.as_tensor(target, device=logits.device).long()
    if classes.shape not in ((), (1,), logits.shape[:1]):
        raise ValueError(f"target has shape {tuple(classes.shape)}; expected one class, or one for each image")
    if classes.min() < 0 or classes.max() >= logits.shape[1]:
        raise ValueError(f"target {classes.tolist()} is out of range; classes are 0 to {logits.shape[1] - 1}")
    return classes.expand(len(logits))
