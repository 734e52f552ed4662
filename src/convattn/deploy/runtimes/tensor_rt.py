"""TensorRT engines (`.engine`), built and run on an NVIDIA GPU (extra `tensorrt`).

Unchecked: no engine has been built with this code. Most of its calls were compared with the signatures of TensorRT
11.4's Python bindings, and the tests check the ONNX file that an engine is built from. An engine runs with the version
of TensorRT and the kind of GPU that built it.
"""

import json
import tempfile
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.runtimes import onnx, trailer
from convattn.deploy.runtimes.cast import cast
from convattn.deploy.runtimes.runtime import CannotRunHere, OpenedFile, Precision, Request, UnreadableFile
from convattn.deploy.suffixes import SUFFIXES
from convattn.extras import require

SUFFIX = SUFFIXES["tensor_rt"]
LIBRARIES: tuple[str, ...] = ("onnx", "onnxscript", "tensorrt")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch")

MAX_BATCH = 64  # an engine is built for a range of shapes

form = onnx.form  # the engine is built from an ONNX file
digest, read_metadata, write_metadata = trailer.digest, trailer.read_metadata, trailer.write_metadata


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Build an engine from the ONNX form of `model`. TF32 is off: what is asked for in fp32 is computed in it.

    With a free batch the engine takes 1 to `MAX_BATCH` images and is tuned for the batch of `request`.

    Raises:
        CannotRunHere: without a GPU, before anything is done.
        ValueError: if TensorRT's parser refuses the model.
    """
    trt = _tensorrt(path)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # Types as in the ONNX file; TensorRT 11 knows no other way, 10 has to be told.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "model.onnx")
        write_onnx(model, request, source)
        if not parser.parse_from_file(str(source)):
            raise ValueError(f"TensorRT cannot take this model: {parser.get_error(0).desc()}; choose another format")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for `operators`
    if request.dynamic == "batch":
        batch, *rest = request.images.shape
        profile = builder.create_optimization_profile()
        profile.set_shape("images", (1, *rest), (batch, *rest), (MAX_BATCH, *rest))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError(f"{path}: TensorRT built no engine; its messages are on standard error")
    path.write_bytes(bytes(engine))


def write_onnx(model: nn.Module, request: Request, path: Path) -> None:
    """The ONNX file that the engine is built from: in fp16 weights and operators are, images and outputs are not."""
    onnx.write(cast(model, request.precision), replace(request, precision="fp32"), path)


def open_file(path: Path) -> OpenedFile:
    """The engine on the current GPU; images and outputs are copied to and from it."""
    loaded, one_at_a_time = _Engine(path), threading.Lock()  # its bindings belong to a single run

    def run(images: Tensor) -> list[Tensor]:
        with one_at_a_time:
            outputs = loaded.bind(images.to("cuda"))
            loaded.start()
            return [output.float().cpu() for output in outputs]  # waits for the stream

    return run


def operators(path: Path) -> dict[str, int]:
    """The layers of the engine by TensorRT's types, after it has joined what it joins."""
    loaded = _Engine(path)
    inspector = loaded.engine.create_engine_inspector()
    text = inspector.get_engine_information(loaded.trt.LayerInformationFormat.JSON)
    layers = json.loads(text)["Layers"]
    return dict(sorted(Counter(layer["LayerType"] for layer in layers).items()))


class _Engine:
    """An engine in memory, and its bindings to tensors."""

    def __init__(self, path: Path):
        self.trt = _tensorrt(path)
        self.runtime = self.trt.Runtime(self.trt.Logger(self.trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(trailer.without_trailer(path.read_bytes()))
        if self.engine is None:
            raise UnreadableFile(
                f"{path}: is no engine of this version of TensorRT ({self.trt.__version__}) and this GPU"
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        is_output = self.trt.TensorIOMode.OUTPUT
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) == is_output]

    def bind(self, images: Tensor) -> list[Tensor]:
        """Tensors on the GPU for the outputs of `images`, which has to live until the run has ended."""
        self.images = images.contiguous()
        if not self.context.set_input_shape("images", tuple(images.shape)):
            raise ValueError(f"images {tuple(images.shape)} are outside the shapes that the engine was built for")
        shapes = [tuple(self.context.get_tensor_shape(name)) for name in self.outputs]
        tensors = [torch.empty(shape, device="cuda") for shape in shapes]
        for name, tensor in zip(("images", *self.outputs), (self.images, *tensors), strict=True):
            self.context.set_tensor_address(name, tensor.data_ptr())
        return tensors

    def start(self) -> None:
        """One run on PyTorch's current stream."""
        if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the engine; its messages are on standard error")


def _tensorrt(path: Path) -> Any:
    trt = require("tensorrt", "tensorrt")
    if not torch.cuda.is_available():
        raise CannotRunHere(f"{path}: TensorRT builds and runs engines on an NVIDIA GPU; none is visible here")
    return trt
