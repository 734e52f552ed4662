"""Tiny detection data sets in each format, on disk; objects and detections by hand; the smallest run on objects."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from convattn.detection.annotations import Annotations
from convattn.detection.detections import Detections
from convattn.detection.options import DetectionOptions
from convattn.detection.variation import Variation
from convattn.training.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RunConfig,
    ScheduleConfig,
)
from tiny_segmenters import TINY_OPTIONS

WIDTH, HEIGHT = 40, 30
SIZE = (120, 160)  # height and width of pictures of which there are only objects


def write_images(folder: Path, names, size=(WIDTH, HEIGHT)) -> None:
    """Plain pictures, each of another grey."""
    folder.mkdir(parents=True, exist_ok=True)
    for at, name in enumerate(names):
        Image.new("RGB", size, (at * 20 % 256,) * 3).save(folder / name)


def coco_image(number: int, **others) -> dict:
    """One entry of `images`."""
    return {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} | others


def coco_object(number: int, image: int = 1, category: int = 3, bbox=(4, 5, 10, 8), **others) -> dict:
    """One entry of `annotations`, without an outline unless it is given."""
    found = {"id": number, "image_id": image, "category_id": category, "bbox": [*bbox], "iscrowd": 0}
    return found | {"area": bbox[2] * bbox[3]} | others


CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]  # of which cat comes first, by its id


def write_coco(
    file: Path, annotations, images=2, categories=CATEGORIES, pictures: Path | None = None, **others
) -> Path:
    """A file of `instances`; its pictures go to `pictures`."""
    listed = [coco_image(number) for number in range(1, images + 1)] if isinstance(images, int) else images
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": listed, "annotations": [*annotations], "categories": categories} | others
    file.write_text(json.dumps(content))
    if pictures is not None:
        write_images(pictures, [Path(image["file_name"]).name for image in listed if isinstance(image, dict)])
    return file


def coco_folder(root: Path, train=(), val=(), **others) -> Path:
    """COCO's own layout, with two images a split."""
    for split, annotations in (("train", train), ("val", val)):
        write_coco(
            root / "annotations" / f"instances_{split}2017.json",
            annotations or [coco_object(1)],
            pictures=root / f"{split}2017",
            **others,
        )
    return root


def yolo_folder(root: Path, lines, splits=("train", "val"), yaml: str | None = None) -> Path:
    """Ultralytics' layout: `lines` of text an image, None for an image without a text file."""
    for split in splits:
        names = [f"{number}.png" for number in range(len(lines))]
        write_images(root / "images" / split, names)
        (root / "labels" / split).mkdir(parents=True)
        for name, text in zip(names, lines, strict=True):
            if text is not None:
                (root / "labels" / split / name).with_suffix(".txt").write_text(text)
    listed = "".join(f"{split}: images/{split}\n" for split in splits)
    (root / "data.yaml").write_text(yaml or f"path: .\n{listed}names:\n  0: cat\n  1: dog\n")
    return root


def voc_object(name="cat", box=(1, 1, 10, 8), **others) -> str:
    """One object of an XML file."""
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    more = "".join(f"<{key}>{value}</{key}>" for key, value in others.items())
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def voc_file(folder: Path, stem: str, *objects: str, size=(WIDTH, HEIGHT)) -> Path:
    """An XML file; its picture is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    file = folder / f"{stem}.xml"
    file.write_text(f"<annotation><filename>{stem}.jpg</filename>{sides}{''.join(objects)}</annotation>")
    return file


def truth(*objects, crowd=(), index=0, size=SIZE):
    """Objects (label, x1, y1, x2, y2), each filled by its rectangle."""
    rows = np.array(objects, dtype=np.float64).reshape(-1, 5)
    boxes, places = rows[:, 1:], np.arange(len(rows))
    outlines = [[np.array([a, b, c, b, c, d, a, d])] for a, b, c, d in boxes]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Annotations(boxes, rows[:, 0].astype(np.int64), np.isin(places, crowd), areas, size, outlines, index)


def found(*objects, size=SIZE, masks=False):
    """Detections (label, score, x1, y1, x2, y2)."""
    rows = np.array(objects, dtype=np.float64).reshape(-1, 6)
    pixels = None
    if masks:
        pixels = np.zeros((len(rows), *size), bool)
        for at, (a, b, c, d) in enumerate(rows[:, 2:].astype(int)):
            pixels[at, b:d, a:c] = True
    return Detections(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64), size, pixels)


CLASSES = ("square", "bar")  # of `write_objects`
PICTURE = (64, 96)


def write_objects(root: Path, train: int = 8, val: int = 4) -> Path:
    """COCO's layout: bright squares and dark bars on grey, one or two in a picture, with outlines."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        pictures, objects = [], []
        (root / f"{split}2017").mkdir(parents=True)
        for number in range(1, count + 1):
            height, width = PICTURE
            pixels = rng.integers(100, 150, (height, width, 3))
            for place in range(1 + number % 2):
                label = (number + place) % 2
                high, wide = ((22, 22), (14, 36))[label]
                top, left = (
                    int(rng.integers(2, height - high)),
                    int(rng.integers(2, width // 2 - wide + 8)) + 46 * place,
                )
                left = min(left, width - wide)
                pixels[top : top + high, left : left + wide] = ((250, 220, 60), (20, 30, 90))[label]
                right, bottom = left + wide, top + high
                outline = [left, top, right, top, right, bottom, left, bottom]
                box = (left, top, wide, high)
                objects.append(
                    coco_object(len(objects) + 1, number, label + 1, box, segmentation=[list(map(float, outline))])
                )
            name = f"{number:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{split}2017" / name)
            pictures.append(coco_image(number, file_name=name, width=width, height=height))
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
        write_coco(root / "annotations" / f"instances_{split}2017.json", objects, pictures, categories)
    return root


def tiny_detection(source: Path, output: Path, /, **parts: dict) -> RunConfig:
    """A run of seconds; `parts` names fields to change: `tiny_detection(…, loop=dict(seed=1))`."""
    config = RunConfig(
        model=ModelConfig("smt_nano", options=TINY_OPTIONS),
        data=DataConfig(str(source), batch_size=2),
        optimizer=OptimizerConfig(lr=3e-3, lr_batch_size=None, clip_grad=10.0),
        schedule=ScheduleConfig(updates=6),
        task=DetectionOptions(
            detector="retinanet", width=32, scale=(96, 64), variation=Variation(short_sides=(64,), longest_side=96)
        ),
        loop=LoopConfig(device="cpu", validation_updates=3),
        output=OutputConfig(str(output), tensorboard=False),
    )
    changed = {name: replace(getattr(config, name), **fields) for name, fields in parts.items()}
    return replace(config, **changed)
