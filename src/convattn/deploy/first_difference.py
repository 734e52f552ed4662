"""Where a file that disagrees begins to: the first operation whose output differs, found by cutting the network.

A cut after an operation is a network of its own. It computes all that is known at that point and still needed, so a
difference that arose before cannot be missed on a side branch. It is written and run as the file was.
"""

import operator
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from convattn.deploy.dynamic import dynamic_shapes
from convattn.deploy.gate import OutputCheck, Tolerance, compare_outputs, eager
from convattn.deploy.runtimes.runtime import Request, Runtime

__all__ = ["FirstDifference", "NotFound", "Point", "first_difference"]


_OUTPUTS = (Tensor, torch.SymInt, int)  # what a network can give


class NotFound(RuntimeError):
    """Where the difference begins could not be found; says why."""


@dataclass(frozen=True)
class Point:
    """The output of one operation in the exported network and in the eager one."""

    layer: str  # dotted name of the innermost module in the inference form; "" is the network itself
    operation: str  # such as aten.conv2d.default; "module" where a whole module was looked at
    relative_error: float
    cosine: float

    def __str__(self) -> str:
        """The name and the error, for a sentence."""
        called = f"{self.layer or 'the network'} ({self.operation})"
        return f"{called}: relative error {self.relative_error:.1e}"


@dataclass(frozen=True)
class FirstDifference:
    """The first operation beyond the tolerance, and the one looked at before it."""

    where: Literal["inference form", "file"]  # "inference form": fusing changed the numbers, whatever the format
    first: Point
    before: Point | None  # None: the first differs already
    probes: int  # how many cuts were written and run

    def __str__(self) -> str:
        """One sentence."""
        start = "the first layer whose output differs is " if self.where == "file" else "fusing changed the output of "
        before = f"; before it {self.before}" if self.before else ""
        return f"{start}{self.first}{before}"


def first_difference(
    model: nn.Module,
    fused: nn.Module,
    runtime: Runtime,
    request: Request,
    images: Tensor,
    tolerance: Tolerance,
    *,
    folder: Path,
    on_step: Callable[[str], None],
) -> FirstDifference:
    """Find where the file of a model begins to disagree.

    Args:
        model, fused: the eager model, in evaluation mode, and its inference form, which was written.
        runtime, request: what wrote the file and ran it, and how.
        images: (B, C, H, W) on which the file disagreed.
        tolerance: what counts as agreement, for intermediate outputs too.
        folder: for temporary files.
        on_step: called with a few words before each probe.

    Raises:
        NotFound: if no cut shows the difference, or none could be written and run.
    """
    on_step("comparing the inference form")
    fused = runtime.form(fused)  # a graph that was cut has no blocks any more that `write` could do it to
    if not _agree(compare_outputs(eager(fused, images), eager(model, images)), tolerance):
        return _in_inference_form(model, fused, images, tolerance)
    reasons = []
    for attempt in dict.fromkeys((request.dynamic, "none")):  # what is free may be what cannot be cut
        traced = request.images if attempt == request.dynamic else images
        try:
            search = _Search(fused, runtime, replace(request, dynamic=attempt, images=traced), images, tolerance)
            return search.run(folder, on_step)
        except Exception as error:  # whatever the runtime raises; it must not hide the disagreement itself
            reasons.append(f"dynamic {attempt}: {' '.join(str(error).split()) or type(error).__name__}")
    raise NotFound("; ".join(reasons))


class _Search:
    """Bisection over the operations of the exported graph."""

    def __init__(
        self, fused: nn.Module, runtime: Runtime, request: Request, images: Tensor, tolerance: Tolerance
    ) -> None:
        with warnings.catch_warnings(action="ignore"):  # the exporter warns about its own internals
            shapes = dynamic_shapes(request.dynamic)
            self.graph_module = torch.export.export(fused, (request.images,), dynamic_shapes=shapes).module()
        self.runtime, self.request, self.images, self.tolerance = runtime, request, images, tolerance
        self.cuts = _cuts(self.graph_module.graph)
        self.probes = 0

    def run(self, folder: Path, on_step: Callable[[str], None]) -> FirstDifference:
        """Halve the range in which the difference begins until one operation is left."""
        steps = len(self.cuts).bit_length() + 1
        found: dict[int, list[Point]] = {}

        def agrees(at: int) -> bool:
            self.probes += 1
            on_step(f"looking for the first difference, {self.probes} of about {steps}")
            found[at], agreed = self._probe(self.cuts[at], folder)
            return agreed

        low, high = -1, len(self.cuts) - 1
        if agrees(high):
            raise NotFound("cut after its last operation the network agrees, only the whole file does not")
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if agrees(middle) else (low, middle)
        before = found[low][0] if low >= 0 else None
        worst = (
            found[high][0] if not self._is_fine(found[high][0]) else max(found[high], key=lambda p: p.relative_error)
        )
        return FirstDifference("file", worst, before, self.probes)

    def _is_fine(self, point: Point) -> bool:
        return OutputCheck("", point.relative_error, point.cosine).meets(self.tolerance)

    def _probe(self, cut: "_Cut", folder: Path) -> tuple[list[Point], bool]:
        """The values at a cut in both networks, that of its own operation first; and whether all agree."""
        network = _network(self.graph_module, cut)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = Path(place) / f"probe{self.runtime.SUFFIX}"
            self.runtime.write(network, self.request, path)
            got = self.runtime.open_file(path)(self.images)
        checks = compare_outputs(got, eager(network, self.images))
        points = [
            Point(_layer(node), str(node.target), check.relative_error, check.cosine)
            for node, check in zip(cut.values, checks, strict=True)
        ]
        return points, _agree(checks, self.tolerance)


@dataclass(frozen=True)
class _Cut:
    """A place behind an operation."""

    last: fx.Node
    values: tuple[fx.Node, ...]  # the operation itself, and all that was computed before and is still needed


def _cuts(graph: fx.Graph) -> list[_Cut]:
    """The places at which a graph can be cut, in order."""
    nodes = [node for node in graph.nodes if node.op != "output"]
    position = {node: index for index, node in enumerate(graph.nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    cuts: list[_Cut] = []
    alive: list[fx.Node] = []
    for index, node in enumerate(nodes):
        alive = [value for value in alive if last_use[value] > index]
        if node.op == "call_function" and last_use[node] > index:
            alive.append(node)
        values = [value for value in alive if value is not node and _is_compared(value)]
        if _computes(node) and all(isinstance(value.meta.get("val"), _OUTPUTS) for value in alive):
            cuts.append(_Cut(node, (node, *values)))
    return cuts


def _computes(node: fx.Node) -> bool:
    """Whether an operation gives new numbers, not other numbers' view."""
    if node.op != "call_function" or node.target is operator.getitem or not _is_compared(node):
        return False
    schema = getattr(node.target, "_schema", None)
    return schema is None or all(given.alias_info is None or given.alias_info.is_write for given in schema.returns)


def _is_compared(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _network(whole: fx.GraphModule, cut: _Cut) -> fx.GraphModule:
    """The network up to a cut, a tuple of the values there as its output."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in whole.graph.nodes:
        if node.op == "call_module":  # torch's check of the input's shape
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node is cut.last:
            break
    graph.output(tuple(copies[value] for value in cut.values))
    return fx.GraphModule(whole, graph).eval()


def _layer(node: fx.Node) -> str:
    """The dotted name of the module that an operation belongs to."""
    stack: Any = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path.partition("@")[0].removeprefix("L['self']").removeprefix(".")


def _agree(checks: Sequence[OutputCheck], tolerance: Tolerance) -> bool:
    return all(check.meets(tolerance) for check in checks)


def _in_inference_form(model: nn.Module, fused: nn.Module, images: Tensor, tolerance: Tolerance) -> FirstDifference:
    """The first module from which on all differ, of those that both forms have and that give tensors of one shape."""
    want, got = _module_outputs(model, images), _module_outputs(fused, images)
    points = [
        Point(name, "module", check.relative_error, check.cosine)
        for name, output in got.items()
        if name in want and output.shape == want[name].shape
        for check in compare_outputs([output], [want[name]])
    ]
    fine = [OutputCheck("", point.relative_error, point.cosine).meets(tolerance) for point in points]
    # What was merged into a layer makes that layer's own output another one, and agrees again behind it.
    first = max((index + 1 for index, is_fine in enumerate(fine) if is_fine), default=0)
    if first == len(points):
        raise NotFound("fusing changed the numbers, and no module of both forms shows it")
    return FirstDifference("inference form", points[first], points[first - 1] if first else None, 0)


def _module_outputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each module gives, in the order in which they finish; of one that runs several times the last."""
    outputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.pop(name, None)
                outputs[name] = output.clone()  # somebody may write into it

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in model.named_modules() if name]
    try:
        eager(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
