"""What was found, for other programs: COCO's JSON, a table, YOLO's text files."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convattn.atomic import write_atomically
from convattn.detection.detections import Detections, runs_of

__all__ = ["coco_results", "write_coco_json", "write_csv", "write_yolo"]

_COLUMNS = ("image", "class", "score", "x1", "y1", "x2", "y2")


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


def write_coco_json(
    path: str | Path, found: Iterable[tuple[int | str, Detections]], category_ids: Sequence[int]
) -> None:
    """A results file that pycocotools' `loadRes` reads, of images by their ids.

    Raises:
        OSError: if it cannot be written.
    """
    entries = [entry for image_id, one in found for entry in coco_results(one, image_id, category_ids)]
    write_atomically(path, json.dumps(entries).encode())


def write_csv(path: str | Path, found: Iterable[tuple[str, Detections]], classes: Sequence[str]) -> None:
    """A table with a row for each box, of images by their names: corners in pixels, with a heading.

    Raises:
        OSError: if it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for name, one in found:
        for box, score, label in zip(one.boxes_xyxy.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True):
            table.writerow([name, classes[label], f"{score:.6g}", *(f"{corner:.2f}" for corner in box)])
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))


def write_yolo(path: str | Path, found: Detections) -> None:
    """The text file of an image: `class x y width height score` a line, centre and size in shares of its sides.

    Raises:
        OSError: if it cannot be written.
    """
    height, width = found.size
    boxes = found.boxes_xyxy.astype(np.float64) / [width, height, width, height]
    places = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
    lines = [
        " ".join([str(label), *(f"{value:.6f}" for value in place), f"{score:.6g}"])
        for label, place, score in zip(found.labels.tolist(), places.tolist(), found.scores.tolist(), strict=True)
    ]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
