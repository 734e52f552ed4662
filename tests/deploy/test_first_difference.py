"""The first operation whose output differs is named: faults are planted in the middle of networks and found."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import convattn
from convattn.deploy.export_report import ExportError
from convattn.deploy.first_difference import NotFound, first_difference
from convattn.deploy.fuse import fuse
from convattn.deploy.gate import Tolerance
from convattn.deploy.runtimes import onnx, openvino, torch_export
from convattn.deploy.runtimes.runtime import Request
from toys import lively, shallow_toy


class Branched(nn.Module):
    """Two branches beside a shortcut, a chunk into a tuple, and two outputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 1))
        self.right = nn.Sequential(nn.Conv2d(8, 16, 1), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(8, 4, 3, stride=2)

    def forward(self, x):
        x = self.stem(x)
        a, b = self.right(x).chunk(2, dim=1)
        y = x + self.left(x) + a * b.sigmoid()
        return [y, self.last(y)]


def with_wrong_weight(runtime, name, factor=1.5):
    """A runtime that multiplies one weight as it writes, as a faulty converter might."""
    honest = runtime.write

    def write(model, request, path):
        model = copy.deepcopy(model)
        weight = dict(model.named_parameters()).get(name)  # not there where the cut lies before it
        if weight is not None:
            weight.data.mul_(factor)
        honest(model, request, path)

    return SimpleNamespace(SUFFIX=runtime.SUFFIX, form=runtime.form, write=write, open_file=runtime.open_file)


def with_tanh_gelu(layer):
    """A runtime that computes the GELU of one layer in its tanh form."""

    def write(model, request, path):
        model = copy.deepcopy(model)
        for node in model.graph.nodes:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            if node.target is torch.ops.aten.gelu.default and stack[-1][0] == layer:
                node.kwargs = {"approximate": "tanh"}
        model.recompile()
        torch_export.write(model, request, path)

    return SimpleNamespace(SUFFIX=".pt2", form=torch_export.form, write=write, open_file=torch_export.open_file)


def search(model, runtime, folder, *, dynamic="none", size=(16, 16), fused=None, tolerance=1e-4, steps=None):
    images = torch.randn(1 if dynamic == "none" else 2, 3, *size)
    return first_difference(
        model,
        fuse(model) if fused is None else fused,
        runtime,
        Request(images, dynamic),
        images,
        Tolerance(tolerance),
        folder=folder,
        on_step=(steps if steps is not None else []).append,
    )


@pytest.mark.parametrize(
    ("layer", "before"),
    [("stem", None), ("right.0", "left.2"), ("left.0", "stem"), ("left.2", "left.1"), ("last", "")],
)
def test_a_wrong_weight_is_found_on_every_branch(tmp_path, layer, before):
    found = search(Branched().eval(), with_wrong_weight(torch_export, f"{layer}.weight"), tmp_path)
    assert (found.where, found.first.layer, found.first.operation) == ("file", layer, "aten.conv2d.default")
    assert found.first.relative_error > 1e-2
    if layer == "stem":
        assert found.before is None
    else:
        assert found.before.relative_error < 1e-6
    assert list(tmp_path.iterdir()) == []


def test_a_gelu_in_its_tanh_form_is_found(tmp_path):
    found = search(Branched().eval(), with_tanh_gelu("left.1"), tmp_path, tolerance=1e-5)
    assert (found.first.layer, found.first.operation) == ("left.1", "aten.gelu.default")
    assert 1e-5 < found.first.relative_error < 1e-2  # what the two forms differ by
    assert "the first layer whose output differs is left.1 (aten.gelu.default): relative error" in str(found)


@pytest.mark.parametrize("dynamic", ["batch", "all"])
def test_free_sizes_are_cut_too(tmp_path, dynamic):
    steps = []
    runtime = with_wrong_weight(torch_export, "left.2.weight")
    found = search(Branched().eval(), runtime, tmp_path, dynamic=dynamic, steps=steps)
    assert found.first.layer == "left.2"
    assert len(steps) == 1 + found.probes
    assert steps[-1].startswith(f"looking for the first difference, {found.probes} of about")


@pytest.mark.parametrize(("runtime", "package"), [(onnx, "onnxruntime"), (openvino, "openvino")])
def test_a_layer_is_found_in_other_runtimes(tmp_path, runtime, package):
    pytest.importorskip(package, reason="needs the extra deploy")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3)).eval()
    found = search(network, with_wrong_weight(runtime, "2.weight"), tmp_path, dynamic="batch")
    assert (found.first.layer, found.first.operation) == ("2", "aten.conv2d.default")
    assert found.before.layer == "1"


class Product(nn.Module):
    """A linear layer over channels whose graph form is a convolution, right or wrong."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.linear, self.factor = nn.Linear(4, 4), factor

    def forward(self, x):
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)

    def graph_form(self):
        conv = nn.Conv2d(4, 4, 1)
        conv.weight.data, conv.bias.data = self.linear.weight.data[..., None, None] * self.factor, self.linear.bias.data
        return nn.Sequential(conv)


def test_the_network_that_is_cut_is_in_the_form_that_is_written(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Product()).eval()
    found = search(network, with_wrong_weight(onnx, "2.0.weight"), tmp_path)
    assert (found.where, found.first.layer, found.first.operation) == ("file", "2.0", "aten.conv2d.default")


def test_a_wrong_graph_form_is_told_from_a_wrong_file(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Product(2.0), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    found = search(network, onnx, tmp_path)
    assert (found.where, found.first.layer, found.before.layer, found.probes) == ("inference form", "2", "1", 0)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("smt_nano", "stages.2.blocks.0.token_mixer.value"),
        pytest.param("cotnet_nano", "layer3.0.branch.3.weights", marks=pytest.mark.slow),
        pytest.param("groupmixformer_nano", None, marks=pytest.mark.slow),
        pytest.param("nextvit_nano", None, marks=pytest.mark.slow),
        pytest.param("resnet18_das", None, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_layer_of_a_family_is_named_by_export(tmp_path, monkeypatch, name, layer):
    model = lively(shallow_toy(name))
    if layer is None:  # one in the middle
        maps = [path for path, module in fuse(model).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        layer = maps[len(maps) // 2]
    monkeypatch.setattr(torch_export, "write", with_wrong_weight(torch_export, f"{layer}.weight", 2.0).write)
    with pytest.raises(ExportError, match=r"the first layer whose output differs is") as caught:
        convattn.export(model, tmp_path / "model.pt2", input_size=(48, 40), dynamic="none")
    found = caught.value.report.first_difference
    assert found.first.layer == layer
    assert found.before.relative_error < 1e-5
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_inference_form_is_told_from_a_wrong_file(tmp_path):
    model = lively(shallow_toy("smt_nano"))
    fused = fuse(model)
    weights = {name: weight for name, weight in fused.named_parameters() if weight.ndim > 1}
    wrong = next(name for name in weights if name.startswith("stages.1.blocks.0."))
    weights[wrong].data.mul_(2)
    found = search(model, torch_export, tmp_path, fused=fused)
    assert found.where == "inference form"
    assert found.first.layer.startswith("stages.1.blocks.0")
    assert found.probes == 0
    assert "fusing changed the output of stages.1.blocks.0" in str(found)


def test_what_no_cut_shows_and_what_cannot_be_cut_is_said(tmp_path):
    with pytest.raises(NotFound, match="cut after its last operation the network agrees, only the whole file does not"):
        search(Branched().eval(), torch_export, tmp_path)

    def write(model, request, path):
        raise OSError("no such kernel")

    broken = SimpleNamespace(SUFFIX=".pt2", form=torch_export.form, write=write, open_file=torch_export.open_file)
    with pytest.raises(NotFound, match="dynamic batch: no such kernel; dynamic none: no such kernel"):
        search(Branched().eval(), broken, tmp_path, dynamic="batch")
