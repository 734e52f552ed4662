"""The 8-bit form that NNCF makes of an OpenVINO model, mended where the one or the other errs."""

from typing import Any

import numpy as np
import torch

from convattn.deploy.muted import muted
from convattn.extras import require

__all__ = ["MOVES", "WEIGHTED", "compiled", "computed", "nncf_quantised", "with_forks_biased"]

WEIGHTED = {"Convolution", "GroupConvolution", "MatMul"}

# What only moves numbers may stand between a quantiser and the layer that it is for.
MOVES = {
    "Broadcast", "Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice", "Transpose",
    "Unsqueeze", "VariadicSplit",
}  # fmt: skip

_LEAST_RANGE = np.float32(8e-5)  # NNCF gives no quantiser less
_LEAST_SHARE = 0.01  # of the widest channel's range: NNCF gives no channel less
_UNSEEN = 1e-20  # far below the rounding of any activation


def compiled(graph: Any) -> Any:
    """The graph on the CPU, in float32 where it does not say 8 bits."""
    openvino = require("openvino", "deploy")
    options = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(graph, "CPU", options)


def computed(graph: Any, batches: list[np.ndarray]) -> list[list[np.ndarray]]:
    """All outputs for each batch."""
    run = compiled(graph)
    return [[output.copy() for output in run([images]).values()] for images in batches]


def with_forks_biased(graph: Any) -> Any:
    """A copy in which every layer with weights that is read more than once ends in the addition of 1e-20.

    The plug-in scales the integers that an 8-bit layer gives. If one reader needs the scaled values and another, a
    quantiser or a mean, has been rewritten for the integers, it joins the scaling to the layer all the same: the other
    reader gets values that are scaled twice, next to zero. OpenVINO 2026.4 does so where the batch is free and the
    layer has no bias; with a bias it computes what it should.
    """
    ops = require("openvino", "deploy").opset13
    graph = graph.clone()
    in_float = set(_products_of_maps(graph))
    for node in graph.get_ordered_ops():
        output, readers = node.output(0), node.output(0).get_target_inputs()
        if node.get_type_name() in WEIGHTED and node.get_friendly_name() not in in_float and len(readers) > 1:
            shape = [1] * output.get_partial_shape().rank.get_length()
            biased = ops.add(output, ops.constant(np.full(shape, _UNSEEN, np.float32))).output(0)
            for reader in readers:
                reader.replace_source_output(biased)
            names = output.get_names()
            output.get_tensor().set_names(set())
            biased.get_tensor().set_names(names)
    return graph


def nncf_quantised(graph: Any, batches: list[np.ndarray], kept: tuple[str, ...], *, compressed: bool) -> Any:
    """The layers with weights in 8 bits, but for those named in `kept`; `graph` is left as it is.

    Ranges reach from the least to the greatest value seen. NNCF's defaults, the mean over the images of each one's
    extremes and a correction of biases, cut off what half of the images hold, and err by 2 to 5 times as much.

    Args:
        graph, batches: an `openvino.Model`, and inputs to find ranges with.
        kept: names of nodes.
        compressed: whether weights are stored in 8 bits, or float32 followed by a quantiser.
    """
    nncf = require("nncf", "deploy")
    ranges = require("nncf.quantization.range_estimator", "deploy").RangeEstimatorParametersSet
    backend = require("nncf.openvino.quantization.backend_parameters", "deploy").BackendParameters
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=True,
        activations_range_estimator_params=ranges.MINMAX,
        backend_params={backend.COMPRESS_WEIGHTS: compressed},
    )
    names = [*kept, *_products_of_maps(graph)]
    kinds = {node.get_type_name() for node in graph.get_ops()} - WEIGHTED - MOVES
    in_float = nncf.IgnoredScope(types=sorted(kinds), names=names, validate=False)
    with muted():
        quantised = nncf.quantize(
            graph, nncf.Dataset(batches), subset_size=len(batches), ignored_scope=in_float, advanced_parameters=advanced
        )
    _narrow(quantised, graph, batches)
    return quantised


def _products_of_maps(graph: Any) -> list[str]:
    """The matrix products of which neither factor is constant."""
    constant: dict[str, bool] = {}
    found = []
    for node in graph.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        sources = [constant[value.get_source_output().get_node().get_friendly_name()] for value in node.inputs()]
        constant[name] = kind == "Constant" or (bool(sources) and all(sources))
        if kind == "MatMul" and not any(sources):
            found.append(name)
    return found


def _narrow(quantised: Any, graph: Any, batches: list[np.ndarray]) -> None:
    """Narrow, in place, the quantisers of activations that NNCF left wider than the values of `graph`.

    Those of Next-ViT-S as initialised, whose maps sink to 1e-6, are left with few levels.
    """
    ops = require("openvino", "deploy").opset13
    wide = [node for node in quantised.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    wide = [node for node in wide if _source(node).get_type_name() != "Constant" and _at_least_range(node).any()]
    if not wide:
        return
    greatest = _greatest(graph, {_source(node).get_friendly_name(): _bound(node, 2).shape for node in wide}, batches)
    for node in wide:
        seen, high = greatest[_source(node).get_friendly_name()], _bound(node, 2)
        needed = np.maximum(seen, _LEAST_SHARE * seen.max()).reshape(high.shape)
        factor = np.where(_at_least_range(node) & (needed > 0), needed / high, 1).astype(np.float32)
        for place in range(1, 5):  # what is rounded from and to
            node.input(place).replace_source_output(ops.constant(_bound(node, place) * factor).output(0))


def _source(quantiser: Any) -> Any:
    return quantiser.input_value(0).get_node()


def _bound(quantiser: Any, place: int) -> np.ndarray:
    return quantiser.input_value(place).get_node().get_data()


def _at_least_range(quantiser: Any) -> np.ndarray:
    return _bound(quantiser, 2) <= _LEAST_RANGE


def _greatest(graph: Any, shapes: dict[str, tuple[int, ...]], batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The greatest absolute value of each named node over all batches, along the axes where its shape here is 1."""
    openvino = require("openvino", "deploy")
    ops, graph = openvino.opset13, graph.clone()
    nodes = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
    results = []
    for name, shape in shapes.items():
        rank = nodes[name].get_output_partial_shape(0).rank.get_length()
        shared = [axis for axis, size in enumerate((1,) * (rank - len(shape)) + shape) if size == 1]
        size = ops.reduce_max(ops.abs(nodes[name].output(0)), ops.constant(shared), keep_dims=True)
        results.append(ops.result(size))
    found = computed(openvino.Model(results, graph.get_parameters()), batches)
    return {name: np.max([outputs[index] for outputs in found], axis=0) for index, name in enumerate(shapes)}
