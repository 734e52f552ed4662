"""Several images in one: mosaic, and objects that are copied from one image into another.

Sources: "YOLOv4", Bochkovskiy et al., 2020, arXiv 2004.10934 (mosaic; here every picture fills its quarter, and nothing
is grey); "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", Ghiasi et al., CVPR 2021,
arXiv 2012.07177 (here each object of the other image is copied in half of the cases).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from convattn.data.draws import chance, uniform, whole
from convattn.data.images import ImageError
from convattn.detection.annotations import Annotations
from convattn.detection.rasterise import Size
from convattn.detection.scenes import Scene, View

__all__ = ["another", "drawn_window", "mosaic", "pasted"]

_TRIES = 5  # images that may be unreadable before it is done without
_LARGER = 1.5  # times the size at which a picture fills its quarter
_COPIED = 0.5  # of the objects of the other image


def another(data: Any) -> tuple[Image.Image, Annotations] | None:
    """A random image of a data set, with its objects; None if several that were drawn cannot be read."""
    for _ in range(_TRIES):
        index = whole(0, len(data))
        try:
            return data.read(index), data.target(index)
        except ImageError:  # told where it is met in its own turn
            continue
    return None


def drawn_window(view: View, size: Size) -> View:
    """A random window of this size, or of the whole side where that is shorter."""
    height, width = min(view.size[0], size[0]), min(view.size[1], size[1])
    top, left = whole(0, view.size[0] - height + 1), whole(0, view.size[1] - width + 1)
    return view.cut(top, left, height, width)


def mosaic(
    views: Sequence[View], size: Size, *, flip: float, antialias: bool, masks: bool = True, most: int | None = None
) -> Scene:
    """Four pictures around a random point, each cut out of one that was resized until it fills its quarter.

    Args:
        views: of four whole pictures.
        size: height and width of what comes out.
        flip: how often each is mirrored.
        antialias, masks: as in `View`.
        most: objects with masks, a quarter of them in each picture.
    """
    height, width = size
    down, across = (max(1, min(side - 1, whole(side // 4, 3 * side // 4 + 1))) for side in size)
    corners = [(0, 0), (0, across), (down, 0), (down, across)]
    image = torch.empty(3, height, width, dtype=torch.uint8)
    scenes = []
    for place, at in enumerate(torch.randperm(4).tolist()):
        top, left = corners[place]
        quarter = (down if not top else height - down), (across if not left else width - across)
        view = views[at]
        factor = max(quarter[0] / view.size[0], quarter[1] / view.size[1]) * uniform(1, _LARGER)
        sides = [max(int(side * factor + 0.5), least) for side, least in zip(view.size, quarter, strict=True)]
        view = drawn_window(view.resized((sides[0], sides[1]), antialias=antialias), quarter)
        view = view.mirrored() if chance(flip) else view
        scene = view.scene(masks=masks, most=None if most is None else most // 4)
        image[:, top : top + quarter[0], left : left + quarter[1]] = scene.image
        scenes.append(_placed(scene, top, left, size))
    return Scene(
        image,
        torch.cat([scene.boxes_xyxy for scene in scenes]),
        torch.cat([scene.labels for scene in scenes]),
        torch.cat([scene.crowd for scene in scenes]),
        None if scenes[0].masks is None else torch.cat([scene.masks for scene in scenes if scene.masks is not None]),
    )


def pasted(scene: Scene, other: View, choose: Callable[[], bool] = lambda: chance(_COPIED)) -> Scene:
    """A scene over which objects of another view are laid; what they hide is no longer there.

    Of an object that loses pixels the box is drawn around those that are left, one that loses all goes.

    Args:
        scene: with masks.
        other: with outlines; a window of it is taken where it is larger.
        choose: whether an object of it is copied.
    """
    size = scene.image.shape[-2], scene.image.shape[-1]
    window = drawn_window(other, size)
    top, left = (whole(0, side - shown + 1) for side, shown in zip(size, window.size, strict=True))
    found = window.scene()
    chosen = torch.tensor([not crowd and choose() for crowd in found.crowd.tolist()], dtype=torch.bool)
    new = _placed(found.part(chosen), top, left, size)
    if scene.masks is None or new.masks is None or not len(new.masks):
        return scene
    covered = new.masks.amax(0).bool()
    image = scene.image.clone()
    inside = covered[top : top + window.size[0], left : left + window.size[1]]
    image[:, top : top + window.size[0], left : left + window.size[1]][:, inside] = found.image[:, inside]
    left_over = _without(scene, covered)
    masks = left_over.masks
    assert masks is not None
    return Scene(
        image,
        torch.cat([left_over.boxes_xyxy, new.boxes_xyxy]),
        torch.cat([left_over.labels, new.labels]),
        torch.cat([left_over.crowd, new.crowd]),
        torch.cat([masks, new.masks]),
    )


def _without(scene: Scene, covered: Tensor) -> Scene:
    """The objects as they are seen where (H, W) bool does not cover them."""
    assert scene.masks is not None
    masks = scene.masks * ~covered
    lost = (masks != scene.masks).flatten(1).any(1) & ~scene.crowd
    kept = masks.flatten(1).any(1).bool()
    boxes = scene.boxes_xyxy.clone()
    changed = lost & kept
    if changed.any():
        around = masks_to_boxes(masks[changed])
        around[:, 2:] += 1  # it gives the last pixel's own place
        old = boxes[changed]
        tight = torch.cat([torch.maximum(old[:, :2], around[:, :2]), torch.minimum(old[:, 2:], around[:, 2:])], 1)
        # Pixels may lie beside the box that was annotated for them.
        boxes[changed] = torch.where((tight[:, 2:] > tight[:, :2]).all(1, keepdim=True), tight, around)
    return replace(scene, boxes_xyxy=boxes, masks=masks).part(kept)


def _placed(scene: Scene, top: int, left: int, size: Size) -> Scene:
    """The objects of a scene where it lies in a larger image; the pixels are left to the caller."""
    boxes = scene.boxes_xyxy + torch.tensor([left, top, left, top])
    if scene.masks is None:
        return replace(scene, boxes_xyxy=boxes)
    masks = scene.masks.new_zeros(len(scene.masks), *size)
    masks[:, top : top + scene.masks.shape[1], left : left + scene.masks.shape[2]] = scene.masks
    return replace(scene, boxes_xyxy=boxes, masks=masks)
