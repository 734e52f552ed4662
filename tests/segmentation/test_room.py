"""Segmentation through every door: train, resume, evaluate, predict, report, export, measure."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import convattn
from convattn.cli.main import main
from convattn.config_errors import ConfigError
from convattn.data.dataset import DataError
from convattn.recipes import RECIPES
from convattn.segmentation.options import LabelOptions
from convattn.training import loop
from convattn.training.loop import Interrupted, train
from tiny_runs import assert_same_run
from tiny_segmenters import CLASSES, tiny_segmentation, write_masks

pytestmark = pytest.mark.filterwarnings("ignore:.*classes.txt. names the:convattn.data.dataset.DataWarning")

HEADS = ["upernet", "semantic_fpn"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(tiny_segmentation(data, tmp_path_factory.mktemp("run") / "run", schedule=dict(updates=40)))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_so(run):
    log = log_of(run)
    assert log[-1]["miou"] > 60 > log[0]["miou"]
    assert {"miou", "macc", "aacc", "mdice"} <= log[-1].keys()
    model = convattn.open_model(run)
    assert model.pretrained_cfg["label_names"] == CLASSES
    assert len(model.pretrained_cfg["label_colours"]) == 3
    assert (model.task_kind, model.pretrained_cfg["input_size"]) == ("segmentation", (3, 32, 32))


@pytest.mark.parametrize("head", HEADS)
def test_a_stopped_run_ends_like_one_that_was_not(data, tmp_path, monkeypatch, head):
    def config(name):
        return tiny_segmentation(
            data, tmp_path / name, task=dict(head=head), model=dict(drop_path_rate=0.2), loop=dict(ema_decay=0.9)
        )

    whole = train(config("whole"))
    real, seen = loop.update, []

    def stopping(run, group, *, stop):
        seen.append(1)
        return real(run, group, stop=stop or len(seen) == 3)

    monkeypatch.setattr(loop, "update", stopping)
    with pytest.raises(Interrupted):
        train(config("stopped"))
    monkeypatch.setattr(loop, "update", real)
    train(config("stopped"), resume=True)
    assert_same_run(tmp_path / "stopped", whole)
    names = {"decode.loss_ce", "aux.loss_ce"} if head == "upernet" else set()
    assert {name.removeprefix("train_loss_") for name in log_of(whole)[0] if name.startswith("train_loss_")} == names


def test_workers_see_the_same_crops(data, tmp_path):
    folders = [
        train(tiny_segmentation(data, tmp_path / f"{workers}", data=dict(workers=workers), schedule=dict(updates=3)))
        for workers in (0, 2)
    ]
    assert_same_run(*folders)


def test_eval_agrees_with_the_log_and_with_a_count_by_hand(run, data, capsys):
    assert main(["eval", str(run), "--json", "--per-class"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = max(entry["miou"] for entry in log_of(run))
    assert found["miou"] == pytest.approx(best, rel=1e-6)
    model, counts = convattn.open_model(run), np.zeros((3, 3))
    for file in sorted((data / "images" / "val").iterdir()):
        labels = np.asarray(Image.open(data / "masks" / "val" / file.name))
        (said,) = convattn.predict(model, file)
        for true, predicted in zip(labels.ravel(), said.labels.ravel(), strict=True):
            if true != 255:
                counts[true, predicted] += 1
    right = np.diag(counts)
    iou = 100 * right / (counts.sum(0) + counts.sum(1) - right)
    assert found["miou"] == pytest.approx(iou.mean())
    assert [row["iou"] for row in found["classes"]] == pytest.approx(iou.tolist())
    assert [row["class"] for row in found["classes"]] == list(CLASSES)
    assert found["pixels"] == counts.sum()


def test_windows_scales_and_mirrors_are_options(run, tmp_path, capsys):
    words = ["eval", str(run), "--window", "24", "--step", "16", "--scales", "0.5", "1", "--flip"]
    page = tmp_path / "page.html"
    assert main([*words, "--per-class", "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "windows of 24 x 24, 16 apart, at 0.5 1 times, mirrored too" in shown
    assert "square" in shown
    text = page.read_text()
    for words in (
        "Where it fails",
        "What it confuses",
        "Percent of the row",
        "photograph",
        "errors",
        "IoU",
        "of one look at each",
    ):
        assert words in text


def test_masks_of_other_images_are_as_in_training_unless_it_is_said(data, tmp_path, capsys):
    folder = tmp_path / "reduced"
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "masks" / split).mkdir(parents=True)
        for file in (data / "images" / split).iterdir():
            (folder / "images" / split / file.name).write_bytes(file.read_bytes())
            labels = np.asarray(Image.open(data / "masks" / split / file.name))
            Image.fromarray(np.where(labels == 255, 0, labels + 1).astype(np.uint8)).save(
                folder / "masks" / split / file.name
            )
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    labels = LabelOptions(reduce_zero_label=True)
    run = train(tiny_segmentation(folder, tmp_path / "run", schedule=dict(updates=1), task=dict(labels=labels)))

    def figure(model, source, *words):
        assert main(["eval", str(model), "--data", str(source), "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["miou"]

    want = log_of(run)[-1]["miou"]
    assert figure(run, folder) == figure(run / "best.safetensors", folder) == pytest.approx(want)
    assert figure(run, data, "--labels.reduce-zero-label", "False") == pytest.approx(want)
    assert main(["eval", str(run), "--data", str(folder), "--labels.reduce-zero-label", "False"]) == 1
    assert "label 3 in" in capsys.readouterr().err


def test_masks_of_which_no_pixel_counts_are_refused(tmp_path):
    data = write_masks(tmp_path / "data")
    for file in (data / "masks" / "val").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(file)
    with pytest.raises(DataError, match=r"masks/val: no pixel of any mask counts, as labels.ignore_index is 255"):
        train(tiny_segmentation(data, tmp_path / "run"))


def test_predict_writes_masks_overlays_and_shares(run, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(run), str(data / "images" / "val"), "--output", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == [
        *(f"0{number}{ending}" for number in range(3) for ending in (".jpg", "_mask.png")),
        "predictions.json",
    ]
    found = json.loads((out / "predictions.json").read_text())
    with Image.open(out / "00_mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (64, 48))
        labels = np.asarray(mask)
        colours = np.array(mask.getpalette()).reshape(-1, 3)
    for row in found[0]["classes"]:
        assert row["share"] == pytest.approx((labels == row["index"]).mean())
    assert sum(row["share"] for row in found[0]["classes"]) == pytest.approx(1)
    want = convattn.open_model(run).pretrained_cfg["label_colours"]
    assert [tuple(colour) for colour in colours[:3].tolist()] == list(want)
    with Image.open(out / "00.jpg") as drawn:
        assert drawn.width == 64
        assert drawn.height > 48  # the legend below


def test_predictions_from_python_are_arrays_at_the_size_of_the_picture(run):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 91, 3), dtype=np.uint8))
    (said,) = convattn.predict(convattn.open_model(run), picture)
    assert (said.labels.shape, said.labels.dtype, said.names) == ((37, 91), np.uint8, CLASSES)
    assert said.mask("sky").shape == (37, 91)
    assert np.array_equal(said.mask("sky"), said.labels == 2)
    with pytest.raises(ValueError, match=r"class 'skies' is unknown; nearest: sky"):
        said.mask("skies")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="logits"),
        pytest.param(["--arg-max"], id="classes", marks=pytest.mark.slow),  # a second whole export
        # Traced at a size that leaves more than a pixel of every level: what has one is taken as constant.
        pytest.param(["--dynamic", "all", "--image-size", "64"], id="any size", marks=pytest.mark.slow),
    ],
)
def test_an_exported_file_says_the_same(run, data, tmp_path, capsys, words):
    path = tmp_path / "found.onnx"
    assert main(["export", str(run), str(path), "--evaluate", str(data), "--max-drop", "0.5", *words]) == 0
    shown = capsys.readouterr().out
    assert "same class" in shown
    before, after = map(float, re.search(r"mIoU +([\d.]+) % before, ([\d.]+) % after", shown).groups())
    assert after == pytest.approx(before, abs=0.2)  # both are looked at alike
    assert main(["eval", str(path), "--data", str(data), "--json"]) == 0
    file = json.loads(capsys.readouterr().out)["miou"]
    window = [] if "--dynamic" in words else ["--window", "32"]
    assert main(["eval", str(run), "--json", *window]) == 0
    model = json.loads(capsys.readouterr().out)["miou"]
    assert file == pytest.approx(model, abs=3.0 if "--arg-max" in words else 0.2)  # overlapping windows vote
    (said,) = convattn.predict(convattn.load_exported(path), data / "images" / "val" / "00.png")
    assert (said.labels.shape, said.names) == ((48, 64), CLASSES)


def test_it_is_folded_and_counted(run):
    model = convattn.open_model(run)
    images = torch.randn(2, 3, 32, 40)
    with torch.no_grad():
        want, got = model(images), convattn.fuse(model)(images)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
    counted = convattn.count(model, (3, 32, 32))
    assert counted.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.slow  # processes of their own; the second task of test_task_seam.py goes through the same command
def test_it_is_measured(run):
    assert main(["bench", str(run), "--repeats", "2", "--json"]) == 0


def test_images_of_several_sizes_are_judged_each_at_its_own(tmp_path, capsys):
    data = write_masks(tmp_path / "data", val=4, sizes=((64, 48), (40, 72)))
    folder = train(tiny_segmentation(data, tmp_path / "run"))
    assert main(["eval", str(folder), "--json", "--batch-size", "4"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert main(["eval", str(folder), "--json", "--batch-size", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["miou"] == pytest.approx(together["miou"])


def test_one_image_at_a_time_needs_another_head():
    with pytest.raises(ConfigError, match=r"data.batch_size 1 leaves the batch norm behind UperNet's 1 × 1 pool one"):
        tiny_segmentation("data", "run", task=dict(head="upernet"), data=dict(batch_size=1))
    tiny_segmentation("data", "run", data=dict(batch_size=1))
    with pytest.raises(ConfigError, match=r"data.image_size \(32, 64\): crops are square here; give a side"):
        tiny_segmentation("data", "run", data=dict(image_size=(32, 64)))


def test_options_of_a_classifier_are_refused(data, tmp_path):
    for field in (dict(drop_rate=0.1), dict(pretrained_path="a.safetensors", head_rows="fresh")):
        with pytest.raises(ConfigError, match="has no effect on a segmenter"):
            train(tiny_segmentation(data, tmp_path / "run", model=field))


def test_a_backbone_without_the_coarsest_level_is_told(data, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=r"has levels of stride 2, 4, 8, 16; 4, 8, 16, 32 are needed"):
        train(tiny_segmentation(data, tmp_path / "run", model=dict(options=dict(stem_stride=2))))


def test_a_backbone_of_one_size_sees_crops_of_that_size(data, tmp_path):
    model = dict(name="timm:coat_lite_mini", options=dict(img_size=64))
    config = tiny_segmentation(data, tmp_path / "run", model=model, data=dict(image_size=None), task=dict(width=8))
    room = convattn.rooms.room("segmentation")
    train_images, _ = room.open_training(config)
    assert room.fitted(config, train_images) == (config, [])
    assert room.build_model(config, train_images).pretrained_cfg["input_size"] == (3, 64, 64)
    wrong = tiny_segmentation(data, tmp_path / "run", model=model, data=dict(image_size=32), task=dict(width=8))
    with pytest.raises(ConfigError, match=r"data.image_size 32: this backbone takes 64 x 64 alone; leave it out"):
        room.build_model(wrong, train_images)


def test_a_class_without_a_validation_pixel_is_told_and_left_out(data, tmp_path, capsys):
    other = write_masks(tmp_path / "data")
    (other / "classes.txt").write_text("ground\nsquare\nsky\nhorse\n")
    folder = train(tiny_segmentation(other, tmp_path / "run"))
    assert "without a validation pixel, so that no figure tells of it: horse" in capsys.readouterr().err
    assert main(["eval", str(folder)]) == 0
    assert "no pixel of horse: left out of mAcc, and of mIoU unless predicted" in capsys.readouterr().out


def test_nothing_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no such folder"):
        train(tiny_segmentation(tmp_path / "gone", tmp_path / "run"))


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().task.kind == "segmentation"])
def test_recipes_name_networks_that_can_be_built(name):
    config = RECIPES[name]()
    with torch.device("meta"):
        model = convattn.create_segmenter(
            config.model.name, config.task.head, 150, width=config.task.width, **config.model.options
        )
    assert model.task_kind == "segmentation"
    if name != "segment_finetune":
        assert config.schedule.length(1) * config.data.batch_size * config.loop.accumulation in (1_280_000, 2_560_000)
        assert (config.task.scale, config.data.image_size) == ((2048, 512), 512)
