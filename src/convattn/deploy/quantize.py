"""INT8 after training, by NNCF, with what it costs layer by layer, and the layers that are too dear left in float32.

Eight bits are used where there are weights, in convolutions and products with a constant matrix: there the arithmetic
is. Sums of residual branches, products of attention, norms and pools gain little and stay in float32.

What each layer costs is measured, not guessed from its kind: a probe, the same graph with a switch beside every layer,
gives the error of the model's outputs when that layer alone computes with 8 bits. Such errors are small and next to
independent, so their squares add up; the dearest layers stay in float32 until those of the others keep to a budget.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convattn.deploy.nncf_form import MOVES, WEIGHTED, compiled, computed, nncf_quantised, with_forks_biased
from convattn.extras import require

__all__ = ["BUDGET", "QuantisedLayer", "quantise"]

BUDGET = 0.02  # of the outputs' relative error, all quantised layers together

_SLACK = 1.5  # of the budget, for what the finished file errs: seen 0.8 to 1.2 times what the squares add up to
_PROBED = 4  # images that errors are measured on
_CALIBRATION_BATCH = 10  # images


@dataclass(frozen=True)
class QuantisedLayer:
    """What 8 bits cost in one layer of a graph, on calibration images; errors are |got - want| / |want|, 2-norms."""

    name: str  # in the graph
    kind: str  # operator
    own_error: float  # of its own output, from exact inputs rounded to 8 bits and weights of 8 bits
    output_error: float  # of the model's outputs, when this layer alone is quantised; the worst of several
    kept: bool  # left in float32


def quantise(
    graph: Any,
    calibration: Sequence[Tensor],
    budget: float = BUDGET,
    *,
    in_float32: Sequence[str] = (),
    known: Sequence[QuantisedLayer] | None = None,
) -> tuple[Any, tuple[QuantisedLayer, ...]]:
    """An 8-bit form of an OpenVINO model, and what each of its layers costs.

    The finished form is computed once and compared: where it errs by more than the layers measured one by one let
    expect, more of them stay in float32.

    Args:
        graph: an `openvino.Model` of images (B, C, H, W); left as it is.
        calibration: preprocessed images (1, C, H, W) like those to come.
        budget: relative error of the outputs that all quantised layers together may cause. The layers that cause most
            are left in float32 until the others keep to it.
        in_float32: dotted names of modules whose layers are left in float32 without a look at their costs.
        known: what is known of the layers already, from another graph of the same network: nothing is measured then.

    Raises:
        MissingExtra: if NNCF is not installed.
    """
    graph = with_forks_biased(graph)
    spread = calibration[:: math.ceil(len(calibration) / _PROBED)]  # evenly: neighbours in a folder are alike
    batches, few = _batches(graph, calibration), _batches(graph, spread)
    apart = _layers_of(graph, in_float32)
    if known is not None:
        left = (*apart, *(layer.name for layer in known if layer.kept))
        return nncf_quantised(graph, batches, left, compressed=True), tuple(known)
    layers = _costs(graph, nncf_quantised(graph, batches, apart, compressed=False), few)
    want = computed(graph, few)
    for allowed in (budget, budget / 2, budget / 4, 0):  # at nothing every layer stays in float32
        dear = _dearest([layer.output_error for layer in layers], allowed)
        kept = {layer.name for index, layer in enumerate(layers) if index in dear}
        quantised = nncf_quantised(graph, batches, (*apart, *kept), compressed=True)
        if _worst_error(computed(quantised, few), want) <= _SLACK * budget:
            break
    return quantised, tuple(QuantisedLayer(**{**vars(layer), "kept": layer.name in kept}) for layer in layers)


def _layers_of(graph: Any, modules: Sequence[str]) -> tuple[str, ...]:
    """The names of the nodes with weights that compute what these modules do."""
    names = [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() in WEIGHTED]
    return tuple(name for name in names if name.startswith(tuple(f"{module}." for module in modules)))


def _batches(graph: Any, images: Sequence[Tensor]) -> list[np.ndarray]:
    """The images in batches that the graph takes; the first ones again where the last batch would be short."""
    size = graph.input(0).partial_shape[0]
    batch = min(_CALIBRATION_BATCH, len(images)) if size.is_dynamic else size.get_length()
    starts = range(0, len(images), batch)
    return [torch.cat([images[(start + i) % len(images)] for i in range(batch)]).numpy() for start in starts]


def _costs(graph: Any, quantised: Any, batches: list[np.ndarray]) -> list[QuantisedLayer]:
    """Every quantised layer, each alone."""
    probe = _Probe(graph, quantised)
    off = np.zeros(len(probe.layers), np.float32)
    exact = [probe.run(images, off) for images in batches]
    want = [outputs for outputs, _ in exact]
    costs = []
    for index, (name, kind) in enumerate(probe.layers):
        alone = off.copy()
        alone[index] = 1
        error = _worst_error([probe.run(images, alone)[0] for images in batches], want)
        own = math.sqrt(sum(float(layers[index]) for _, layers in exact) / len(exact))
        costs.append(QuantisedLayer(name, kind, own, error, kept=False))
    return costs


def _worst_error(got: list[list[np.ndarray]], want: list[list[np.ndarray]]) -> float:
    """|got - want| / |want| over all batches, of the output in which it is greatest."""
    places = range(len(want[0]))
    return max(_relative_error([g[place] for g in got], [w[place] for w in want]) for place in places)


def _relative_error(got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> float:
    difference = sum(float(np.square(g - w, dtype=np.float64).sum()) for g, w in zip(got, want, strict=True))
    return math.sqrt(difference / max(sum(float(np.square(w, dtype=np.float64).sum()) for w in want), 1e-300))


def _dearest(errors: list[float], budget: float) -> set[int]:
    """The fewest layers without which the squared errors of the others add up to no more than the budget's square."""
    kept: set[int] = set()
    left = sum(error**2 for error in errors)
    for index in sorted(range(len(errors)), key=lambda index: -errors[index]):
        if left <= budget**2:
            break
        kept.add(index)
        left = sum(error**2 for other, error in enumerate(errors) if other not in kept)
    return kept


class _Probe:
    """A graph whose quantised layers can be switched on one by one, compiled once.

    The exact graph and the quantised one are woven together: every quantised layer has a twin in the exact graph, and
    both are followed by `exact + switch * (quantised - exact)`.
    """

    def __init__(self, graph: Any, quantised: Any) -> None:
        openvino = require("openvino", "deploy")
        ops = openvino.opset13
        graph, quantised = graph.clone(), quantised.clone()
        twins = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
        for theirs, ours in zip(quantised.get_parameters(), graph.get_parameters(), strict=True):
            for user in theirs.output(0).get_target_inputs():
                user.replace_source_output(ours.output(0))
        switches = ops.parameter([-1], np.float32)
        losses = []
        pairs = [(node, twins[node.get_friendly_name()]) for node in _quantised_layers(quantised)]
        for index, (rounded, exact) in enumerate(pairs):
            users = [user for node in (rounded, exact) for user in node.output(0).get_target_inputs()]
            difference = ops.subtract(rounded.output(0), exact.output(0))
            switch = ops.gather(switches, ops.constant(np.int64(index)), ops.constant(np.int64(0)))
            mixed = ops.add(exact.output(0), ops.multiply(difference, switch))
            for user in users:
                user.replace_source_output(mixed.output(0))
            axes = ops.constant(np.arange(exact.get_output_partial_shape(0).rank.get_length(), dtype=np.int64))
            power = (ops.reduce_mean(ops.multiply(x, x), axes) for x in (difference, exact.output(0)))
            losses.append(ops.result(ops.divide(*power)))
        self.layers = [(node.get_friendly_name(), node.get_type_name()) for node, _ in pairs]
        self.outputs = len(graph.get_results())
        woven = openvino.Model([*graph.get_results(), *losses], [*graph.get_parameters(), switches])
        self._request = compiled(woven).create_infer_request()

    def run(self, images: np.ndarray, switches: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The model's outputs, and the squared relative error of every layer's own output."""
        found = self._request.infer([images, switches])
        values = [found[index] for index in range(len(found))]
        return values[: self.outputs], values[self.outputs :]


def _quantised_layers(graph: Any) -> Iterator[Any]:
    """The nodes that compute with what a quantiser gives, in order."""
    rounded: set[str] = set()
    for node in graph.get_ordered_ops():
        sources = {value.get_source_output().get_node().get_friendly_name() for value in node.inputs()}
        kind = node.get_type_name()
        if kind == "FakeQuantize" or (kind in MOVES and sources & rounded):
            rounded.add(node.get_friendly_name())
        elif sources & rounded and node.get_output_element_type(0).is_real():
            yield node
