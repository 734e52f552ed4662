"""OpenVINO's own files (`.xml` beside a `.bin` of weights), run by its CPU plug-in (extra `deploy`)."""

import errno
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.fx.experimental import _config as tracing

from convattn.deploy.dynamic import Dynamic, dynamic_shapes, free_axes
from convattn.deploy.graph_form import graph_form
from convattn.deploy.muted import muted
from convattn.deploy.nncf_form import WEIGHTED
from convattn.deploy.quantize import QuantisedLayer, quantise
from convattn.deploy.runtimes.openvino_operators import extensions
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
from convattn.walk import exchange

SUFFIX = SUFFIXES["openvino"]
LIBRARIES: tuple[str, ...] = ("openvino", "nncf")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
DYNAMIC: tuple[Dynamic, ...] = ("none", "batch", "all")

_LONGEST = 2**26  # bytes of XML; the graphs of the largest networks have a few million

_OURS = "convattn"  # the entry of the model's rt_info that holds all of ours


def form(model: nn.Module) -> nn.Module:
    """The graph form with layer norms in elementwise steps."""
    return exchange(graph_form(model), _as_planar_norm)


def write(model: nn.Module, request: Request, path: Path) -> None:
    """Write `model` as `path` and the weights beside it, input `images`, outputs as `output_names` says

    fp32 and bf16 files differ in a note alone: in bf16 it is the plug-in that converts, when the file is opened. fp16
    halves the weights on disk, the arithmetic stays float32. int8 quantises as `convattn.deploy.quantize` says.
    """
    openvino = require("openvino", "deploy")
    decoders = require("openvino.frontend.pytorch.fx_decoder", "deploy")
    if request.precision == "int8" and not request.calibration:
        raise ValueError("int8 without calibration images; give some hundred of those to come, preprocessed")
    written, shapes = form(model), dynamic_shapes(request.dynamic)
    names = names_of_outputs(written, request.images)
    # A map that is one position wide where it is traced, or a single key, would else count as always one: the file
    # is then wrong at other sizes. PyTorch's exporter to ONNX traces in the same way.
    with muted(), tracing.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(written, (request.images,), dynamic_shapes=shapes)
        decoder = decoders.TorchFXPythonDecoder.from_exported_program(program)
        graph = openvino.convert_model(decoder, extension=extensions())
    _name_layers(graph, decoder.pt_module.graph)
    graph.input(0).get_tensor().set_names({"images"})
    for name, output in zip(names, graph.outputs, strict=True):
        output.get_tensor().set_names({name})
    batch, channels, height, width = request.images.shape
    free = free_axes(request.dynamic)
    graph.reshape([-1 if axis in free else size for axis, size in enumerate((batch, channels, height, width))])
    if request.precision == "int8":
        graph, layers = quantise(graph, request.calibration, in_float32=request.in_float32, known=request.quantised)
        graph.set_rt_info(json.dumps([vars(layer) for layer in layers]), [_OURS, "quantisation"])
    graph.set_rt_info(request.precision, [_OURS, "precision"])
    try:
        openvino.save_model(graph, path, compress_to_fp16=request.precision == "fp16")
    except RuntimeError as error:  # a full disk is an error of its streams
        raise OSError(errno.EIO, f"OpenVINO cannot write there ({error})", str(path)) from None


def _name_layers(graph: Any, traced: torch.fx.Graph) -> None:
    """Name the layers with weights after the modules that compute them, numbered where one does so several times."""
    stacks = {node.name: node.meta.get("nn_module_stack") for node in traced.nodes}
    modules = {name: next(reversed(stack.values()))[0] for name, stack in stacks.items() if stack}
    used: Counter[str] = Counter()
    for node in graph.get_ordered_ops():
        module = modules.get(node.get_friendly_name().partition("/")[0])
        if node.get_type_name() in WEIGHTED and module:
            used[module] += 1
            node.set_friendly_name(module if used[module] == 1 else f"{module} ({used[module]})")


class PlanarNorm(nn.Module):
    """The layer norm of a map over its channels, in elementwise steps; (B, C, H, W) -> (B, C, H, W).

    OpenVINO runs those on maps as they lie. Its own operator takes the last dimension alone, between two
    transpositions, with which SMT takes an eighth longer.
    """

    def __init__(self, norm: LayerNorm2d):
        super().__init__()
        self.eps = norm.eps
        affine = None if norm.weight is None else norm.weight[:, None, None]
        self.weight, self.bias = affine, None if norm.bias is None else norm.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt()
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


def _as_planar_norm(name: str, module: nn.Module) -> nn.Module | None:
    return PlanarNorm(module) if type(module).forward is LayerNorm2d.forward else None


def open_file(path: Path) -> OpenedFile:
    """The model on the CPU in the precision it was written in, with as many threads as PyTorch uses.

    Several threads may call it at once: each run has an infer request to itself.

    Raises:
        CannotRunHere: for a bf16 file on a processor without bf16.
        UnreadableFile: if it is missing or damaged, or the weights beside it are missing or shorter than it says.
    """
    openvino, compiled = require("openvino", "deploy"), _compiled(path)
    idle: list[Any] = []  # requests of runs that have ended; one that two threads shared would mix their images
    expected = compiled.input(0).partial_shape

    def run(images: Tensor) -> list[Tensor]:
        if not expected.compatible(openvino.PartialShape(list(images.shape))):
            raise ValueError(f"images of shape {tuple(images.shape)} given; the file takes {expected}")
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        outputs = request.infer([images.contiguous().numpy()], share_inputs=True)  # copies of what it has written
        idle.append(request)
        return [torch.from_numpy(outputs[index]) for index in range(len(outputs))]

    return run


def operators(path: Path) -> dict[str, int]:
    """The operators of the graph, without constants."""
    kinds = (layer.get("type", "") for layer in _tree(path).iter("layer"))
    return dict(sorted(Counter(kind for kind in kinds if kind not in ("Const", "Parameter", "Result")).items()))


def quantisation_report(path: Path) -> tuple[QuantisedLayer, ...]:
    """The layers of an int8 file in order, with what each one's quantisation costs; empty for other precisions."""
    text = _ours(_tree(path), "quantisation")
    return tuple(QuantisedLayer(**row) for row in json.loads(text)) if text else ()


def write_metadata(path: Path, text: str) -> None:
    """Put `text` into the entry `convattn` of the model's information."""
    tree = _tree(path)
    _drop_metadata(tree)
    ElementTree.SubElement(_entry(tree), "metadata", value=text)
    path.write_bytes(ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True))


def read_metadata(path: Path) -> str | None:
    """What stands in the entry `convattn` of the model's information."""
    return _ours(_tree(path), "metadata")


def digest(path: Path) -> str:
    """SHA-256 of the graph without its metadata, and of the weights."""
    tree = _tree(path)
    _drop_metadata(tree)
    total = hashlib.sha256(ElementTree.tostring(tree))
    needed, size = _check_weights(path, tree), path.with_suffix(".bin").stat().st_size
    if size > needed + (1 << 20):  # a file without an end, say
        raise UnreadableFile(f"{path}: its weights have {size} bytes where {needed} are needed; copy both files again")
    with open(path.with_suffix(".bin"), "rb") as weights:
        while block := weights.read(1 << 24):
            total.update(block)
    return total.hexdigest()


def _compiled(path: Path) -> Any:
    openvino = require("openvino", "deploy")
    tree = _tree(path)
    _check_weights(path, tree)
    precision = _ours(tree, "precision")
    hint = openvino.Type.bf16 if precision == "bf16" else openvino.Type.f32  # unset, the plug-in picks bf16 by itself
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise CannotRunHere(f"{path}: is to run in bf16, which this processor has not; export it as fp32")
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", options)
    except RuntimeError as error:
        raise UnreadableFile(f"{path}: OpenVINO cannot open it ({' '.join(str(error).split())[:200]})") from None
    if len(compiled.inputs) != 1:
        raise UnreadableFile(f"{path}: has {len(compiled.inputs)} inputs; a model of images has one")
    return compiled


def _tree(path: Path) -> Element:
    try:
        if path.stat().st_size > _LONGEST:
            raise UnreadableFile(f"{path}: is no OpenVINO file: it has more than {_LONGEST:,} bytes")
        text = path.read_bytes()
        if b"\0" in text or b"<!" in text.replace(b"<!--", b""):  # entities grow as they are read; OpenVINO has none
            raise UnreadableFile(f"{path}: is no OpenVINO file: it declares a document type, or is no UTF-8")
        tree = ElementTree.fromstring(text)
        _check_depth(path, tree)
    except FileNotFoundError:
        raise UnreadableFile(f"{path}: no such file") from None
    except (ElementTree.ParseError, LookupError) as error:  # the second: of an encoding that does not exist
        raise UnreadableFile(f"{path}: is no OpenVINO file, or damaged or cut short ({error})") from None
    if tree.tag != "net" or tree.find("layers") is None:
        raise UnreadableFile(f"{path}: is no OpenVINO file; its root is <{tree.tag}>, not <net>")
    return tree


def _check_depth(path: Path, tree: Element) -> None:
    """Refuse what Python cannot walk; graphs are lists of layers, a dozen levels deep with what belongs to each."""
    level, depth = [tree], 0
    while level := [child for element in level for child in element]:
        depth += 1
        if depth > 100:
            raise UnreadableFile(f"{path}: is no OpenVINO file: its elements lie in one another more than 100 times")


def _check_weights(path: Path, tree: Element) -> int:
    """What the graph reads must be there: the library itself says of a short file only that reading failed.

    Returns:
        How many bytes it reads.
    """
    weights = path.with_suffix(".bin")
    constants = [data for data in tree.iter("data") if data.get("offset") is not None]
    numbers = [(data.get("offset", "0"), data.get("size", "0")) for data in constants]
    if not all(number.isdecimal() and len(number) < 20 for pair in numbers for number in pair):
        raise UnreadableFile(f"{path}: is damaged: a layer's weights have no place in {weights.name}; copy it again")
    needed = max((int(offset) + int(size) for offset, size in numbers), default=0)
    if not weights.is_file():
        raise UnreadableFile(f"{path}: the weights {weights.name} are not beside it; copy both files together")
    if weights.stat().st_size < needed:
        size = weights.stat().st_size
        raise UnreadableFile(f"{weights}: has {size} bytes where {path.name} needs {needed}; copy it again")
    return needed


def _entry(tree: Element) -> Element:
    """The element of our entry in the model's information, made if there is none."""
    parent = tree
    for name in ("rt_info", _OURS):
        found = parent.find(name)
        parent = ElementTree.SubElement(parent, name) if found is None else found
    return parent


def _ours(tree: Element, name: str) -> str | None:
    found = tree.find(f"rt_info/{_OURS}/{name}")
    return None if found is None else found.get("value")


def _drop_metadata(tree: Element) -> None:
    entry = _entry(tree)
    for old in entry.findall("metadata"):
        entry.remove(old)
