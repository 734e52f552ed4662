"""How a detector by queries comes to what it finds: where they begin, how their boxes move, which places they read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.ops import box_convert

from convattn.data.colours import default_colours
from convattn.detection.detections import Detections
from convattn.detection.dino import DinoHead
from convattn.detection.options import PredictionOptions
from convattn.detection.pictures import DrawnObject, with_objects
from convattn.detection.post_processing import stretch
from convattn.detection.predict import ObjectPrediction, asked_labels
from convattn.detection.query_detectors import QueryDetector
from convattn.extras import require

__all__ = ["QueryPrediction", "Reading", "detect_queries"]

_SHOWN = 20  # objects, the surest: the places of more lie over one another
_SIDE = 480  # pixels of a panel
_COLUMNS = 3  # panels beside one another
_TITLE = 22  # pixels over a panel


@dataclass(frozen=True)
class Reading:
    """The places of one level that queries read in the last layer of a decoder."""

    size: tuple[int, int]  # height and width of the level
    points_xy: np.ndarray  # (n, heads · points, 2) in pixels of the picture
    weights: np.ndarray  # (n, heads · points): of all levels together they add up to 1


@dataclass(frozen=True)
class QueryPrediction(ObjectPrediction):
    """The objects of a picture, with the way that the query of each has gone: the surest 20 at most."""

    queries: np.ndarray  # (n,) int64
    steps: tuple[str, ...]  # what the boxes are: those that queries begin with, then those of each layer
    boxes_of_steps: np.ndarray  # (steps, n, 4) xyxy in pixels of the picture
    readings: tuple[Reading, ...]  # a level each; none of Sparse R-CNN, whose queries read what lies in their boxes

    def as_json(self) -> dict[str, Any]:
        """As of objects, each with its box behind each step, and the places `[x, y, weight]` that it reads by level."""
        told = super().as_json()
        for at, one in enumerate(told["objects"]):
            one["steps"] = dict(zip(self.steps, self.boxes_of_steps[:, at].tolist(), strict=True))
            if self.readings:
                one["reads"] = [
                    np.column_stack([each.points_xy[at], each.weights[at]]).tolist() for each in self.readings
                ]
        return told

    def rows(self) -> list[dict[str, Any]]:
        """An object each, with the number of its query."""
        return [row | {"query": int(query)} for row, query in zip(super().rows(), self.queries, strict=True)]

    def line(self) -> str:
        """As of objects, and which queries have found them."""
        if not len(self.queries):
            return super().line()
        return f"{super().line()}; by the queries {', '.join(map(str, self.queries))}"

    def draw(self, picture: Image.Image) -> Image.Image:
        """Panels: the boxes of each step in the colours of the classes, then the places that are read on each level.

        A place is the brighter, the more it counts for its query; what lies outside of the picture is not seen.

        Raises:
            MissingExtra: without matplotlib, for the colours of places.
        """
        ratio = _SIDE / max(picture.size)
        small = picture.resize((max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))))
        colours = default_colours(len(self.names))
        own = [colours[label] for label in self.labels]
        numbers = [f"query {number}" for number in self.queries]
        panels = [
            (step, with_objects(small, map(DrawnObject, boxes * ratio, own, numbers)))
            for step, boxes in zip(self.steps, self.boxes_of_steps, strict=True)
        ]
        thin = [
            DrawnObject(box * ratio, colour, is_thin=True) for box, colour in zip(self.boxes_xyxy, own, strict=True)
        ]
        most = max((each.weights.max(initial=0.0) for each in self.readings), default=0.0)
        for number, each in enumerate(self.readings, 1):
            share = each.weights.sum() / max(1, len(self.queries))
            title = f"read on level {number}, {each.size[0]} x {each.size[1]}: {share:.0%} of the weight"
            places = _with_places(with_objects(small, thin), each.points_xy * ratio, each.weights / (most or 1.0))
            panels.append((title, places))
        return _grid(panels)


@torch.inference_mode()
def detect_queries(
    model: nn.Module,
    pictures: Sequence[Image.Image],
    options: PredictionOptions,
    transform: Callable[[Image.Image], Tensor],
    names: Sequence[str],
    on_part: Callable[[float], None] = lambda pictures: None,
) -> list[QueryPrediction]:
    """The objects in RGB pictures of any sizes, and how they were found; arguments as of `detect`.

    Raises:
        ValueError: for a class to show that there is none of, or a detector without queries.
    """
    if not isinstance(model, QueryDetector):
        cfg: Any = getattr(model, "pretrained_cfg", None) or {}
        who = cfg.get("architecture", "an exported file")
        raise ValueError(
            f"--show queries: {who} tells of no queries; take a run or a model file of sparse_rcnn or dino"
        )
    only, device = asked_labels(model, options, names), next(model.parameters()).device
    said = []
    for picture in pictures:
        size = picture.height, picture.width
        with _watched(model) as seen:
            (output,) = model([transform(picture).to(device)], original_sizes=[size])
        found = Detections.of(output, size)
        kept = np.flatnonzero(found.are_above(options.score, only))[:_SHOWN]
        said.append(seen.prediction(found.part(kept), output["queries"].cpu().numpy()[kept], tuple(names)))
        on_part(1)
    return said


class _Seen:
    """What the head of a detector was given and has said of one image."""

    def __init__(self, head: Any):
        self.head = head
        self.said: Any = None
        self.sizes: Any = None  # of the image as the head sees it
        self.ratios: Any = None  # how much of each level is image, (1, levels, 2)
        self.moved: Sequence[Tensor] = ()  # boxes behind each layer of a decoder: where the next one looks
        self.looks: tuple[Tensor, Tensor] | None = None  # places from 0 to 1 over each level, and weights
        self.levels: Sequence[tuple[int, int]] = ()

    def prediction(self, found: Detections, queries: np.ndarray, names: tuple[str, ...]) -> QueryPrediction:
        height, width = found.size
        if isinstance(self.head, DinoHead):
            selected, predicted = self.said
            scale = selected.boxes.new_tensor([width, height, width, height])
            ways = (selected.boxes, *self.moved[:-1], predicted.boxes[-1])
            boxes = [box_convert(each[0], "cxcywh", "xyxy") * scale for each in ways]
            steps = ("chosen", *(f"layer {at + 1}" for at in range(len(self.moved))))
        else:
            first = box_convert(self.head.proposal_boxes.weight, "cxcywh", "xyxy")
            boxes = [first * first.new_tensor([width, height, width, height])]
            (inner,) = self.sizes
            boxes += [stage.boxes_xyxy[0] / stretch(inner, found.size, first) for stage in self.said]
            steps = ("learnt", *(f"stage {at + 1}" for at in range(len(self.said))))
        table = torch.stack(boxes).float().cpu().numpy()[:, queries]
        return QueryPrediction(found, names, queries, steps, table, tuple(self._readings(queries, found.size)))

    def _readings(self, queries: np.ndarray, size: tuple[int, int]) -> Iterator[Reading]:
        if self.looks is None:
            return
        height, width = size
        places, weights = self.looks
        places = places / self.ratios[:, None, None, :, None]  # over the image, without padding
        by_level = (each[0].float().transpose(1, 2).flatten(2, 3).cpu().numpy()[queries] for each in (places, weights))
        for level, points, shares in zip(self.levels, *(each.swapaxes(0, 1) for each in by_level), strict=True):
            points, shares = points * [width, height], shares / weights.shape[2]
            yield Reading((int(level[0]), int(level[1])), points, shares)


@contextmanager
def _watched(detector: QueryDetector) -> Iterator[_Seen]:
    """What passes through the head within."""
    head = detector.head
    seen = _Seen(head)

    def keep_said(module: nn.Module, args: tuple[Any, ...], said: Any) -> None:
        seen.said, seen.sizes = said, args[1]

    def keep_looks(module: Any, args: tuple[Any, ...]) -> None:
        query, position, _, references, sizes, _ = args
        places, weights = module.looks(query + position, references, sizes)
        seen.looks, seen.levels = (places, weights), sizes

    def keep_moved(module: nn.Module, args: tuple[Any, ...], said: Any) -> None:
        seen.ratios, seen.moved = args[3], said[1]

    hooks = [head.register_forward_hook(keep_said)]
    if isinstance(head, DinoHead):
        last: Any = head.decoder.layers[-1]
        hooks.append(head.decoder.register_forward_hook(keep_moved))
        hooks.append(last.cross_attention.register_forward_pre_hook(keep_looks))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _with_places(picture: Image.Image, points_xy: np.ndarray, weights: np.ndarray) -> Image.Image:
    """The picture with points (n, k, 2), the brighter and the larger the greater their weights (n, k), 0 to 1."""
    colour_map = require("matplotlib", "explain").colormaps["plasma"]
    canvas = ImageDraw.Draw(picture)
    points, shares = points_xy.reshape(-1, 2), weights.reshape(-1)
    for at in shares.argsort():
        (x, y), radius = points[at], 1.5 + 2.5 * shares[at]
        colour = tuple(round(255 * part) for part in colour_map(float(shares[at]))[:3])
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white")
    return picture


def _grid(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one size with their titles, row by row."""
    columns = min(_COLUMNS, len(panels))
    width, height = panels[0][1].size
    height += _TITLE
    grid = Image.new("RGB", (columns * width, -(-len(panels) // columns) * height), "white")
    canvas, font = ImageDraw.Draw(grid), ImageFont.load_default(_TITLE * 2 // 3)
    for at, (title, picture) in enumerate(panels):
        left, top = at % columns * width, at // columns * height
        canvas.text((left + 4, top + 2), title, fill="black", font=font)
        grid.paste(picture, (left, top + _TITLE))
    return grid
