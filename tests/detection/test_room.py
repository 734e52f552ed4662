"""Detection through every door: train, resume, evaluate, predict, report."""

import csv
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor

import convattn
from convattn.cli.main import main
from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError
from convattn.detection.findings import _told
from convattn.detection.options import DetectionOptions, PredictionOptions
from convattn.detection.predict import _starts, detect
from convattn.detection.task import Detection
from convattn.detection.variation import Variation
from convattn.report.comparison import run_row
from convattn.report.run import read_run
from convattn.training import loop
from convattn.training.loop import Interrupted, train
from convattn.training.skipped import replay_skipped
from tiny_detection import CLASSES, coco_folder, tiny_detection, write_objects
from tiny_runs import assert_same_run

SMALL = {"atss": dict(width=64), "mask_rcnn": dict(hidden=32)}  # further options of some


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_objects(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    options = dict(detector="mask_rcnn", hidden=32)
    return train(
        tiny_detection(data, folder, task=options, schedule=dict(updates=80), loop=dict(validation_updates=40))
    )


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_so(run):
    log = log_of(run)
    assert log[-1]["box_ap50"] > 60 > log[0]["box_ap50"]
    assert log[-1]["mask_ap50"] > 60
    assert {name for name in log[-1] if name.startswith(("box", "mask"))} == {
        f"{kind}_{name}" for kind in ("box", "mask") for name in ("ap", "ap50", "ap75", "ar100")
    }
    assert {"train_loss_mask", "train_loss_proposal.label"} <= log[-1].keys()
    row = run_row(read_run(run))
    assert (row["network"], row["updates"], row["planned"]) == ("smt_nano with mask_rcnn", 80, 80)
    assert row["best_update"] in (40, 80)
    model = convattn.open_model(run)
    assert model.pretrained_cfg["label_names"] == CLASSES
    assert (model.task_kind, model.pretrained_cfg["scale"]) == ("detection", (96, 64))
    assert model.has_masks


@pytest.mark.parametrize("detector", ["retinanet", "mask_rcnn"])
def test_a_stopped_run_ends_like_one_that_was_not(data, tmp_path, monkeypatch, detector):
    def config(name):
        task = dict(detector=detector, **SMALL.get(detector, {}))
        return tiny_detection(
            data, tmp_path / name, task=task, model=dict(drop_path_rate=0.2), loop=dict(ema_decay=0.9)
        )

    whole = train(config("whole"))
    real, seen = loop.update, []

    def stopping(run, group, *, stop):
        seen.append(1)
        return real(run, group, stop=stop or len(seen) == 2)

    monkeypatch.setattr(loop, "update", stopping)
    with pytest.raises(Interrupted):
        train(config("stopped"))
    monkeypatch.setattr(loop, "update", real)
    train(config("stopped"), resume=True)
    assert_same_run(tmp_path / "stopped", whole)


def test_eval_agrees_with_the_log_and_with_pycocotools(run, data, tmp_path, capsys):
    assert main(["eval", str(run), "--json", "--per-class"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = max(entry["box_ap"] for entry in log_of(run))
    assert found["box_ap"] == pytest.approx(best, rel=1e-6)
    out = tmp_path / "out"
    assert main(["predict", str(run), str(data / "val2017"), "--score", "0.05", "--output", str(out)]) == 0
    truth = COCO(str(data / "annotations" / "instances_val2017.json"))
    said = truth.loadRes(json.loads((out / "coco.json").read_text())["annotations"])
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        judge = COCOeval(truth, said, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        for place, figure in ((0, "ap"), (1, "ap50"), (2, "ap75"), (8, "ar100")):
            assert found[f"{name}_{figure}"] == pytest.approx(100 * judge.stats[place], abs=1e-6), figure
    assert found["box_ap_large"] is None
    assert [row["class"] for row in found["classes"]] == list(CLASSES)
    assert found["images"] == 4
    assert found["objects"] == 6


def test_eval_shows_figures_classes_and_a_page(run, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["eval", str(run), "--per-class", "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "short side 64, long at most 96" in shown
    assert "balanced     at a score of" in shown
    assert "square" in shown
    text = page.read_text()
    for words in (
        "Precision and recall",
        "Masks, mean of the classes",
        "What it confuses",
        "nothing",
        "Classes",
        "mask AP",
        "precision",
    ):
        assert words in text
    assert re.search(
        r"Of 6 objects \d are found at a score of 0\.\d\d: \d missed, \d taken for another, \d false alarm", text
    )
    assert "AP large" not in text  # nothing can be said of it


def test_predict_writes_pictures_and_what_other_programs_read(run, data, tmp_path, capsys):
    out, table = tmp_path / "out", tmp_path / "found.csv"
    assert main(["predict", str(run), str(data / "val2017"), "--output", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        *(f"00{number}{ending}" for number in range(1, 5) for ending in (".jpg", ".txt")),
        "coco.json",
        "predictions.json",
    ]
    found = json.loads((out / "predictions.json").read_text())
    for entry in found:
        lines = (out / entry["files"][1]).read_text().splitlines()
        assert len(lines) == len(entry["objects"])
        for line, one in zip(lines, entry["objects"], strict=True):
            assert int(line.split()[0]) == one["index"]
            assert one["class"] == CLASSES[one["index"]]
            assert one["mask"]["size"] == [64, 96]
    assert main(["predict", str(run), str(data / "val2017"), "--only", "bar", "--output", str(table)]) == 0
    rows = [*csv.DictReader(table.read_text().splitlines())]
    assert {row["class"] for row in rows} == {"bar"}
    capsys.readouterr()
    assert main(["predict", str(run), str(data / "val2017"), "--only", "bra"]) == 1
    assert "--only bra: the model knows no such class; nearest: bar" in capsys.readouterr().err


def test_predictions_from_python_are_arrays_in_the_pixels_of_the_picture(run, data):
    picture = Image.open(data / "val2017" / "001.png").resize((192, 128))
    model = convattn.open_model(run)
    (said,) = convattn.predict(model, picture, score=0.1)
    assert said.boxes_xyxy.shape == (len(said.scores), 4)
    assert said.masks.shape == (len(said.scores), 128, 192)
    assert (said.masks.dtype, said.labels.dtype) == (np.bool_, np.int64)
    assert (np.diff(said.scores) <= 0).all()
    (small,) = convattn.predict(model, Image.open(data / "val2017" / "001.png"), score=0.1)
    assert said.boxes_xyxy[0] == pytest.approx(2 * small.boxes_xyxy[0], abs=6)


def test_a_score_below_the_detectors_own_is_told(run, data):
    model = convattn.open_model(run)
    with pytest.warns(match=r"score 0.01 is below the detector's own, 0.05: nothing that is less sure"):
        next(convattn.predict(model, data / "val2017" / "001.png", score=0.01))


def test_what_is_wrong_is_told_by_kinds():
    counts = np.array([[3, 1, 2], [0, 4, 1], [1, 0, 0]])
    assert _told(counts, 0.5) == (
        "Of 11 objects 7 are found at a score of 0.50: 3 missed, 1 taken for another, 1 false alarm."
    )


class ByColour(torch.nn.Module):
    """Finds what is drawn in each colour, unless it is seen too small: fewer than `least` pixels wide."""

    def __init__(self, least: int = 0):
        super().__init__()
        self.least = least

    def forward(self, images, original_sizes):
        return [self.found(image, size) for image, size in zip(images, original_sizes, strict=True)]

    def found(self, image, size):
        masks = [(image[0] == colour) for colour in image[0].unique() if colour]
        kept = [mask for mask in masks if mask.any(0).sum() >= self.least]
        stack = torch.stack(kept) if kept else torch.zeros(0, *size, dtype=torch.bool)
        boxes = masks_to_boxes(stack) + torch.tensor([0.0, 0, 1, 1]) if kept else torch.zeros(0, 4)
        scores = torch.tensor([float(image[0][mask][0]) / 255 for mask in kept])
        return {"boxes": boxes, "scores": scores, "labels": torch.zeros(len(kept), dtype=torch.int64), "masks": stack}


OBJECTS = [
    (5, 4, 15, 12),
    (90, 30, 110, 44),
    (60, 60, 64, 100),
    (20, 50, 45, 58),
    (100, 100, 140, 118),
    (50, 5, 190, 9),
]


@pytest.mark.parametrize("tile", [32, 64, 100, 500])
def test_windows_find_every_object_once_and_whole(tile):
    pixels = np.zeros((128, 192, 3), np.uint8)
    for at, (left, top, right, bottom) in enumerate(OBJECTS, start=1):
        pixels[top:bottom, left:right] = 250 - at
    options, steps = PredictionOptions(score=0.1, tile=tile, overlap=0.3), []
    (said,) = detect(ByColour(), [Image.fromarray(pixels)], options, pil_to_tensor, ["thing"], steps.append)
    assert said.boxes_xyxy.tolist() == [list(map(float, box)) for box in OBJECTS]  # the surest first, as they are drawn
    for mask, (left, top, right, bottom) in zip(said.masks, OBJECTS, strict=True):
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (right - left) * (bottom - top)
    assert sum(steps) == pytest.approx(1)


def test_windows_see_what_is_too_small_in_the_whole_picture():
    pixels = np.zeros((128, 192, 3), np.uint8)
    pixels[40:44, 70:76] = 200
    picture = Image.fromarray(pixels)

    def transform(view):  # as large as the model sees images
        return pil_to_tensor(view.resize((64, 64), Image.Resampling.NEAREST))

    class Scaled(ByColour):
        def found(self, image, size):
            found = super().found(image, image.shape[1:])
            boxes = found["boxes"] * torch.tensor([size[1] / 64, size[0] / 64] * 2)
            return {"boxes": boxes, "scores": found["scores"], "labels": found["labels"]}

    model = Scaled(least=5)
    (whole,) = detect(model, [picture], PredictionOptions(), transform, ["thing"])
    (by_windows,) = detect(model, [picture], PredictionOptions(tile=64), transform, ["thing"])
    assert len(whole.scores) == 0
    assert by_windows.boxes_xyxy.tolist() == [[70, 40, 76, 44]]
    assert by_windows.masks is None


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "starts"),
    [(50, 64, 0.2, [0]), (100, 64, 0.0, [0, 36]), (128, 64, 0.0, [0, 64]), (128, 64, 0.5, [0, 32, 64])],
)
def test_windows_cover_a_side_in_even_steps(side, tile, overlap, starts):
    assert _starts(side, tile, overlap) == starts


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.45, 0.9])
@pytest.mark.parametrize("side", [64, 65, 127, 1000])
def test_windows_overlap_at_least_as_asked(side, overlap):
    starts = _starts(side, 64, overlap)
    assert (starts[0], starts[-1]) == (0, side - 64)
    assert all(second - first <= max(1, 64 * (1 - overlap)) + 1 for first, second in pairwise(starts))


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"data.image_size 64 has no effect on a detector"):
        tiny_detection("data", "run", data=dict(image_size=64))
    with pytest.raises(ConfigError, match=r"loop.compile compiles a network anew for every size of images"):
        tiny_detection("data", "run", loop=dict(compile=True))
    with pytest.raises(ConfigError, match=r"task.scale 64 96 must be the longest side, then the shortest"):
        DetectionOptions(scale=(64, 96))
    with pytest.raises(ConfigError, match=r"copies objects by their outlines, which retinanet does not learn"):
        DetectionOptions(detector="retinanet", variation=DetectionOptions().variation.__class__(copy_paste=0.5))
    for field, words in (
        (dict(score=2), "--score 2"),
        (dict(tile=8), "--tile 8"),
        (dict(overlap=1.0), "--overlap 1.0"),
    ):
        with pytest.raises(ValueError, match=words):
            PredictionOptions(**field)


def test_what_does_not_fit_a_detector_is_one_line(data, tmp_path):
    for field, words in (
        (dict(model=dict(drop_rate=0.1)), "model.drop_rate has no effect on a detector"),
        (dict(task=dict(box_head="2fc")), "box_head '2fc' is of R-CNN; retinanet has none"),
        (dict(model=dict(options=dict(stem_stride=2))), "has levels of stride"),
        (dict(model=dict(options=dict(nonsense=1))), "model smt_nano cannot be built: .*nonsense"),
        (
            dict(model=dict(name="timm:coat_lite_mini", options=dict(img_size=64))),
            "takes images of 64 x 64 alone, and a detector learns from many sizes",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            train(tiny_detection(data, tmp_path / "run", **field))


def test_validation_without_an_object_is_told_before_a_run(tmp_path):
    root = coco_folder(tmp_path)
    file = root / "annotations" / "instances_val2017.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(DataError, match="none of the 2 validation images shows an object that counts"):
        train(tiny_detection(root, tmp_path / "run"))


def test_images_without_objects_are_learnt_from_or_left_out(data, tmp_path):
    for kept, images in ((True, 8), (False, 5)):
        root = write_objects(tmp_path / str(kept))
        file = root / "annotations" / "instances_train2017.json"
        content = json.loads(file.read_text())
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] > 3]
        file.write_text(json.dumps(content))
        config = tiny_detection(
            root, tmp_path / f"run{kept}", task=dict(without_objects=kept), schedule=dict(updates=3)
        )
        with nullcontext() if kept else pytest.warns(match="3 of 8 training images show no object: left out"):
            folder = train(config)
            train_images, _ = convattn.rooms.room("detection").open_training(config)
        assert np.isfinite(log_of(folder)[-1]["train_loss"])
        assert len(train_images) == images


def test_sizes_are_chosen_by_the_images(data, tmp_path, capsys):
    room = convattn.rooms.room("detection")
    config = tiny_detection(data, tmp_path / "run", task=dict(scale=None, variation=Variation()))
    train_images, _ = room.open_training(config)
    fitted, lines = room.fitted(config, train_images)
    assert fitted.task.scale == (240, 160)
    assert fitted.task.variation.short_sides == (128, 160, 192)
    assert "short side of about 64 pixels" in lines[0]
    assert room.fitted(fitted, train_images) == (fitted, [])
    for own in (dict(short_sides=(64, 80)), dict(longest_side=900), dict(short_sides=(64, 96), between=True)):
        asked = replace(config, task=replace(config.task, variation=Variation(**own)))
        fitted, lines = room.fitted(asked, train_images)
        assert (fitted.task.scale, fitted.task.variation) == ((240, 160), Variation(**own))
        assert lines == ["task.scale 240 160: images have a short side of about 64 pixels"]


def test_norms_of_a_network_from_scratch_learn(data, tmp_path):
    room = convattn.rooms.room("detection")
    config = tiny_detection(data, tmp_path / "run", task=dict(frozen_norms=True))
    train_images, _ = room.open_training(config)
    fitted, lines = room.fitted(config, train_images)
    assert not fitted.task.frozen_norms
    assert lines == [
        "task.frozen_norms False: norms of a network from scratch have measured nothing that could be kept"
    ]
    for started in (dict(pretrained=True), dict(pretrained_path="weights.safetensors")):
        kept = replace(config, model=replace(config.model, **started))
        assert room.fitted(kept, train_images) == (kept, [])


def test_a_skipped_update_can_be_replayed(data, tmp_path, monkeypatch):
    losses, calls = Detection.losses, []

    def spoilt(self, model, batch):
        calls.append(batch)
        return {name: loss * (torch.nan if len(calls) == 2 else 1) for name, loss in losses(self, model, batch).items()}

    monkeypatch.setattr(Detection, "losses", spoilt)
    options = dict(detector="mask_rcnn", hidden=32)
    folder = train(tiny_detection(data, tmp_path / "run", task=options, schedule=dict(updates=3)))
    first, last = replay_skipped(folder / "skipped" / "step_00000002.rank0.pt")
    assert "mask " in first and first.endswith(", ".join(calls[1].paths))
    assert last == "everything is finite in float32 on the CPU; the precision or the device made the difference"


@pytest.mark.filterwarnings("ignore:smt_nano is built with stem_stride=4")
def test_the_command_chooses_detection_by_the_layout(data, tmp_path, capsys):
    words = ["train", "--data", str(data), "--output.folder", str(tmp_path / "run"), "--model.name", "smt_nano"]
    words += ["--dry-run", "--model.no-pretrained", "--task.detector", "retinanet", "--data.batch-size", "2"]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "recipe detect_finetune, by the layout of the data" in told.err + told.out


@pytest.mark.slow  # a whole export with two evaluations; its parts are in test_exported_detectors.py
def test_an_exported_file_finds_the_same(run, data, tmp_path, capsys):
    path = tmp_path / "found.onnx"
    words = ["--image-size", "64", "96", "--evaluate", str(data), "--max-drop", "1"]
    assert main(["export", str(run), str(path), *words]) == 0
    shown = capsys.readouterr().out
    assert "same detections" in shown
    assert main(["eval", str(path), "--data", str(data), "--json"]) == 0
    file = json.loads(capsys.readouterr().out)
    assert main(["eval", str(run), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    for name in ("box_ap", "mask_ap", "box_ap50"):
        assert file[name] == pytest.approx(model[name], abs=1.0)
    (said,) = convattn.predict(convattn.load_exported(path), data / "val2017" / "001.png", score=0.1)
    (want,) = convattn.predict(convattn.open_model(run), data / "val2017" / "001.png", score=0.1)
    assert said.names == CLASSES
    assert said.boxes_xyxy[0] == pytest.approx(want.boxes_xyxy[0], abs=0.5)
    assert said.masks.shape[1:] == (64, 96)


def test_how_images_are_made_smaller_survives_saving(data, tmp_path):
    config = tiny_detection(data, tmp_path / "run", schedule=dict(updates=3))
    config = replace(config, task=replace(config.task, variation=replace(config.task.variation, antialias=True)))
    model = convattn.open_model(train(config))
    assert model.pretrained_cfg["antialias"] is True
    assert convattn.rooms.room("detection").evaluation_transform(model).antialias
