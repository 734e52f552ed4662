"""Core ML and ExecuTorch: what converts, and what a file says of itself; the numbers of ExecuTorch only."""

import sys

import pytest
import torch
from torch import nn

from convattn.deploy.fuse import fuse
from convattn.deploy.runtimes import core_ml, executorch
from convattn.deploy.runtimes.runtime import CannotRunHere, Request, UnreadableFile
from toys import build_toy, relative_error, toy_images

FAMILIES = ["smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das"]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about one another


class Digamma(nn.Module):
    def forward(self, x):
        return x.digamma()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(1, 3, 9, 8)


def test_an_executorch_program_gives_the_models_numbers(tmp_path, images):
    pytest.importorskip("executorch", reason="needs the extra mobile")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    path = tmp_path / "small.pte"
    executorch.write(model, Request(images), path)
    found = executorch.operators(path)
    assert found["xnnpack.Conv2d"] == 1
    digest = executorch.digest(path)
    assert executorch.read_metadata(path) is None
    for text in ("first", "zweitens"):
        executorch.write_metadata(path, text)
        assert executorch.read_metadata(path) == text
    assert executorch.digest(path) == digest
    assert relative_error(executorch.open_file(path)(images)[0], model(images)) < 1e-6
    path.write_bytes(path.read_bytes().replace(b"forward", b"forwarD"))
    assert executorch.digest(path) != digest


@pytest.mark.parametrize("content", [b"", b"nothing"])
def test_what_is_no_executorch_program_is_named(tmp_path, content):
    pytest.importorskip("executorch", reason="needs the extra mobile")
    path = tmp_path / "model.pte"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"model\.pte: is no ExecuTorch program, or damaged or cut short"):
        executorch.open_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_runs_in_executorch(tmp_path, name):
    pytest.importorskip("executorch", reason="needs the extra mobile")
    model = fuse(build_toy(name))
    path = tmp_path / "model.pte"
    executorch.write(model, Request(toy_images(name, batch=1)), path)
    images = toy_images(name, batch=1)
    assert relative_error(executorch.open_file(path)(images)[0], model(images)) < 1e-5
    found = executorch.operators(path)
    assert sum(count for operator, count in found.items() if operator.startswith("xnnpack.")) > 0.6 * sum(
        found.values()
    )


@pytest.mark.parametrize(("precision", "dynamic"), [("fp32", "none"), ("fp16", "batch")])
def test_a_core_ml_package_describes_itself(tmp_path, images, precision, dynamic):
    pytest.importorskip("coremltools", reason="needs the extra mobile")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()
    path = tmp_path / "small.mlpackage"
    core_ml.write(model, Request(images.expand(2, -1, -1, -1), dynamic, precision), path)
    found = core_ml.operators(path)
    assert found["conv"] == 1
    assert ("cast" in found) == (precision == "fp16")
    described = core_ml._read(path).description
    (given,) = described.input
    assert given.name == "images"
    assert [output.name for output in described.output] == ["output"]
    ranges = given.type.multiArrayType.shapeRange.sizeRanges
    assert [(r.lowerBound, r.upperBound) for r in ranges][:1] == (
        [(1, core_ml.MAX_BATCH)] if dynamic == "batch" else []
    )
    digest = core_ml.digest(path)
    assert core_ml.read_metadata(path) is None
    for text in ("first", "zweitens"):
        core_ml.write_metadata(path, text)
        assert core_ml.read_metadata(path) == text
    assert core_ml.digest(path) == digest
    weights = next(path.rglob("*.bin"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert core_ml.digest(path) != digest


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", ["none", "batch"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_converts_to_core_ml(tmp_path, name, dynamic):
    pytest.importorskip("coremltools", reason="needs the extra mobile")
    path = tmp_path / "model.mlpackage"
    core_ml.write(fuse(build_toy(name, features_only=True)), Request(toy_images(name), dynamic, "fp16"), path)
    levels = core_ml._read(path).description.output
    assert [level.name for level in levels] == [f"level_{index}" for index in range(len(levels))]
    assert core_ml.operators(path)["conv"] > 0


def test_what_core_ml_cannot_express_is_named(tmp_path, images):
    pytest.importorskip("coremltools", reason="needs the extra mobile")
    with pytest.raises(ValueError, match=r"Core ML cannot express this model: .*digamma.*; choose another format"):
        core_ml.write(Digamma(), Request(images), tmp_path / "model.mlpackage")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac runs it")
def test_a_core_ml_package_does_not_run_off_a_mac(tmp_path):
    with pytest.raises(
        CannotRunHere, match="runs on macOS and iOS only; here it was converted, and its numbers are unc"
    ):
        core_ml.open_file(tmp_path / "model.mlpackage")


def test_a_folder_that_is_no_package_is_named(tmp_path):
    pytest.importorskip("coremltools", reason="needs the extra mobile")
    with pytest.raises(UnreadableFile, match="is no Core ML package: No such file"):
        core_ml.operators(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"nothing", "damaged or cut short"), (b"", "program is empty")])
def test_a_package_with_a_damaged_program_is_named(tmp_path, content, message):
    pytest.importorskip("coremltools", reason="needs the extra mobile")
    program = tmp_path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    program.parent.mkdir(parents=True)
    program.write_bytes(content)
    with pytest.raises(UnreadableFile, match=f"is no Core ML package, or .*{message}"):
        core_ml.read_metadata(tmp_path)
