"""Core ML (`.mlpackage`, an ML program for iOS 16, macOS 13 and later), run by macOS (extra `mobile`).

A package is converted anywhere and runs on a Mac only. Its numbers have never been compared with PyTorch's here: no
machine of this project is a Mac, and coremltools has no interpreter of its own. What is checked is that the conversion
goes through, with the shapes of the outputs.
"""

import hashlib
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from convattn.deploy.dynamic import Dynamic
from convattn.deploy.graph_form import graph_form
from convattn.deploy.muted import muted
from convattn.deploy.runtimes.decompositions import decompositions
from convattn.deploy.runtimes.low_rank import LowRank
from convattn.deploy.runtimes.runtime import (
    CannotRunHere,
    OpenedFile,
    Precision,
    Request,
    UnreadableFile,
    names_of_outputs,
)
from convattn.deploy.suffixes import SUFFIXES
from convattn.extras import require

SUFFIX = SUFFIXES["core_ml"]
LIBRARIES: tuple[str, ...] = ("coremltools",)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch")

MAX_BATCH = 64  # Core ML wants a limit

_MOST_DIMENSIONS = 5  # of a tensor in Core ML
_KEY = "convattn"

form = graph_form


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Write `model` as an ML program with input `images`, outputs as `output_names` says, all float32.

    In fp16 weights and arithmetic are half precision, which is what Apple's neural engine takes. With a free batch the
    package takes 1 to `MAX_BATCH` images.

    Raises:
        ValueError: if Core ML has no equivalent of an operator, or not with as many dimensions.
    """
    converter = _coremltools()
    model = form(model).to(memory_format=torch.contiguous_format)
    names = names_of_outputs(model, request.images)
    free = ({0: Dim("batch", min=1, max=MAX_BATCH)},) if request.dynamic == "batch" else None
    shape = tuple(request.images.shape)
    batch = converter.RangeDim(1, MAX_BATCH, shape[0]) if request.dynamic == "batch" else shape[0]
    precision = converter.precision.FLOAT16 if request.precision == "fp16" else converter.precision.FLOAT32
    single = torch.empty(0).numpy().dtype
    with muted():
        program = torch.export.export(model, (request.images,), dynamic_shapes=free)
        try:
            program = torch.export.export(
                LowRank(program.run_decompositions(decompositions()), _MOST_DIMENSIONS),
                (request.images,),
                dynamic_shapes=free,
            ).run_decompositions(decompositions())
            package = converter.convert(
                program,
                convert_to="mlprogram",
                inputs=[converter.TensorType("images", shape=(batch, *shape[1:]), dtype=single)],
                outputs=[converter.TensorType(name, dtype=single) for name in names],
                minimum_deployment_target=converter.target.iOS16,
                compute_precision=precision,
                skip_model_load=True,
            )
        except (NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"Core ML cannot express this model: {reason}; choose another format") from error
        package.save(str(path))


def open_file(path: Path) -> OpenedFile:
    """The package in Core ML, on a Mac; unchecked, as no machine of this project is one."""
    if sys.platform != "darwin":
        raise CannotRunHere(f"{path} runs on macOS and iOS only; here it was converted, and its numbers are unchecked")
    package = _coremltools().models.MLModel(str(path))
    names = [output.name for output in package.get_spec().description.output]
    one_at_a_time = threading.Lock()  # Apple: an `MLModel` is used by one thread at a time

    def run(images: Tensor) -> list[Tensor]:
        with one_at_a_time:
            outputs = package.predict({"images": images.numpy()})
        return [torch.from_numpy(outputs[name]).float() for name in names]

    return run


def operators(path: Path) -> dict[str, int]:
    """The operators of the program, constants left out."""
    functions = _read(path).mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    types = (operation.type for block in blocks for operation in block.operations)
    return dict(sorted(Counter(name for name in types if name != "const").items()))


def write_metadata(path: Path, text: str) -> None:
    """Put `text` under `convattn` among what a package says of itself."""
    spec = _read(path)
    spec.description.metadata.userDefined[_KEY] = text
    _spec_file(path).write_bytes(spec.SerializeToString())


def read_metadata(path: Path) -> str | None:
    """What stands under `convattn`."""
    return _read(path).description.metadata.userDefined.get(_KEY)


def digest(path: Path) -> str:
    """SHA-256 of the program without its metadata, and of the weights."""
    spec = _read(path)
    spec.description.ClearField("metadata")
    total = hashlib.sha256(spec.SerializeToString(deterministic=True))
    for weights in sorted(path.rglob("*.bin")):
        total.update(weights.read_bytes())
    return total.hexdigest()


def _spec_file(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "model.mlmodel"


def _read(path: Path) -> Any:
    _coremltools()
    spec = require("coremltools.proto.Model_pb2", "mobile").Model()
    try:
        spec.ParseFromString(_spec_file(path).read_bytes())
    except OSError as error:
        raise UnreadableFile(f"{path}: is no Core ML package: {error.strerror} ({error.filename})") from None
    except Exception as error:  # protobuf's own, in its C++ form
        raise UnreadableFile(f"{path}: is no Core ML package, or damaged or cut short ({error})") from None
    if not spec.specificationVersion:  # an empty file is an empty message
        raise UnreadableFile(f"{path}: is no Core ML package, or its program is empty")
    return spec


def _coremltools() -> Any:
    with muted():
        return require("coremltools", "mobile")
