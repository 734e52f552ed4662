"""Which operation reads which tensor: a forward pass on shapes alone, recorded as the operators see it."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convattn.sizes import likely_shapes
from convattn.walk import foreign_hooks, probe

__all__ = ["Dataflow", "Step", "trace_dataflow"]


@dataclass(frozen=True, eq=False)
class Step:
    """One operation as it ran."""

    operator: str  # "conv2d", "batch_norm", "add"
    arguments: Mapping[str, Any]  # by the operator's own names: input, weight, bias, padding, …
    result: Any
    module: str | None = None  # dotted name of the innermost module with tensors of its own whose call it is part of


@dataclass(eq=False)
class Dataflow:
    """What ran in a forward pass, in order.

    The tensors themselves are the names of what flows: they are kept, so that no two of them share an identity.
    """

    steps: list[Step] = field(default_factory=list)
    seen: dict[int, str] = field(default_factory=dict)  # identity of a parameter or buffer -> its dotted name
    outside: set[int] = field(default_factory=set)  # identities of tensors that a hook or the caller gets to see
    running: list[str] = field(default_factory=list)  # modules with tensors of their own that are being called
    _kept: list[Tensor] = field(default_factory=list)
    _readers: dict[int, list[Step]] = field(default_factory=dict)
    _writers: dict[int, Step] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Append what ran next. A flattened weight counts as the weight."""
        if step.operator == "flatten" and self.name(step.arguments["self"]):
            weight, flat = step.arguments["self"], step.result
            self.seen[id(flat)] = self.seen[id(weight)]
            self._readers[id(flat)] = self._readers.setdefault(id(weight), [])
            self._kept.append(flat)
            return
        self.steps.append(step)
        for tensor in _tensors(step.arguments):
            self._readers.setdefault(id(tensor), []).append(step)
        for tensor in _tensors(step.result):
            self._writers.setdefault(id(tensor), step)

    def readers(self, tensor: Tensor) -> list[Step]:
        """The operations that took `tensor`, those that overwrote it included."""
        return self._readers.get(id(tensor), [])

    def writer(self, tensor: Tensor) -> Step | None:
        """The operation that made `tensor`; None for an input or a parameter."""
        return self._writers.get(id(tensor))

    def name(self, tensor: Tensor | None) -> str | None:
        """The dotted name of a parameter or buffer; None for what was computed."""
        return None if tensor is None else self.seen.get(id(tensor))


def trace_dataflow(model: nn.Module) -> list[Dataflow]:
    """Run a copy of an evaluated model on shapes alone: one image of a usual size, and two, of an odd size if it can.

    Padding to a multiple shows at an odd size only. What other people's hooks would see counts as read by somebody
    else.

    Returns:
        One dataflow a batch; none if the model runs on none of the sizes as images (B, C, H, W).
    """
    network = probe(model)
    watched = [network.get_submodule(name) for name, module in model.named_modules() if _has_listeners(module)]
    seen = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    for channels, height, width in likely_shapes(model):
        flows: list[Dataflow] = []
        for shape in (
            (1, channels, height, width),
            (2, channels, height + 33, width + 17),
            (2, channels, height, width),
        ):
            flow = Dataflow(seen=dict(seen))
            try:
                _run(network, watched, flow, torch.empty(shape, dtype=dtype, device="meta"))
            except Exception:  # somebody else's code: whatever it raises, it does not run on this input
                if not flows:
                    break
                continue
            flows.append(flow)
            if len(flows) == 2:
                break
        if flows:
            return flows
    return []


class _Recorder(TorchDispatchMode):
    """Writes every operator call into a dataflow. In inference mode convolutions and norms arrive here whole."""

    def __init__(self, flow: Dataflow):
        super().__init__()
        self.flow = flow

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        arguments = {arg.name: arg.default_value for arg in schema.arguments if arg.has_default_value()}
        arguments |= dict(zip((arg.name for arg in schema.arguments), args, strict=False)) | (kwargs or {})
        hands_on = any(result is argument for argument in args)  # dropout in evaluation, contiguous, to
        if schema.is_mutable or not hands_on:
            module = self.flow.running[-1] if self.flow.running else None
            self.flow.add(Step(func.overloadpacket.__name__, arguments, result, module))
        return result


def _run(network: nn.Module, watched: Sequence[nn.Module], flow: Dataflow, images: Tensor) -> None:
    def show(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        flow.outside.update(map(id, _tensors((args, kwargs, output))))

    handles = [module.register_forward_hook(show, with_kwargs=True) for module in watched]
    for name, module in network.named_modules():
        if module._parameters or module._buffers:
            handles.append(module.register_forward_pre_hook(partial(_enter, flow.running, name)))
            handles.append(module.register_forward_hook(partial(_leave, flow.running), always_call=True))
    try:
        with warnings.catch_warnings(action="ignore"), torch.inference_mode(), _Recorder(flow):
            output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    flow.outside.update(map(id, _tensors(output)))


def _enter(running: list[str], name: str, module: nn.Module, args: Any) -> None:
    running.append(name)


def _leave(running: list[str], module: nn.Module, args: Any, output: Any) -> None:
    running.pop()


def _has_listeners(module: nn.Module) -> bool:
    """Whether other people's hooks see what goes into a module or comes out of it, forward or backward."""
    return bool(foreign_hooks(module) or module._backward_hooks or module._backward_pre_hooks)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
