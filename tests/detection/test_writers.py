import csv
import json

import numpy as np
import pytest
import torch

from convattn.detection.detections import Detections
from convattn.detection.rasterise import counts_of
from convattn.detection.writers import write_coco_json, write_csv, write_yolo
from tiny_detection import SIZE, found

SAID = ((1, 0.875, 10, 20, 30, 60), (0, 0.25, 0, 0, 8, 12))


def test_coco_json_has_the_ids_of_the_annotations(tmp_path):
    write_coco_json(tmp_path / "found.json", [(139, found(*SAID, masks=True)), ("b", found())], [3, 18])
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [(entry["image_id"], entry["category_id"], entry["score"]) for entry in entries] == [
        (139, 18, 0.875),
        (139, 3, 0.25),
    ]
    assert [entry["bbox"] for entry in entries] == [[10, 20, 20, 40], [0, 0, 8, 12]]
    for entry, area in zip(entries, (800, 96), strict=True):
        assert entry["segmentation"]["size"] == [*SIZE]
        runs = counts_of(entry["segmentation"]["counts"].encode())
        assert runs.sum() == SIZE[0] * SIZE[1]
        assert runs[1::2].sum() == area


def test_without_masks_there_is_no_segmentation(tmp_path):
    write_coco_json(tmp_path / "found.json", [(1, found(*SAID))], [3, 18])
    assert "segmentation" not in json.loads((tmp_path / "found.json").read_text())[0]


def test_a_table_has_a_row_for_each_box(tmp_path):
    write_csv(tmp_path / "found.csv", [("a, b.jpg", found(*SAID)), ("c.jpg", found())], ["cat", "dog"])
    with open(tmp_path / "found.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2
    assert rows[0] == dict(image="a, b.jpg", score="0.875", x1="10.00", y1="20.00", x2="30.00", y2="60.00") | {
        "class": "dog"
    }


def test_yolos_lines_are_centres_and_sizes_in_shares(tmp_path):
    write_yolo(tmp_path / "a.txt", found(*SAID))
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines[0] == "1 0.125000 0.333333 0.125000 0.333333 0.875"
    assert [float(word) for word in lines[1].split()] == pytest.approx([0, 0.025, 0.05, 0.05, 0.1, 0.25])
    write_yolo(tmp_path / "b.txt", found())
    assert (tmp_path / "b.txt").read_text() == ""


def test_what_a_detector_gives_becomes_arrays():
    output = {
        "boxes": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]], requires_grad=True),
        "scores": torch.tensor([0.9, 0.2]),
        "labels": torch.tensor([4, 5]),
        "masks": torch.ones(2, 1, *SIZE, dtype=torch.bool),
    }
    one = Detections.of(output, SIZE)
    assert one.masks.shape == (2, *SIZE)
    assert one.above(0.5).labels.tolist() == [4]
    assert one.above(0.1, [5]).boxes_xyxy.tolist() == [[5, 6, 7, 8]]
    assert len(one.above(0.1, [])) == 0
    assert isinstance(one.boxes_xyxy, np.ndarray)
