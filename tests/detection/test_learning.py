"""Detectors learn: four pictures by heart, and on two processes as on one."""

import json

import pytest

from convattn.training.loop import train
from forked_runs import train_forked
from tiny_detection import tiny_detection, write_objects
from tiny_runs import figures

DETECTORS = {
    "retinanet": {},
    "atss": dict(width=64),
    "faster_rcnn": dict(hidden=32),
    "mask_rcnn": dict(hidden=32),
    "cascade_rcnn": dict(hidden=32),
    "cascade_mask_rcnn": dict(hidden=32),
}
QUICK = "atss"
UPDATES = {"atss": 160, "retinanet": 600}  # 300 of the others; RetinaNet has nine anchors a place to tell apart


@pytest.mark.parametrize(
    "detector",
    [
        pytest.param(name, marks=() if name == QUICK else pytest.mark.slow)  # each takes up to a minute
        for name in DETECTORS
    ],
)
def test_four_pictures_are_learnt_by_heart(tmp_path, detector):
    data = write_objects(tmp_path / "data", train=4, val=4)
    for split in ("train2017", "val2017"):
        other = tmp_path / "data" / "annotations" / f"instances_{split}.json"
        other.write_text((tmp_path / "data" / "annotations" / "instances_train2017.json").read_text())
    for picture in (data / "train2017").iterdir():
        (data / "val2017" / picture.name).write_bytes(picture.read_bytes())
    config = tiny_detection(
        data,
        tmp_path / "run",
        task=dict(detector=detector, **DETECTORS[detector]),
        schedule=dict(updates=UPDATES.get(detector, 300)),
        loop=dict(validation_updates=UPDATES.get(detector, 300)),
    )
    last = json.loads((train(config) / "log.jsonl").read_text().splitlines()[-1])
    assert last["box_ap50"] > 90
    assert last["box_ap"] > 65
    if "mask" in detector:
        assert last["mask_ap"] > 60


@pytest.mark.parametrize("detector", ["retinanet", "atss"])
def test_two_processes_find_the_losses_of_one(tmp_path, detector):
    """ATSS averages its normalisers over the processes, so two find what one does; RetinaNet takes each its own."""
    data = write_objects(tmp_path / "data")

    def config(folder, batch_size):
        return tiny_detection(
            data,
            tmp_path / folder,
            data=dict(batch_size=batch_size),
            optimizer=dict(name="sgd", lr=0.01),
            task=dict(detector=detector, frozen_norms=True, **DETECTORS[detector]),
        )

    one = train_forked(config("one", 4))
    two = train_forked(config("two", 2), processes=2)
    for alone, shared in zip(figures(one), figures(two), strict=True):
        bar = 1e-3 if detector == "atss" else 0.3
        assert shared["train_loss"] == pytest.approx(alone["train_loss"], rel=bar)
