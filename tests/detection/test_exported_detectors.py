"""Detectors as files: what they find, number by number and object by object, and how files are used as detectors."""

import json
from pathlib import Path

import pytest
import torch

import convattn
from convattn import rooms
from convattn.bench.runtimes import Setting, file_call, pytorch_calls, write_file
from convattn.deploy.export import ExportError
from convattn.deploy.export_request import resolve
from convattn.deploy.gate import TOLERANCES, Tolerance, relative_error
from convattn.detection import exported
from convattn.detection.create import create_detector
from convattn.detection.export_form import NOTHING, ExportForm, Numbers
from convattn.task import NoOptions, RoomWords, TaskOptions, TaskRoom
from tiny_detectors import DENSE, FORMS, IDS, QUERIES, QUERY_IDS, detector
from toys import lively

SIZE = (64, 96)


class Room(TaskRoom):
    """What the export asks of the room of detection, and nothing else."""

    kind = "detection"
    words = RoomWords(TaskOptions, NoOptions, NoOptions, ())

    def for_export(self, model, options):
        return exported.for_export(model)

    numbers = staticmethod(exported.numbers)
    paired = staticmethod(exported.paired)
    describe = staticmethod(exported.describe)
    check_description = staticmethod(exported.check_description)
    agreement = staticmethod(exported.agreement)


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setitem(rooms.KINDS, "detection", Room())


def of(name, least=0.0, **options):
    model = lively(detector(name, **options)).eval()
    model.score_threshold, model.max_detections = least, 20
    return model


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The form


@torch.no_grad()
@pytest.mark.parametrize(("name", "options"), [*FORMS, *QUERIES], ids=[*IDS, *QUERY_IDS])
@pytest.mark.parametrize("least", [0.0, 0.1])
def test_tables_hold_what_the_detector_finds(name, options, least):
    model, batch = of(name, least, **options), images(2, 3, 61, 90)
    tables = ExportForm(model)(batch)
    assert tables["boxes"].shape == (2, 20, 4) and tables["labels"].dtype == torch.int64
    for found, told in zip(exported.found(tables, [(61, 90)] * 2), model(batch), strict=True):
        told["boxes"] = exported.clipped(told["boxes"], (61, 90))  # Sparse R-CNN's go on beyond the image
        assert len(found["scores"]) == len(told["scores"])
        torch.testing.assert_close(found["scores"], told["scores"])
        pairs = exported.paired(*([one[None] for one in (f["boxes"], f["scores"], f["labels"])] for f in (found, told)))
        assert pairs.share == pytest.approx(1.0)
        assert relative_error(*(torch.cat(side[:1]) for side in (pairs.got, pairs.want))) < 1e-5
        if "masks" in told:
            assert found["masks"].shape == told["masks"].shape
            assert (found["masks"] != told["masks"]).double().mean() < 1e-3


@torch.no_grad()
def test_rows_behind_the_last_object_hold_nothing():
    model = of("mask_rcnn", 0.3)
    model.max_detections = 100
    tables = ExportForm(model)(images(1, 3, *SIZE))
    count = len(model(images(1, 3, *SIZE))[0]["scores"])
    assert 0 < count < 100
    assert (tables["labels"][0, count:] == NOTHING).all() and (tables["labels"][0, :count] >= 0).all()
    assert not any(tables[name][0, count:].any() for name in ("scores", "boxes", "masks"))
    model.score_threshold = 1.0
    assert (ExportForm(model)(images(1, 3, *SIZE))["labels"] == NOTHING).all()


def test_a_format_without_suppression_is_refused_with_those_that_have_it(tmp_path):
    with pytest.raises(ValueError, match="executorch cannot hold ExportForm; these can: onnx, openvino, torch_export"):
        convattn.export(exported.for_export(of("retinanet")), tmp_path / "model.pte", input_size=SIZE)


# Files


def exported_file(name, path, **options):
    model = of(name)
    report = convattn.export(exported.for_export(model), path, input_size=SIZE, **options)
    return model, report, convattn.load_exported(path)


@pytest.mark.parametrize(
    ("name", "file", "dynamic"),
    [
        ("retinanet", "model.onnx", "none"),
        pytest.param("mask_rcnn", "model.onnx", "none", marks=pytest.mark.slow),  # a minute each
        pytest.param("atss", "model.onnx", "batch", marks=pytest.mark.slow),
        pytest.param("cascade_mask_rcnn", "model.onnx", "batch", marks=pytest.mark.slow),
        pytest.param("retinanet", "model.xml", "batch", marks=pytest.mark.slow),
        pytest.param("mask_rcnn", "model.xml", "none", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "model.pt2", "none", marks=pytest.mark.slow),
        pytest.param("sparse_rcnn", "model.onnx", "batch", marks=pytest.mark.slow),
        pytest.param("sparse_rcnn", "model.xml", "none", marks=pytest.mark.slow),
        pytest.param("dino", "model.onnx", "batch", marks=pytest.mark.slow),
        pytest.param("dino", "model.xml", "batch", marks=pytest.mark.slow),
        pytest.param("dino", "model.pt2", "none", marks=pytest.mark.slow),
    ],
)
def test_a_file_finds_what_the_detector_finds(name, file, dynamic, tmp_path):
    pytest.importorskip("onnxruntime" if file.endswith("onnx") else "openvino")
    model, report, opened = exported_file(name, tmp_path / file, dynamic=dynamic)
    assert report.kept and report.max_relative_error < 1e-4
    numbers = [check for check in report.checks if check.paired is None]
    found = [check for check in report.checks if check.paired is not None]
    assert len(numbers) == len(found) > 0  # both parts, on the same images
    assert all(check.paired > 0.99 for check in found)
    assert opened.has_masks == model.has_masks and opened.max_detections == 20 and opened.task_kind == "detection"
    batch = [images(3, *SIZE), images(3, *SIZE, seed=1)]
    sizes = [(128, 192), (32, 48)]
    found = exported.as_detector(opened)(batch, sizes), model(batch, original_sizes=sizes)
    for one, told, size in zip(*found, sizes, strict=True):
        torch.testing.assert_close(one["scores"], told["scores"], atol=1e-5, rtol=1e-4)
        assert relative_error(one["boxes"], exported.clipped(told["boxes"], size)) < 1e-4
        assert one["labels"].equal(told["labels"])
        if model.has_masks:
            assert (one["masks"] != told["masks"]).double().mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "dino"])
def test_a_file_for_any_size_takes_images_as_they_are(name, tmp_path):
    """Three minutes: a graph whose sizes are free is reasoned about for that long."""
    pytest.importorskip("onnxruntime")
    model = of(name)
    path = tmp_path / "model.onnx"
    report = convattn.export(exported.for_export(model), path, input_size=(160, 192), dynamic="all")
    assert report.kept
    image = images(3, 171, 203)
    (one,), (told,) = exported.as_detector(convattn.load_exported(path))([image]), model([image])
    assert relative_error(one["boxes"], told["boxes"]) < 1e-4


@pytest.mark.slow
def test_a_wrong_file_is_refused_by_its_numbers_or_by_what_it_finds(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    model = of("retinanet")

    class Blind(ExportForm):
        def forward(self, batch):
            tables = super().forward(batch)
            return tables | {"labels": tables["labels"].clamp(max=0)} if torch.compiler.is_exporting() else tables

    with pytest.raises(ExportError) as error:
        convattn.export(Blind(model), path, "torch_export", input_size=SIZE, dynamic="none")
    assert "% of what it finds on" in str(error.value) and "before it decides agrees" in str(error.value)

    class Wrong(Numbers):
        def forward(self, batch):
            found = super().forward(batch)
            return found | {"logits_0": found["logits_0"] * 1.1} if torch.compiler.is_exporting() else found

    monkeypatch.setattr(rooms.room("detection"), "numbers", lambda form: Wrong(form.detector), raising=False)
    with pytest.raises(ExportError, match="differs from the eager one by"):
        convattn.export(ExportForm(model), path, "torch_export", input_size=SIZE, dynamic="none")
    assert not path.exists()


def test_images_are_brought_into_the_frame_of_a_file():
    """Small ones get a border, large ones are made smaller, and boxes are told in the picture's pixels."""
    model = of("retinanet")
    form = ExportForm(model)
    form.fixed_size = SIZE
    whole = exported.as_detector(form)
    small = images(3, 40, 96)
    (one,), (told,) = whole([small]), model([small])
    assert one["boxes"][:, 3].max() <= 40 and len(one["boxes"]) == len(told["boxes"])
    large = torch.nn.functional.interpolate(images(1, 3, *SIZE), scale_factor=2)[0]
    (one,) = whole([large])
    assert one["boxes"][:, 2].max() > 96
    with pytest.raises(ValueError, match="2 original sizes for 1 images"):
        whole([small], [(1, 1), (2, 2)])
    assert exported.as_detector(model) is model


# Agreement


def tables(*rows):
    boxes = torch.tensor([[row[:4] for row in rows]], dtype=torch.float32).reshape(1, -1, 4)
    scores = torch.tensor([[row[4] for row in rows]], dtype=torch.float32)
    return [boxes, scores, torch.tensor([[row[5] for row in rows]], dtype=torch.int64)]


A, B, C = (0, 0, 10, 10, 0.9, 1), (20, 20, 40, 40, 0.5, 0), (50, 50, 60, 60, 0.1, 2)
EMPTY = (0, 0, 0, 0, 0.0, NOTHING)


def test_findings_are_paired_by_class_and_overlap():
    pairs = exported.paired(tables(A, B, EMPTY), tables(B, A, EMPTY))
    assert pairs.share == 1.0 and pairs.got[0].equal(pairs.want[0]) and pairs.got[0].shape == (1, 2, 4)
    assert pairs.scales == [None, 1.0, None]  # boxes, scores, labels
    other = (*A[:5], 0)  # of another class
    assert exported.paired(tables(A, B), tables(other, B)).share == pytest.approx(1.0 / 2.8)
    apart = (6, 0, 16, 10, 0.9, 1)  # IoU 0.25
    assert exported.paired(tables(A), tables(apart)).share == 0.0
    assert exported.paired(tables(EMPTY), tables(EMPTY)).share == 1.0
    assert exported.paired(tables(A, A), tables(A, EMPTY)).share == pytest.approx(2 / 3)  # one partner each
    line = (5, 0, 5, 10, 0.9, 1)  # without an area
    assert exported.paired(tables(line), tables(line)).share == 1.0
    assert exported.paired([torch.zeros(1, 3)], [torch.zeros(1, 3)]) is None


def test_in_fewer_bits_what_nobody_looks_at_does_not_count():
    faint, elsewhere = (0, 30, 10, 40, 0.04, 1), (70, 30, 80, 40, 0.04, 1)
    assert exported.paired(tables(A, faint), tables(A, elsewhere)).share == pytest.approx(1.8 / 1.88)
    pairs = exported.paired(tables(A, faint), tables(A, elsewhere), exact=False)
    assert pairs.share == 1.0 and pairs.got[1].tolist() == [[pytest.approx(0.9)]]
    assert exported.paired(tables(faint), tables(elsewhere), exact=False).share == 1.0
    stronger = (*faint[:4], 0.06, 1)  # on either side of what counts, and the same box
    assert exported.paired(tables(A, faint), tables(A, stronger), exact=False).share == 1.0
    assert exported.paired(tables(A, B), tables(A), exact=False).share == pytest.approx(1.8 / 2.3)


def test_agreement_is_told_by_shares():
    moved = (0, 0, 10, 8, 0.8, 1)
    shares = exported.agreement(tables(A, B), tables(moved, C))
    assert shares["same detections"] == 0.5
    assert shares["boxes"] == pytest.approx(99 / 121) and shares["scores"] == pytest.approx(0.9)
    assert exported.agreement(tables(EMPTY), tables(EMPTY)) == {}
    mask = torch.zeros(1, 1, 28, 28)
    mask[..., :14] = 1.0
    half = mask.clone()
    half[..., :7] = 0.0
    assert exported.agreement([*tables(A), mask], [*tables(A), half])["masks"] == pytest.approx(0.5)


def test_descriptions_of_anybody_are_checked():
    model = of("mask_rcnn", 0.05)
    model.pretrained_cfg |= {"label_names": ("a", "b", "c"), "scale": (1333, 800)}
    described = json.loads(json.dumps(exported.describe(ExportForm(model))))
    found = exported.check_description(described)
    assert found == exported.describe(model) and found["has_masks"] is True and found["scale"] == (1333, 800)
    for wrong, told in [
        ({"num_classes": 0}, "num_classes 0 is no whole number"),
        ({"num_classes": True}, "num_classes True is no whole number"),
        ({"max_detections": 1e9}, "max_detections 1000000000.0 is no whole number"),
        ({"has_masks": 1}, "has_masks 1 is neither true nor false"),
        ({"score_threshold": float("nan")}, "score_threshold nan is no number from 0 to 1"),
        ({"label_names": ["a"]}, "1 label_names of 3 classes"),
        ({"label_names": [1, 2, 3]}, "label_names must be texts"),
        ({"scale": [0, 1]}, "scale"),
    ]:
        with pytest.raises(ValueError, match=told):
            exported.check_description(described | wrong)


def test_limits_of_what_is_paired_go_with_a_tolerance_of_ones_own():
    own = resolve(Path("m.onnx"), tolerance=0.5).tolerance
    assert own == Tolerance(0.5, None, TOLERANCES["fp32"].least_paired)


# Other forms


@torch.no_grad()
@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_fused_and_packed_they_find_the_same(name):
    model = lively(
        create_detector("smt_nano", name, 3, width=32, stem_stride=4, **({} if name in DENSE else dict(hidden=16)))
    ).eval()
    model.score_threshold = 0.0
    batch = images(2, 3, *SIZE)
    fused = convattn.fuse(model.double())
    assert fused.fusion_report.left == fused.fusion_report.kept == {}
    for one, told in zip(fused(batch.double()), model(batch.double()), strict=True):
        assert all(relative_error(one[key], told[key]) < 1e-9 for key in ("boxes", "scores"))
    assert convattn.fuse(ExportForm(model)).fusion_report.left == {}
    fused = convattn.fuse(model.float())
    for one, told in zip(convattn.prepack(fused, batch)(batch), fused(batch), strict=True):
        assert all(relative_error(one[key], told[key]) < 1e-4 for key in ("boxes", "scores"))


@pytest.mark.parametrize("name", ["retinanet", "cascade_mask_rcnn"])
def test_norms_of_every_part_are_folded(name):
    model = lively(detector(name, **({} if name == "retinanet" else {"style": "detectron2"}))).eval()
    assert not [part for part in convattn.fuse(model).modules() if isinstance(part, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_their_parts_are_counted_one_by_one(name):
    model = detector(name).eval()
    counted = convattn.count(model, SIZE)
    heads = {"bbox_head"} if name == "retinanet" else {"rpn_head", "roi_head"}
    assert {row.name for row in counted.rows} >= {"neck", *heads}
    assert sum(row.macs for row in counted.rows) == counted.macs > 0
    assert sum(row.parameters for row in counted.rows) == counted.parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_compiled_they_find_the_same(name):
    """Two minutes each."""
    from convattn.deploy.compile import compiled

    model = lively(detector(name)).eval()
    model.score_threshold = 0.0
    batch = images(1, 3, *SIZE)
    fused = convattn.fuse(model)
    (one,), (told,) = compiled(fused, batch)(batch), fused(batch)
    assert all(relative_error(one[key], told[key]) < 1e-4 for key in ("boxes", "scores"))


@pytest.mark.slow
def test_a_benchmark_times_them_in_every_form(tmp_path):
    """Half a minute, for the file."""
    pytest.importorskip("onnxruntime")
    setting = Setting("fp32", 1, SIZE)
    model = of("retinanet")
    for runtime in ("eager", "fused", "prepacked"):
        for call in pytorch_calls(model, runtime, setting).values():
            call()
    path = write_file(model, "onnxruntime", setting, tmp_path)
    assert len(file_call(path, "onnxruntime", setting)()) == 3
