import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from convattn.detection.detections import Detections
from convattn.detection.predict import ObjectPrediction
from convattn.detection.rasterise import counts_of
from convattn.detection.writers import coco_dataset, coco_results, yolo_text
from tiny_detection import SIZE, found

SAID = ((1, 0.875, 10, 20, 30, 60), (0, 0.25, 0, 0, 8, 12))


def test_cocos_results_have_the_ids_of_the_annotations():
    entries = coco_results(found(*SAID, masks=True), 139, [3, 18])
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


def test_without_masks_there_is_no_segmentation():
    assert "segmentation" not in coco_results(found(*SAID), 1, [3, 18])[0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 about numpy 2
@pytest.mark.parametrize("masks", [False, True])
def test_pycocotools_reads_what_was_found_as_a_data_set(tmp_path, masks):
    said = [
        {"image": name, **ObjectPrediction(found(*some, masks=masks), ("cat", "dog")).as_json()}
        for name, some in (("a.jpg", SAID), ("b.jpg", ()))
    ]
    (tmp_path / "coco.json").write_text(json.dumps(coco_dataset(said, ("cat", "dog"))))
    coco = COCO(str(tmp_path / "coco.json"))
    assert [coco.imgs[at]["file_name"] for at in coco.getImgIds()] == ["a.jpg", "b.jpg"]
    first, second = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert (coco.cats[first["category_id"]]["name"], first["bbox"], first["score"]) == ("dog", [10, 20, 20, 40], 0.875)
    assert (coco.cats[second["category_id"]]["name"], second["area"]) == ("cat", 96)
    assert coco.getAnnIds(imgIds=[2]) == []
    if masks:
        assert coco.annToMask(first).sum() == 800


def test_yolos_lines_are_centres_and_sizes_in_shares():
    lines = yolo_text(found(*SAID)).splitlines()
    assert lines[0] == "1 0.125000 0.333333 0.125000 0.333333 0.875"
    assert [float(word) for word in lines[1].split()] == pytest.approx([0, 0.025, 0.05, 0.05, 0.1, 0.25])
    assert yolo_text(found()) == ""


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
