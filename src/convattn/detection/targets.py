"""What images show, as torchvision's detectors are told it, checked and in the words of the losses.

Of each image a dict:

    boxes      (n, 4) xyxy in pixels of the image as the network sees it
    labels     (n,) whole numbers from 0; torchvision's own detectors count from 1, since 0 is their background
    masks      (n, H, W), 0 or 1, for detectors that draw masks
    polygons   instead of masks: of each object a list of outlines, x and y in turn
    iscrowd    (n,) bool, if there are any: boxes of many objects, that nothing is learnt from

Further entries, such as `image_id` and `area`, are not read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convattn.detection.image_batch import ImageBatch
from convattn.detection.masks import Bitmaps, Polygons
from convattn.detection.rasterise import as_polygons
from convattn.detection.truth import Truth

__all__ = ["truths_of"]

_ENTRIES = "boxes (n, 4) xyxy and labels (n,)"


def truths_of(
    targets: Sequence[Mapping[str, Any]],
    images: ImageBatch,
    num_classes: int,
    *,
    with_masks: bool = False,
    mmdet: bool = True,
) -> list[Truth]:
    """What is to be found in each image of a batch.

    Args:
        targets: of each image, as above.
        images: they are about.
        num_classes: labels are below.
        with_masks: masks or polygons are needed; otherwise they are not looked at.
        mmdet: anchors in an image's padding do not count, polygons become bitmaps, bitmaps are padded. In detectron2
            none of it.

    Raises:
        ValueError: for what is not so, saying in which image and what is wrong.
    """
    if isinstance(targets, Mapping) or len(targets) != len(images.sizes):
        told = "one dict" if isinstance(targets, Mapping) else f"{len(targets)} targets"
        raise ValueError(f"{told} for {len(images.sizes)} images; give a list with a dict for each image")
    parts = [_entries(image, target, images.pixels) for image, target in enumerate(targets)]
    _check_values([part[0] for part in parts], [part[1] for part in parts], images.sizes, num_classes)
    found = []
    for image, (target, (boxes, labels, crowd)) in enumerate(zip(targets, parts, strict=True)):
        size, padded = images.sizes[image], images.padded[image] if mmdet else None
        masks = _masks(image, target, boxes, crowd, size, padded) if with_masks else None
        if crowd is None:
            found.append(Truth(boxes, labels, size, masks, None, padded))
        else:
            own = ~crowd
            kept = None if masks is None else _part(masks, own)
            found.append(Truth(boxes[own], labels[own], size, kept, boxes[crowd], padded))
    return found


def _entries(image: int, target: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Boxes, labels and crowds of an image, of the right shapes and types."""
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        told = sorted(target) if isinstance(target, Mapping) else type(target).__name__
        raise ValueError(f"target of image {image} has {told}; give a dict with {_ENTRIES}")
    boxes, labels, crowd = (target.get(name) for name in ("boxes", "labels", "iscrowd"))
    given = getattr(getattr(boxes, "format", None), "name", "XYXY")  # torchvision's own boxes know theirs
    if given != "XYXY":
        raise ValueError(f"boxes of image {image} are in format {given}; give x1, y1, x2, y2")
    boxes, labels = (torch.as_tensor(part, device=like.device) for part in (boxes, labels))
    boxes = boxes.reshape(0, 4) if not boxes.numel() else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes of image {image} have shape {tuple(boxes.shape)}; give (n, 4) xyxy")
    if labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"image {image} has {len(boxes)} boxes and labels of shape {tuple(labels.shape)}; give one each"
        )
    if labels.is_floating_point() and len(labels):
        raise ValueError(f"labels of image {image} are {labels.dtype}; give whole numbers, int64")
    exact = torch.promote_types(like.dtype, torch.float32)
    if crowd is not None:
        crowd = torch.as_tensor(crowd, device=like.device).bool()
        if crowd.shape != labels.shape:
            raise ValueError(f"image {image} has {len(boxes)} boxes and iscrowd of shape {tuple(crowd.shape)}")
    return boxes.as_subclass(Tensor).to(exact), labels.as_subclass(Tensor).long(), crowd


def _check_values(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], sizes: Sequence[tuple[int, int]], num_classes: int
) -> None:
    """Refuse what is no box or no class; the device is waited for once."""
    box, label = torch.cat([*boxes]), torch.cat([*labels])
    ends = torch.cat([_ends(own, size).expand(len(own), 4) for own, size in zip(boxes, sizes, strict=True)])
    wrong = [
        ~box.isfinite().all(1),
        ~(box[:, 2:] > box[:, :2]).all(1),
        _far(box, ends),
        (label < 0) | (label >= num_classes),
    ]
    if not len(box) or not bool(torch.stack(wrong).any()):
        return
    number, image = int(torch.stack(wrong).any(0).nonzero()[0]), 0
    while number >= len(boxes[image]):
        number, image = number - len(boxes[image]), image + 1
    shown = ", ".join(f"{side:g}" for side in boxes[image][number].tolist())
    where = f"box {number} of image {image} ({sizes[image][1]} × {sizes[image][0]} pixels) is {shown}"
    _complain(where, boxes[image][number], sizes[image], int(labels[image][number]), num_classes)


def _ends(like: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return like.new_tensor([width, height, width, height])


def _far(boxes: Tensor, ends: Tensor) -> Tensor:
    """Whether boxes lead further out of their image than it is large, (n,) bool; regions of any size cannot be read."""
    return ((boxes < -ends) | (boxes > 2 * ends)).any(1)


def _complain(where: str, box: Tensor, size: tuple[int, int], label: int, num_classes: int) -> None:
    if not bool(box.isfinite().all()):
        raise ValueError(f"{where}: not all of its numbers are finite; leave it out")
    if not bool((box[2:] > box[:2]).all()):
        raise ValueError(f"{where}: x2 must be above x1 and y2 above y1; give corners, not a width and a height")
    if bool(_far(box[None], _ends(box, size))):
        raise ValueError(f"{where}: it leads far outside the image; give pixels of the image as the network sees it")
    hint = "; there is no background among them, count from 0" if label == num_classes else ""
    raise ValueError(f"{where} with label {label}; labels are 0 to {num_classes - 1}{hint}")


def _masks(
    image: int,
    target: Mapping[str, Any],
    boxes: Tensor,
    crowd: Tensor | None,
    size: tuple[int, int],
    padded: tuple[int, int] | None,
) -> Bitmaps | Polygons:
    masks, polygons = target.get("masks"), target.get("polygons")
    if masks is not None:
        pixels = _bitmaps(image, masks, len(boxes), size)
    elif polygons is not None:
        learnt = [True] * len(boxes) if crowd is None else (~crowd).tolist()
        outlines = _outlines(image, polygons, learnt, size)
        if padded is None:
            return outlines
        pixels = outlines.drawn(size)
    else:
        raise ValueError(f"target of image {image} has no masks; this detector learns them: give (n, H, W)")
    if padded is None:
        return Bitmaps(pixels)
    return Bitmaps(F.pad(pixels, (0, padded[1] - size[1], 0, padded[0] - size[0])))


def _bitmaps(image: int, masks: Any, count: int, size: tuple[int, int]) -> Tensor:
    pixels = torch.as_tensor(masks).as_subclass(Tensor)
    pixels = pixels.reshape(0, *size) if not count and not pixels.numel() else pixels
    if tuple(pixels.shape) != (count, *size):
        raise ValueError(
            f"image {image} of {size[1]} × {size[0]} pixels has {count} boxes and masks of shape "
            f"{tuple(pixels.shape)}; give ({count}, {size[0]}, {size[1]})"
        )
    if pixels.dtype == torch.bool or not count:
        return pixels
    least, most = torch.stack(torch.aminmax(pixels)).tolist()
    if not 0 <= least <= most <= 1:
        raise ValueError(f"masks of image {image} hold numbers from {least:g} to {most:g}; give 0 and 1")
    return pixels


def _outlines(image: int, polygons: Sequence[Any], learnt: Sequence[bool], size: tuple[int, int]) -> Polygons:
    """Those of objects that are learnt from; of the others nobody asks."""
    if len(polygons) != len(learnt):
        raise ValueError(f"image {image} has {len(learnt)} boxes and {len(polygons)} polygons; give one list each")
    return Polygons(
        [
            _outline(f"object {number} of image {image}", own, size) if there else []
            for number, (own, there) in enumerate(zip(polygons, learnt, strict=True))
        ]
    )


def _outline(where: str, parts: Any, size: tuple[int, int]) -> list[np.ndarray]:
    """The polygons of an object, each flat, checked before pycocotools sees them."""
    try:
        if isinstance(parts, list | tuple):
            parts = [part if np.isscalar(part) else np.ravel(part) for part in parts]
        return as_polygons(parts, size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; give a list of polygons, each x and y in turn") from None


def _part(masks: Bitmaps | Polygons, kept: Tensor) -> Bitmaps | Polygons:
    if isinstance(masks, Bitmaps):
        return Bitmaps(masks.pixels[kept.to(masks.pixels.device)])
    return Polygons([outline for outline, own in zip(masks.outlines, kept.tolist(), strict=True) if own])
