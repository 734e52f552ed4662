"""Evaluating batch norms folded into the layers beside them, in networks of anybody's blocks.

    conv ── norm ── act    ->    conv' ── act    any convolution: grouped, dilated, transposed, padded; linear layers
    norm ──┬── conv        ->    conv'           only where nothing is padded behind the norm: a border of zeros
           └── conv              conv'           would have to become a border of the values that it maps to zero

What stands beside what is read from the dataflow of a forward pass, not from names: a fold is made only where the
values in between are read by nobody else.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from convattn.deploy.fold_trace import Dataflow, Step, trace_dataflow
from convattn.ops.linear import Linear2d
from convattn.walk import hung_on, put

__all__ = ["Fold", "fold_norms"]

# Those that do what their class says and no more; a subclass with a forward of its own may use its weights otherwise.
_LAYERS = (
    *(nn.Linear, Linear2d),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_LAYER_FORWARDS = {layer.forward for layer in (*_LAYERS, Conv2dSame)}
_NORM_FORWARDS = {norm.forward for norm in (_BatchNorm, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)}
_TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_OPERATORS = {"linear", "conv1d", "conv2d", "conv3d", *_TRANSPOSED}


@dataclass(frozen=True)
class Fold:
    """One batch norm that went into its neighbours."""

    norm: str  # dotted name
    layers: tuple[str, ...]  # that took it in
    is_behind: bool  # whether the norm stood behind its layer; else in front of them


def _batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Dotted name -> batch norm, for each in `model`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def fold_norms(model: nn.Module) -> tuple[list[Fold], dict[str, str]]:
    """Fold every batch norm that can be, in place, in an evaluated model that runs on images alone.

    Returns:
        The folds made, in the order of the forward pass; and for each batch norm that is left, by name, why.
    """
    _thaw(model)
    folds: list[Fold] = []
    while True:  # again after a success: two norms may stand one behind the other
        if not _batch_norms(model):
            return folds, {}
        flows = trace_dataflow(model)
        if not flows:
            return folds, dict.fromkeys(_batch_norms(model), "the network does not run on an image alone")
        made, left = _fold_once(model, flows)
        folds += made
        if not made or not left:
            return folds, left


def _thaw(model: nn.Module) -> None:
    """torchvision's frozen norms, which do their sums by hand, as batch norms."""
    for name, frozen in [*model.named_modules()]:
        if type(frozen) is FrozenBatchNorm2d and name and not hung_on(frozen):
            norm = nn.BatchNorm2d(len(frozen.weight), eps=frozen.eps).to(frozen.weight).eval().requires_grad_(False)
            norm.load_state_dict(frozen.state_dict(), strict=False)  # it counts no batches
            put(model, frozen, norm)


def _fold_once(model: nn.Module, flows: Sequence[Dataflow]) -> tuple[list[Fold], dict[str, str]]:
    found = [_Search(model, flow).folds() for flow in flows]
    in_order = {**found[0], **_batch_norms(model)}
    made: list[Fold] = []
    left: dict[str, str] = {}
    for name in in_order:
        fold, *others = {folds.get(name, "it does not run") for folds in found}
        if others:
            left[name] = "what stands beside it depends on the size or number of images"
        elif isinstance(fold, str):
            left[name] = fold
        else:
            _apply(model, fold)
            made.append(fold)
    return made, left


class _Search:
    """What can be folded, by the dataflow of one forward pass."""

    def __init__(self, model: nn.Module, flow: Dataflow):
        self.model = model
        self.flow = flow
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.owners = Counter(id(tensor) for _, tensor in tensors)  # of a module that has two names: two

    def folds(self) -> dict[str, Fold | str]:
        """Name of each batch norm that ran -> its fold, or why there is none."""
        norms = _batch_norms(self.model)
        found: dict[str, Fold | str] = {}
        for step in self.flow.steps:
            if step.operator != "batch_norm":
                continue
            name = next((owner for owner in map(self._owner, map(step.arguments.get, _OF_NORM)) if owner), None)
            if name in norms:
                found[name] = self._fold(name, norms[name], step)
        return found

    def _fold(self, name: str, norm: _BatchNorm, step: Step) -> Fold | str:
        if norm.running_mean is None or norm.running_var is None or step.arguments["training"]:
            return "it normalises by the statistics of each batch"
        if step.module != name:
            return "its numbers are used otherwise than by calling it"
        if hung_on(norm) and "forward" not in vars(norm):
            return "something hangs on it"
        if _forward(norm) not in _NORM_FORWARDS:
            return f"{type(norm).__name__} has a forward of its own"
        if not all(self._is_used_once(name, key, step.arguments[key]) for key in _OF_NORM):
            return "it, or a tensor of it, is used in several places"
        source, output = step.arguments["input"], step.result
        writer, readers = self._maker(source), self.flow.readers(output)
        before = None if writer is None else self._layer(writer)
        if before is not None:
            return Fold(name, (before,), is_behind=True)
        behind = [self._layer(reader) if _takes(reader, output) else None for reader in readers]
        if behind and id(output) not in self.flow.outside and None not in behind:
            return Fold(name, tuple(layer for layer in behind if layer), is_behind=False)
        note = "" if self._is_between(source) else " that others see too"
        note = " with weights that others use, or that are computed" if writer is not None else note
        return f"behind {_words([self.flow.writer(source)])}{note}, in front of {_words(readers)}"

    def _maker(self, tensor: Tensor) -> Step | None:
        """The layer whose output is `tensor`, channels second, if nobody sees it but one reader."""
        step = self.flow.writer(tensor) if self._is_between(tensor) else None
        if step is None or step.operator in _OPERATORS:
            return step if step and _fits(step, tensor) else None
        if step.operator == "permute" and tuple(step.arguments["dims"]) == (0, 3, 1, 2):
            inner = step.arguments["self"]
            linear = self.flow.writer(inner) if self._is_between(inner) else None
            return linear if linear and linear.operator == "linear" else None
        return None

    def _layer(self, step: Step) -> str | None:
        """Name of the layer that was called for this operation, if its weights may change."""
        name = self._owner(step.arguments.get("weight"))
        if step.operator not in _OPERATORS or name is None or name != step.module:
            return None
        layer = self.model.get_submodule(name)
        is_known = isinstance(layer, _LAYERS) and _forward(layer) in _LAYER_FORWARDS
        if not is_known or hung_on(layer):
            return None
        is_free = all(self._is_used_once(name, key, step.arguments[key]) for key in ("weight", "bias"))
        return name if is_free else None

    def _is_between(self, tensor: Tensor) -> bool:
        """Whether `tensor` is nobody's business but that of the operation that made it and of one that reads it."""
        return len(self.flow.readers(tensor)) == 1 and id(tensor) not in self.flow.outside

    def _owner(self, tensor: Tensor | None) -> str | None:
        name = self.flow.name(tensor)
        return None if name is None else name.rpartition(".")[0]

    def _is_used_once(self, owner: str, key: str, tensor: Tensor | None) -> bool:
        """Whether what ran as `key` is that tensor of `owner`, and runs nowhere else; None is what `owner` lacks."""
        own = getattr(self.model.get_submodule(owner), key)
        if tensor is None or own is None:
            return tensor is own
        is_own = self.flow.name(tensor) == f"{owner}.{key}".removeprefix(".")
        return is_own and self.owners[id(own)] == 1 and len(self.flow.readers(tensor)) == 1


def _forward(module: nn.Module) -> object:
    """The function that runs; that of the class, unless somebody gave the module one of its own."""
    return getattr(module.forward, "__func__", None)


_OF_NORM = ("running_mean", "running_var", "weight", "bias")


def _fits(layer: Step, output: Tensor) -> bool:
    """Whether the layer's channels lie where a norm of its output takes them to be: second."""
    return output.ndim == layer.arguments["weight"].ndim


def _takes(layer: Step, normed: Tensor) -> bool:
    """Whether a layer reads what a norm puts out, and nothing else: no position of a border."""
    if layer.operator not in _OPERATORS - _TRANSPOSED or layer.arguments["input"] is not normed:
        return False
    if not _fits(layer, normed):
        return False
    padding = layer.arguments.get("padding", (0,))
    is_pointwise = all(side == 1 for side in layer.arguments["weight"].shape[2:])
    return is_pointwise or padding == "valid" if isinstance(padding, str) else not any(padding)


def _words(steps: Sequence[Step | None]) -> str:
    """Operators for people: "add", "relu, conv2d that pads"."""
    words = []
    for step in steps:
        padding = step.arguments.get("padding") if step and step.operator in _OPERATORS else None
        pads = padding not in (None, "valid") if isinstance(padding, str) else any(padding or ())
        name = step.operator.strip("_") if step else "the input"
        words.append(f"{name} that pads" if pads else name)
    return ", ".join(dict.fromkeys(words)) or "the output"


def _apply(model: nn.Module, fold: Fold) -> None:
    norm = model.get_submodule(fold.norm)
    assert isinstance(norm, _BatchNorm)
    for name in fold.layers:
        layer: Any = model.get_submodule(name)
        weight, bias = (_fold_behind if fold.is_behind else _fold_in_front)(layer, norm)
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    _make_neutral(norm)
    holds_act = isinstance(norm, BatchNormAct2d | SyncBatchNormAct)  # timm's norms hold the activation
    put(model, norm, getattr(norm, "act", nn.Identity()) if holds_act else nn.Identity())


def _make_neutral(norm: _BatchNorm) -> None:
    """Of no effect, for those who reach it by another way than its name: a list that is no `nn.ModuleList`, say."""
    for name, value in (("running_mean", 0.0), ("running_var", 1.0 - norm.eps), ("weight", 1.0), ("bias", 0.0)):
        tensor = getattr(norm, name)
        if tensor is not None:  # anew: the memory may be that of another norm's, too
            new = torch.full_like(tensor, value)
            setattr(norm, name, nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new)


def _fold_behind(layer: Any, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of norm(layer(x))."""
    is_transposed = getattr(layer, "transposed", False)
    weight = _wide(layer.weight)
    if is_transposed:  # (C, C'/groups, …) -> (C/groups, C', …)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(0, 1).flatten(1, 2)
    weight, bias = fuse_conv_bn_weights(
        weight,
        None if layer.bias is None else _wide(layer.bias),
        *_statistics(norm),
        norm.eps,
        None if norm.weight is None else _wide(norm.weight),
        None if norm.bias is None else _wide(norm.bias),
        transpose=is_transposed,
    )
    if is_transposed:
        weight = weight.unflatten(1, (layer.groups, -1)).transpose(0, 1).flatten(0, 1)
    return weight, bias


def _fold_in_front(layer: Any, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of layer(norm(x))."""
    mean, var = _statistics(norm)
    scale = (var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * _wide(norm.weight)
    shift = -mean * scale
    shift = shift if norm.bias is None else shift + _wide(norm.bias)
    weight = _wide(layer.weight)
    groups = getattr(layer, "groups", 1)
    # (C,) as the channels that each output reads: (C', C/groups, 1, …)
    scale, shift = (
        per_channel.view(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)[(..., *[None] * (weight.ndim - 2))]
        for per_channel in (scale, shift)
    )
    bias = (weight * shift).flatten(1).sum(1)
    return weight * scale, bias if layer.bias is None else bias + _wide(layer.bias)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Mean and variance."""
    assert norm.running_mean is not None and norm.running_var is not None
    return _wide(norm.running_mean), _wide(norm.running_var)


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: what is folded is rounded once."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
