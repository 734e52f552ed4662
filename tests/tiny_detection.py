"""Tiny detection data sets in each format, on disk."""

import json
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 40, 30


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
