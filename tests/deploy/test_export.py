"""An exported file is kept only when it gives the model's numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

import convattn
from convattn.deploy.export_report import ExportError
from convattn.deploy.export_request import resolve
from convattn.deploy.formats import formats
from convattn.deploy.gate import TOLERANCES
from convattn.deploy.load import load_exported
from convattn.deploy.metadata import read
from convattn.deploy.runtimes import onnx, torch_export
from convattn.deploy.runtimes.runtime import CannotRunHere
from convattn.task import Metric
from tiny_exports import names, tiny, tiny_net
from toys import build_toy, relative_error, shallow_toy


def off_by(monkeypatch, factor: float) -> None:
    """Let every `.pt2` file give numbers that are too large."""
    honest = torch_export.open_file

    def open_file(file):
        run = honest(file)
        return lambda images: [output * factor for output in run(images)]

    monkeypatch.setattr(torch_export, "open_file", open_file)


@pytest.mark.parametrize("dynamic", ["none", "batch", "all"])
@pytest.mark.parametrize(("suffix", "room"), [(".onnx", onnx), (".pt2", torch_export)])
def test_a_file_agrees_at_every_size_it_promises(tmp_path, suffix, room, dynamic):
    check_promises(tiny(norm=True), tmp_path / f"model{suffix}", room, dynamic)


@pytest.mark.slow  # ten seconds; test_next_vit_options.py exports attention at every size by default
@pytest.mark.parametrize(("suffix", "room"), [(".onnx", onnx), (".pt2", torch_export)])
def test_a_network_with_attention_agrees_at_every_size(tmp_path, suffix, room):
    check_promises(shallow_toy("smt_nano"), tmp_path / f"model{suffix}", room, "all")


def check_promises(model, path, room, dynamic):
    """Export a model and compare at what its file leaves free."""
    model.train()
    report = convattn.export(model, path, input_size=(33, 47), dynamic=dynamic)
    assert model.training
    assert report.max_relative_error < 1e-5
    assert report.fused_parts == len(report.fused) > 0
    assert report.file_mib == path.stat().st_size / 2**20
    for kind in ("photographs", "random"):
        checks = [check for check in report.checks if check.images == kind]
        batches = {check.input_shape[0] for check in checks}
        assert batches == ({1} if dynamic == "none" else {1, 2} if kind == "photographs" else {1, 2, 3})
        assert len({check.input_shape[2:] for check in checks}) == (3 if dynamic == "all" else 1)
        assert all(check.agreement == {"same top-1": 1.0} and check.cosine > 0.9999 for check in checks)
    assert names(path.parent) == [path.name]

    images = torch.randn(1 if dynamic == "none" else 2, 3, 33, 47)
    with torch.inference_mode():
        assert relative_error(room.open_file(path)(images)[0], model.eval()(images)) < 1e-5


class Heads(nn.Module):
    """Gives several tensors of images, in what `returns` makes of them."""

    def __init__(self, returns):
        super().__init__()
        self.conv, self.returns = nn.Conv2d(3, 2, 3, stride=2), returns

    def forward(self, images):
        maps = self.conv(images)
        return self.returns(maps, maps.mean((2, 3)))


def as_dict(masks, scores):
    return {"scores": scores, "masks": masks}


@pytest.mark.parametrize(
    ("suffix", "returns"),
    [
        (".onnx", as_dict),
        (".pt2", as_dict),
        (".xml", as_dict),
        (".onnx", lambda *outputs: outputs),
        (".pt2", lambda *outputs: list(outputs)),
    ],
    ids=["dict in onnx", "dict in pt2", "dict in xml", "tuple in onnx", "list in pt2"],
)
def test_a_model_of_several_outputs_comes_back_as_it_was(tmp_path, suffix, returns):
    pytest.importorskip(
        {".onnx": "onnxscript", ".xml": "openvino"}.get(suffix, "torch"), reason="needs the extra deploy"
    )
    model, path = Heads(returns).eval(), tmp_path / f"heads{suffix}"
    report = convattn.export(model, path, input_size=(16, 24), dynamic="batch")
    names = ["scores", "masks"] if returns is as_dict else ["output_0", "output_1"]
    assert [output.name for output in report.checks[0].outputs] == names
    assert report.checks[0].agreement == {}
    loaded, images = load_exported(path), torch.randn(3, 3, 16, 24)
    got, want = loaded(images), model(images)
    assert loaded.task_kind is None
    if returns is as_dict:
        assert list(got) == list(want)
        got, want = got.values(), want.values()
    assert isinstance(got, list) or returns is as_dict
    for one, other in zip(got, want, strict=True):
        assert relative_error(one, other) < 1e-5


def test_the_names_stand_in_the_file_and_what_no_file_can_hold_is_refused(tmp_path):
    onnx_library = pytest.importorskip("onnx", reason="needs the extra onnx")
    convattn.export(Heads(as_dict).eval(), tmp_path / "heads.onnx", input_size=16)
    graph = onnx_library.load(tmp_path / "heads.onnx").graph
    assert [output.name for output in graph.output] == ["scores", "masks"]
    for returns, message in (
        (lambda masks, scores: {"images": masks}, "an output of the model is called 'images'; a file takes texts"),
        (lambda masks, scores: {0: masks}, "an output of the model is called 0; a file takes texts"),
    ):
        with pytest.raises(ValueError, match=message):
            convattn.export(Heads(returns).eval(), tmp_path / "m.onnx", input_size=16)
    assert names(tmp_path) == ["heads.onnx"]


def test_levels_of_a_features_only_model(tmp_path):
    model = shallow_toy("smt_nano", features_only=True, out_indices=(0, 2))
    report = convattn.export(model, tmp_path / "levels.onnx", input_size=(32, 32))
    assert report.max_relative_error < 1e-5
    assert [output.name for output in report.checks[0].outputs] == ["level_0", "level_1"]
    levels = onnx.open_file(tmp_path / "levels.onnx")(torch.randn(2, 3, 32, 32))
    assert [level.shape[1] for level in levels] == [8, 16]


def test_the_file_that_was_proven_is_sealed(tmp_path):
    model = tiny_net()
    report = convattn.export(model, tmp_path / "m.pt2", input_size=(32, 40), dynamic="none")
    metadata = read("torch_export", tmp_path / "m.pt2")
    assert metadata.checksum == report.checksum == torch_export.digest(tmp_path / "m.pt2")
    assert (metadata.input_size, metadata.batch, metadata.model) == ((3, 32, 40), 1, "tiny")
    assert report.versions == metadata.versions
    images = torch.randn(3, 3, 32, 40)  # a file for one image is given three one by one
    with torch.inference_mode():
        assert relative_error(load_exported(tmp_path / "m.pt2")(images), model(images)) < 1e-5


def test_a_file_that_disagrees_is_not_kept_and_the_older_one_survives(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"older")
    off_by(monkeypatch, 1.001)
    with pytest.raises(ExportError, match=r"differs from the eager one by 1.00e-03 \(relative\) on ") as caught:
        convattn.export(tiny(), path, input_size=(32, 32), dynamic="none")
    message = str(caught.value)
    assert "1 x 3 x 32 x 32, more than the tolerance 1e-04; the file was not kept; the first layer" in message
    assert "the first layer whose output differs is 0 (aten.conv2d.default): relative error 1.0e-03" in message
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["model.pt2"]
    report = caught.value.report
    assert not report.kept
    assert report.first_difference.first.layer == "0"
    assert json.loads(report.to_json())["first_difference"]["first"]["operation"] == "aten.conv2d.default"


def test_the_difference_is_told_where_its_place_is_not_found(tmp_path, monkeypatch):
    opened, honest = [], torch_export.open_file

    def open_file(file):
        opened.append(file)
        run = honest(file)
        return (lambda images: [2 * output for output in run(images)]) if len(opened) == 1 else run

    monkeypatch.setattr(torch_export, "open_file", open_file)
    with pytest.raises(
        ExportError, match=r"differs .* by 1.00e\+00 .* not kept; the first .* could not be found \(dyn"
    ):
        convattn.export(tiny(), tmp_path / "m.pt2", input_size=(32, 32), dynamic="none")
    assert names(tmp_path) == []


def test_not_a_number_never_agrees(tmp_path, monkeypatch):
    off_by(monkeypatch, float("nan"))
    with pytest.raises(ExportError, match="differs from the eager one by inf") as caught:
        convattn.export(tiny(), tmp_path / "model.pt2", input_size=(32, 32), dynamic="none")
    assert json.loads(caught.value.report.to_json())["max_relative_error"] is None


def test_a_file_that_does_not_run_at_a_size_it_promises_is_not_kept(tmp_path, monkeypatch):
    honest = torch_export.open_file

    def open_file(file):
        run = honest(file)

        def run_pairs(images):
            if len(images) == 3:
                raise RuntimeError("three is\na crowd")
            return run(images)

        return run_pairs

    monkeypatch.setattr(torch_export, "open_file", open_file)
    with pytest.raises(ExportError, match=r"does not run at input 3 x 3 x 16 x 16: .*three is a crowd.*not kept"):
        convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    assert names(tmp_path) == []


def test_a_tolerance_of_ones_own_takes_the_place_of_the_precisions(tmp_path, monkeypatch):
    off_by(monkeypatch, 1.001)
    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16), dynamic="none", tolerance=0.01)
    assert report.tolerance == 0.01 > report.max_relative_error > TOLERANCES["fp32"].relative_error


def test_the_report_is_json(tmp_path):
    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(32, 32), dynamic="none")
    found = json.loads(report.to_json())
    assert found["format"] == "torch_export"
    assert found["max_relative_error"] == max(check["relative_error"] for check in found["checks"])
    assert found["operators"]["aten.conv2d.default"] == 1
    assert found["files"] == ["m.pt2"]
    assert found["kept"] is True
    assert (found["opset"], found["metric"], found["not_checked"], found["quantisation"]) == (None, None, None, None)


def test_an_onnx_report_has_the_opset(tmp_path):
    report = convattn.export(tiny(), tmp_path / "m.onnx", input_size=(32, 32), dynamic="none")
    assert report.opset == onnx.OPSET
    assert report.operators["Conv"] == 1


@pytest.mark.parametrize(
    ("size", "shape"), [(16, (3, 16, 16)), ((16, 24), (3, 16, 24)), ((3, 16, 24), (3, 16, 24)), ([24], (3, 24, 24))]
)
def test_a_size_is_a_side_two_sides_or_all_three(tmp_path, size, shape):
    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=size, dynamic="none")
    assert report.input_shape == (1, *shape)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.bin", {}, r"no format has the suffix '.bin'; known: .onnx \(onnx\)"),
        ("model.bin", {"format": "caffe"}, "format 'caffe' is unknown; choose one of onnx,"),
        ("model.pt2", {"dynamic": "width"}, "dynamic 'width' is unknown; choose none, batch or all"),
        ("model.pt2", {"precision": "fp8"}, "precision 'fp8' is unknown; choose fp32, bf16, fp16 or int8"),
        ("model.pt2", {"precision": "fp16"}, "torch_export cannot be in fp16, only in fp32"),
        ("model.pt2", {"tolerance": 0}, "tolerance 0 must be above 0"),
        ("model.pt2", {"tolerance": float("nan")}, "tolerance nan must be above 0"),
        ("model.pt2", {"input_size": (2, 32)}, "2 x 32 pixels is too small"),
        (
            "model.pt2",
            {"input_size": (0, 32)},
            r"input_size \(0, 32\) must be a side, \(height, width\) or \(channels, hei",
        ),
        (
            "model.pt2",
            {"calibration": "photos"},
            "calibration has no effect in fp32; leave it out, or choose precision",
        ),
        ("model.pt2", {"metric": len}, "metric and max_drop belong together"),
        ("model.pt2", {"max_drop": 1.0}, "metric and max_drop belong together"),
        ("model.pt2", {"figure": Metric("loss", "Loss")}, "figure loss has no effect without metric, which measures"),
        ("model.pt2", {"photographs": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_bad_requests_are_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        convattn.export(build_toy("smt_nano"), tmp_path / "new" / name, **options)
    assert list(tmp_path.iterdir()) == []


class Forked(nn.Module):
    def forward(self, x):
        return 2 * x if x.sum() > 0 else x


@pytest.mark.parametrize(("name", "package"), [("m.onnx", "onnxscript"), ("m.xml", "openvino"), ("m.pt2", "torch")])
def test_a_model_that_cannot_be_traced_is_refused_in_one_line(tmp_path, name, package):
    pytest.importorskip(package, reason="needs the extra deploy")
    with pytest.raises(
        ValueError, match=rf"{name}: \w+ cannot hold this model: Could not guard on data.*another"
    ) as caught:
        convattn.export(Forked(), tmp_path / name, input_size=(8, 8))
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_what_a_format_cannot_do_is_refused_with_what_can(monkeypatch):
    stiff = SimpleNamespace(SUFFIX=".stiff", PRECISIONS=("fp16", "int8"), DYNAMIC=("none",))
    monkeypatch.setitem(formats(), "stiff", stiff)
    path = Path("model.stiff")
    with pytest.raises(ValueError, match="stiff cannot leave the batch size free; dynamic can be none"):
        resolve(path, precision="fp16", dynamic="batch")
    with pytest.raises(ValueError, match="stiff cannot be in fp32, only in fp16, int8; fp32 can be had in onnx,"):
        resolve(path)
    with pytest.raises(
        ValueError, match="int8 needs images like those to come: --calibration DIR, in Python calibration=DIR"
    ):
        resolve(path, precision="int8")
    found = resolve(path, precision="int8", has_calibration=True)
    assert (found.format, found.dynamic, found.tolerance) == ("stiff", "none", TOLERANCES["int8"])
    assert resolve(Path("m.onnx")).dynamic == "batch"


def test_any_module_of_images_is_exported_when_its_size_is_given(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    report = convattn.export(model, tmp_path / "m.pt2", input_size=(8, 8), dynamic="none")
    assert report.checks[0].input_shape == (1, 3, 8, 8)
    assert report.checks[0].agreement == {}
    with pytest.raises(ValueError, match=r"Sequential does not say what input it expects; give input_size: a side, "):
        convattn.export(model, tmp_path / "n.pt2")


def test_another_precision_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is torch.bfloat16; export takes a float32 model: export\(model.float\(\)"):
        convattn.export(build_toy("smt_nano").bfloat16(), tmp_path / "m.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ValueError, match=r"folder.pt2: is a folder; name a file"):
        convattn.export(build_toy("smt_nano"), tmp_path / "folder.pt2")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_model_with_hooks_is_refused_naming_the_module(tmp_path, register):
    model = tiny()
    getattr(model[2], register)(lambda *args: None)
    with pytest.raises(ValueError, match="2 has a forward hook, which no file can hold; remove it, or make a module"):
        convattn.export(model, tmp_path / "m.pt2", input_size=(16, 16))
    assert names(tmp_path) == []


def test_what_attach_inserts_is_exported_although_a_hook_runs_it(tmp_path):
    model = convattn.attach(tiny(), "se", where=["0"], input_size=(3, 16, 16), init="paper")
    report = convattn.export(model, tmp_path / "m.pt2", input_size=(16, 16), dynamic="none")
    assert report.max_relative_error < 1e-5
    assert report.operators["aten.sigmoid.default"] == 1
    model[0].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="0 has a forward hook"):
        convattn.export(model, tmp_path / "m.pt2", input_size=(16, 16))


def test_a_compiled_model_and_an_exported_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the model is compiled; export the one that it was made from"):
        convattn.export(torch.compile(tiny()), tmp_path / "m.pt2", input_size=(16, 16))
    convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16))
    with pytest.raises(ValueError, match="an exported file runs only"):
        convattn.export(load_exported(tmp_path / "m.pt2"), tmp_path / "n.pt2", input_size=(16, 16))


def test_photographs_of_ones_own_are_compared_too(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (50, 40), (200, 10, 10)).save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"no image")
    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16), dynamic="none", photographs=folder)
    assert report.checks[0].count == 5
    assert report.set_aside == (f"{folder}/broken.png: not an image of a known format",)


def test_a_metric_is_taken_before_and_after(tmp_path):
    seen, images = [], torch.randn(3, 3, 16, 16)

    def metric(model):
        seen.append(model)
        with torch.inference_mode():
            return model(images).sum().item()

    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16), metric=metric, max_drop=0.1)
    assert len(seen) == 2
    assert report.metric.before == pytest.approx(report.metric.after, rel=1e-4)
    assert (report.metric.max_drop, report.metric.metric.greater_is_better) == (0.1, True)


LOSS = Metric("loss", "Mean error", unit="px", greater_is_better=False)


@pytest.mark.parametrize(
    ("figure", "after", "kept"),
    [
        (None, 0.9, True),
        (None, 0.7, False),
        (None, float("nan"), False),
        (LOSS, 0.7, True),
        (LOSS, 1.1, True),
        (LOSS, 1.3, False),
        (LOSS, float("nan"), False),
    ],
)
def test_a_file_that_loses_too_much_of_the_metric_is_not_kept(tmp_path, figure, after, kept):
    values = iter((1.0, after))

    def metric(model):
        return next(values)

    def run():
        return convattn.export(
            tiny(), tmp_path / "m.pt2", input_size=(16, 16), dynamic="none", metric=metric, max_drop=0.2, figure=figure
        )

    if kept:
        assert run().metric.after == after
    else:
        falls = "the metric falls from 1 to .*" if figure is None else "Mean error rises from 1 to .* px"
        with pytest.raises(ExportError, match=rf"m.pt2: {falls}, by more than 0.2; the file was not"):
            run()
    assert names(tmp_path) == (["m.pt2"] if kept else [])


def test_a_file_that_cannot_run_here_is_kept_and_said_to_be_unchecked(tmp_path, monkeypatch):
    def open_file(path):
        raise CannotRunHere("Core ML runs on a Mac")

    monkeypatch.setattr(torch_export, "open_file", open_file)
    report = convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16), metric=lambda model: 1.0, max_drop=0.0)
    assert report.not_checked == "Core ML runs on a Mac"
    assert report.kept and report.checks == () and report.metric is None
    assert names(tmp_path) == ["m.pt2"]
    assert json.loads(report.to_json())["max_relative_error"] is None


def test_steps_are_told(tmp_path):
    steps = []
    convattn.export(tiny(), tmp_path / "m.pt2", input_size=(16, 16), on_step=steps.append)
    assert steps == ["reading images", "fusing", "writing torch_export", "comparing"]


def rows(start: str) -> dict[str, list[str]]:
    """The table of the export page that begins with a column of this name: first cell -> the others."""
    lines = (Path(__file__).parents[2] / "docs" / "export.md").read_text().splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(f"| {start} |")) + 2
    end = next(index for index, line in enumerate(lines) if index > begin and not line.startswith("|"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[begin:end]]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_page_states_what_each_format_can_do():
    table = rows("format")
    for name, runtime in formats().items():
        suffix, precisions, free = table[name][:3]
        assert suffix.startswith(f"`{runtime.SUFFIX}`"), name
        assert precisions.split(", ") == list(runtime.PRECISIONS), name
        assert free.split(", ") == list(runtime.DYNAMIC), name


def test_the_page_states_the_tolerances():
    table = rows("precision")
    assert table.keys() == TOLERANCES.keys()
    for precision, tolerance in TOLERANCES.items():
        error, cosine = table[precision][:2]
        assert float(error) == tolerance.relative_error
        assert (None if cosine == "–" else float(cosine)) == tolerance.least_cosine
