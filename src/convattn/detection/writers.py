"""What was found, for other programs: COCO's JSON, YOLO's text files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convattn.detection.detections import Detections, runs_of

__all__ = ["coco_dataset", "coco_results", "yolo_text"]


def coco_results(found: Detections, image_id: int | str, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """What was found in an image as entries of COCO's results: boxes as x, y, width, height, masks as RLE.

    Args:
        found: in pixels of the image.
        image_id: what its annotations call the image.
        category_ids: what they call the classes, one a label.
    """
    boxes = found.boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    entries: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": int(category_ids[label]), "bbox": box, "score": score}
        for label, box, score in zip(
            found.labels.tolist(), boxes.tolist(), found.scores.astype(np.float64).tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for entry, runs in zip(entries, runs_of(found.masks), strict=True):
            entry["segmentation"] = {"size": [*found.size], "counts": runs["counts"].decode("ascii")}
    return entries


def coco_dataset(found: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """What was found in pictures as a data set in COCO's format, whose annotations have scores.

    Its `annotations` are a results file, too, and it opens in tools to draw boxes by hand.

    Args:
        found: of each picture its name, `image`, and `ObjectPrediction.as_json`'s entries.
        classes: their names; ids are numbers from 1.
    """
    images, annotations = [], list[dict[str, Any]]()
    for number, one in enumerate(found, start=1):
        height, width = one["size"]
        images.append({"id": number, "file_name": one["image"], "height": height, "width": width})
        for entry in one["objects"]:
            left, top, right, bottom = entry["box_xyxy"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": entry["index"] + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "score": entry["score"],
                    **({"segmentation": entry["mask"]} if "mask" in entry else {}),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def yolo_text(found: Detections) -> str:
    """The text file of an image: `class x y width height score` a line, centre and size in shares of its sides."""
    height, width = found.size
    boxes = found.boxes_xyxy.astype(np.float64) / [width, height, width, height]
    places = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    lines = [
        " ".join([str(label), *(f"{value:.6f}" for value in place), f"{score:.6g}"])
        for label, place, score in zip(found.labels.tolist(), places.tolist(), found.scores.tolist(), strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)
