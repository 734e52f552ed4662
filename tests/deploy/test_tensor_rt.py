"""TensorRT: the ONNX file that an engine is built from, and the guards. No engine is built: that takes a GPU."""

import sys
from types import SimpleNamespace

import pytest
import torch

from convattn.deploy.fuse import fuse
from convattn.deploy.runtimes import tensor_rt
from convattn.deploy.runtimes.runtime import CannotRunHere, Request
from convattn.extras import MissingExtra
from toys import build_toy, relative_error, toy_images

# Those of the operators that TensorRT's ONNX parser lists as supported (docs/operators.md of onnx-tensorrt, release 10)
# which such models can hold; written down here, not asked of the parser.
SUPPORTED = """
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos
    Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range Reciprocal
    ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Round Shape Sigmoid Sign Sin Slice Softmax
    Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
"""
MOST_DIMENSIONS = 8  # of a tensor in TensorRT

FAMILIES = ["smt_nano", "groupmixformer_nano", "nextvit_nano", "cotnet_nano", "resnet18_das"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_onnx_file_is_one_that_tensorrt_takes(tmp_path, name, precision):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    path = tmp_path / "model.onnx"
    model = fuse(build_toy(name))
    tensor_rt.write_onnx(model, Request(toy_images(name), "batch", precision), path)
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.shape_inference.infer_shapes(onnx.load(path))
    assert {node.op_type for node in proto.graph.node} <= set(SUPPORTED.split())
    shaped = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    assert max(len(value.type.tensor_type.shape.dim) for value in shaped) <= MOST_DIMENSIONS
    halves = {weight.data_type == onnx.TensorProto.FLOAT16 for weight in proto.graph.initializer if weight.dims}
    assert (True in halves) == (precision == "fp16")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = toy_images(name)
    (got,) = session.run(None, {"images": images.numpy()})
    assert relative_error(torch.from_numpy(got), model(images)) < (1e-5 if precision == "fp32" else 3e-2)


@pytest.mark.parametrize("use", ["write", "open_file", "operators"])
def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch, use):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtra, match=r'tensorrt is not installed; run: pip install "convattn\[tensorrt\]"'):
        _use(use, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", ["write", "open_file", "operators"])
def test_with_a_fake_package_and_no_gpu_nothing_is_done(tmp_path, monkeypatch, use):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())  # any use of it would be an AttributeError
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CannotRunHere, match="TensorRT builds and runs engines on an NVIDIA GPU; none is visible here"):
        _use(use, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_an_engine_says_of_itself_stands_behind_it(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"any bytes")
    digest = tensor_rt.digest(path)
    assert tensor_rt.read_metadata(path) is None
    for text in ("first", "zweitens"):
        tensor_rt.write_metadata(path, text)
        assert tensor_rt.read_metadata(path) == text
    assert tensor_rt.digest(path) == digest
    assert path.read_bytes().startswith(b"any bytes")
    path.write_bytes(b"An" + path.read_bytes()[2:])
    assert tensor_rt.digest(path) != digest


def _use(use, tmp_path):
    path = tmp_path / "model.engine"
    if use == "write":
        tensor_rt.write(torch.nn.ReLU(), Request(torch.randn(1, 3, 4, 4)), path)
    else:
        getattr(tensor_rt, use)(path)
