"""ONNX, run by ONNX Runtime (extra `onnx`)."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.deploy.dynamic import Dynamic, dynamic_shapes
from convattn.deploy.graph_form import graph_form
from convattn.deploy.muted import muted
from convattn.deploy.runtimes.runtime import OpenedFile, Precision, Request, UnreadableFile, names_of_outputs
from convattn.deploy.suffixes import SUFFIXES
from convattn.extras import require

SUFFIX = SUFFIXES["onnx"]
LIBRARIES: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32",)
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch", "all")

_KEY = "convattn"

OPSET = 20  # the first with GELU as one operator

_LARGEST = 2**31  # bytes; a message of protobuf has no more

form = graph_form


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Write `model` as one ONNX file of opset 20, input `images`, outputs as `output_names` says"""
    for module in ("onnx", "onnxscript"):
        require(module, "onnx")
    model = form(model)
    names = names_of_outputs(model, request.images)
    with muted():
        torch.onnx.export(
            model,
            (request.images,),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(names),
            dynamic_shapes=dynamic_shapes(request.dynamic),
            external_data=False,
            verbose=False,
        )


def open_file(path: Path) -> OpenedFile:
    """An ONNX Runtime session on the CPU, with as many threads as PyTorch uses.

    Raises:
        UnreadableFile: if the file is missing, damaged, takes more than images, or needs a newer ONNX Runtime.
    """
    runtime = require("onnxruntime", "onnx")
    _check_external(path, _proto(path))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen kinds without a common one
        raise UnreadableFile(f"{path}: ONNX Runtime cannot open it ({' '.join(str(error).split())})") from None
    names = [value.name for value in session.get_inputs()]
    if len(names) != 1:
        raise UnreadableFile(f"{path}: has the inputs {', '.join(names) or 'none'}; a model of images has one")

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {names[0]: images.numpy()})]

    return run


def operators(path: Path) -> dict[str, int]:
    """The operators of the graph and of the functions in it."""
    proto = _proto(path)
    graphs = [proto.graph.node, *(function.node for function in proto.functions)]
    return dict(sorted(Counter(node.op_type for nodes in graphs for node in nodes).items()))


def write_metadata(path: Path, text: str) -> None:
    """Put `text` under `convattn` among the model's own metadata."""
    proto = _proto(path)
    kept = [entry for entry in proto.metadata_props if entry.key != _KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=_KEY, value=text)
    path.write_bytes(proto.SerializeToString())


def read_metadata(path: Path) -> str | None:
    """What stands under `convattn`."""
    return next((entry.value for entry in _proto(path).metadata_props if entry.key == _KEY), None)


def digest(path: Path) -> str:
    """SHA-256 of the model without its metadata."""
    proto = _proto(path)
    del proto.metadata_props[:]
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def _proto(path: Path) -> Any:
    """The file as ONNX's `ModelProto`. Weights in other files, which this package does not write, are not read."""
    onnx = require("onnx", "onnx")
    if path.is_file() and path.stat().st_size >= _LARGEST:
        raise UnreadableFile(f"{path}: is no ONNX file: it has more than {_LARGEST:,} bytes")
    try:
        proto = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise UnreadableFile(f"{path}: no such file") from None
    except Exception as error:  # protobuf's own, in its C++ form
        raise UnreadableFile(f"{path}: is no ONNX file, or damaged or cut short ({error})") from None
    if not proto.ir_version:  # an empty file is an empty message
        raise UnreadableFile(f"{path}: is no ONNX file, or empty")
    return proto


def _check_external(path: Path, proto: Any) -> None:
    """Refuse weights in other files, unless those lie beside this one, as whole as it says."""
    for tensor in _tensors(proto):
        if not tensor.external_data:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        place = said.get("location", "")
        weights = (path.parent / place).resolve()
        if not place or not weights.is_relative_to(path.parent.resolve()) or not weights.is_file():
            raise UnreadableFile(f"{path}: takes weights from {place!r}, which is no file beside it; export it again")
        numbers = said.get("offset", "0"), said.get("length", "0")
        if not all(number.isdecimal() for number in numbers) or sum(map(int, numbers)) > weights.stat().st_size:
            raise UnreadableFile(f"{path}: takes more from {place!r} than that holds; copy both files again")


def _tensors(message: Any) -> Iterator[Any]:
    """The tensors anywhere in a message."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                if field.message_type.name == "TensorProto":
                    yield part
                yield from _tensors(part)
