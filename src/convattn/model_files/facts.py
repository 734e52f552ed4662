"""What a model computes with besides its weights, as plain facts: two models of equal facts and weights are the same.

A module's numbers come from its class, its attributes, its hooks, its weights and its children, and from nothing else.
All but the weights is listed here, so that whatever was done to a model shows as a difference from one built anew.
"""

import dataclasses
import functools
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, fx, nn

from convattn.walk import is_of_class

__all__ = ["Difference", "ModelFacts", "differences", "facts_of", "is_plain", "may_replace", "saved_tensors"]

# Kept by every module for torch itself; what matters of it is looked at below.
_OF_TORCH = {*vars(nn.Module()), "_compiled_call_impl"}
# Descriptions, which nothing is computed with: of the root, or of a network in it.
_DESCRIPTIONS = {
    "pretrained_cfg",
    "default_cfg",
    "pretrained_model_args",
    "_model_args",
    "_traits",
    "built_as",
    "surgery",
    "options_of_file",
}
# How a model is trained is told by the run: it changes the memory that gradients take, no number of the model.
_OF_TRAINING = {"grad_checkpointing", "process_group"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
# In evaluation they are the norms that they stand for.
_STANDS_FOR: dict[type, type] = {nn.SyncBatchNorm: nn.BatchNorm2d, SyncBatchNormAct: BatchNormAct2d}
_DEEPEST = 8  # of objects inside objects


@dataclass(frozen=True)
class ModuleFacts:
    """The facts of one module."""

    kind: type
    parts: dict[str, Any]  # weights by their shapes, and hooks
    attributes: dict[str, Any]


@dataclass
class ModelFacts:
    """The facts of every module, by its dotted name, and of the tensors."""

    modules: dict[str, ModuleFacts]
    buffers: dict[str, Tensor] = field(default_factory=dict)  # those that are not persistent: in no state dict
    hidden: dict[str, Tensor] = field(default_factory=dict)  # tensors in attributes: in no state dict either
    ties: set[frozenset[str]] = field(default_factory=set)  # names of one and the same parameter or buffer


@dataclass(frozen=True)
class Difference:
    """One thing in which a model is unlike one built anew."""

    module: str
    name: str
    has: Any
    built: Any
    is_attribute: bool = False
    buffer: Tensor | None = None  # one that is not persistent, with its values

    @property
    def is_plain(self) -> bool:
        """Whether it is a number or text, or a few, in the place of another or of none."""
        return self.is_attribute and may_replace(self.has, None if self.built is _NOTHING else self.built)

    @property
    def is_kept(self) -> bool:
        """Whether a file can hold it."""
        return self.is_plain or self.buffer is not None

    @property
    def where(self) -> str:
        """Module and attribute, dotted."""
        return f"{self.module}.{self.name}".strip(".")

    def __str__(self) -> str:
        return f"{self.where or 'the model'} is {_show(self.has)}, and {_show(self.built)} in a model built anew"


class _Said(str):
    """A fact in words: no text of the model itself."""

    __slots__ = ()


_NOTHING = _Said("not there")


def facts_of(model: nn.Module) -> ModelFacts:
    """The facts of `model`; its weights are not read."""
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    names |= {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    facts = ModelFacts({})
    for name, module in model.named_modules(remove_duplicate=False):
        facts.modules[name] = _of_module(module, name, names, facts.hidden)
        facts.buffers |= {
            f"{name}.{key}".strip("."): buffer
            for key, buffer in module._buffers.items()
            if buffer is not None and key not in _saved_names(module)
        }
    facts.ties = {frozenset(group) for group in _same(model) if len(group) > 1}
    return facts


def saved_tensors(model: nn.Module) -> dict[str, Any]:
    """What a state dict of `model` holds, without what hooks of somebody's on it would make of that."""
    saved: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        own = {**module._parameters, **module._buffers}
        saved |= {f"{name}.{key}".strip("."): own[key] for key in own if key in _saved_names(module)}
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            saved[f"{name}._extra_state".strip(".")] = module.get_extra_state()
    return {name: value for name, value in saved.items() if value is not None}


def differences(model: ModelFacts, built: ModelFacts) -> list[Difference]:
    """In what `model` is unlike `built`, in the order of the modules."""
    found: list[Difference] = []
    unlike: set[str] = set()
    for name in {**built.modules, **model.modules}:  # parents before children
        has, fresh = model.modules.get(name), built.modules.get(name)
        if has is None or fresh is None or has.kind is not fresh.kind:
            unlike.add(name)
            if not _is_below(name, unlike):
                found.append(Difference(name, "", _kind(has), _kind(fresh)))
            continue
        for is_attribute, one, other in ((False, has.parts, fresh.parts), (True, has.attributes, fresh.attributes)):
            for key in {**one, **other}:
                value, built_value = one.get(key, _NOTHING), other.get(key, _NOTHING)
                noted = key.startswith("_") and built_value is _NOTHING and is_plain(value)  # by others, for themselves
                if not noted and not _equal(value, built_value):
                    found.append(Difference(name, key, value, built_value, is_attribute))
    for one, other, are_buffers in ((model.buffers, built.buffers, True), (model.hidden, built.hidden, False)):
        found += _unlike_tensors(one, other, are_buffers)
    for group in sorted(map(sorted, built.ties - model.ties)):
        if not any(set(group) <= wider for wider in model.ties):
            found.append(Difference("", " and ".join(group), _Said("several tensors"), _Said("one tensor")))
    return found


def is_plain(value: Any) -> bool:
    """Whether it is a number, a text, None, or made of such: what JSON can hold and read back."""
    if type(value) is dict:
        return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
    if type(value) in (tuple, list, torch.Size):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def may_replace(value: Any, before: Any) -> bool:
    """Whether `value` may be set in the place of `before`: numbers for numbers, a text for a text, None for either."""

    def sort(each: Any) -> type | None:
        return type(each) if each is None or isinstance(each, str | dict) else float

    is_alike = value is None or before is None or sort(value) is sort(before)
    return is_plain(value) and is_plain(before) and is_alike


def _of_module(module: nn.Module, name: str, names: dict[int, str], hidden: dict[str, Tensor]) -> ModuleFacts:
    parts: dict[str, Any] = {}
    saved = _saved_names(module)
    for kind, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
        for key, tensor in tensors.items():
            if key not in saved:
                parts[key] = _Said("a buffer that no state dict holds")  # of any shape: a file holds it as it is
            else:
                parts[key] = None if tensor is None else _Said(f"a {kind} of shape {tuple(tensor.shape)}")
    for hooks in _HOOKS:
        for index, hook in enumerate(vars(module).get(hooks, {}).values()):
            parts[f"{hooks.strip('_').removesuffix('s')} {index}"] = _fact(hook, name, names, hidden)
    if isinstance(module, fx.GraphModule):
        return ModuleFacts(fx.GraphModule, parts | {"code": module.code}, {})  # each has a class of its own
    kind_of = getattr(type(module), "stands_for", None) or _STANDS_FOR.get(type(module), type(module))
    attributes = {
        key: _fact(value, f"{name}.{key}".strip("."), names, hidden)
        for key, value in vars(module).items()
        if not _is_passed_over(module, key)
    }
    return ModuleFacts(kind_of, parts, attributes)


def _is_passed_over(module: nn.Module, key: str) -> bool:
    """Whether an attribute says nothing of the numbers, or is made from others when it is needed."""
    if key == "set_aside":  # what `detach` puts back in the place of a replaced convolution
        return getattr(module, "is_inserted", False)
    if key in ("forward", "_original_forward"):  # Accelerate's autocast around the class's own
        around, own = (vars(module).get(name) for name in ("forward", "_original_forward"))
        if getattr(own, "__func__", None) is type(module).forward:
            return str(getattr(around, "__module__", "")).startswith("accelerate.")
    if is_of_class(module, key):
        return True
    return key in _OF_TORCH | _OF_TRAINING | _DESCRIPTIONS or "cache" in key


def _fact(value: Any, where: str, names: dict[int, str], hidden: dict[str, Tensor], depth: int = 0) -> Any:
    """Something to compare `value` by: itself if it is plain, else what it is made of."""
    if isinstance(value, np.generic):
        value = value.item()
    if is_plain(value):
        return value
    if isinstance(value, Tensor):
        if id(value) in names:
            return _Said(f"the tensor {names[id(value)]!r}")
        hidden[where] = value
        return _Said(f"a tensor of shape {tuple(value.shape)}")
    if depth > _DEEPEST:
        return type(value)

    def inner(part: Any, at: object) -> Any:
        return _fact(part, f"{where}.{at}", names, hidden, depth + 1)

    if isinstance(value, nn.Module):
        if id(value) in names:
            return _Said(f"the module {names[id(value)]!r}")
        inside = {name: _of_module(part, f"{where}.{name}", names, hidden) for name, part in value.named_modules()}
        hidden |= {f"{where}.{name}": tensor for name, tensor in [*value.named_parameters(), *value.named_buffers()]}
        return inside
    if isinstance(value, functools.partial):
        return "partial", inner(value.func, "func"), inner(value.args, "args"), inner(value.keywords, "keywords")
    if isinstance(value, types.MethodType):
        return "method", value.__func__, inner(value.__self__, "self")
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__qualname__, value.__code__, inner(value.__defaults__, "defaults"), inner(cells, "closure")
    if isinstance(value, Mapping):
        # What is filed under a device is what the last forward left, as in timm's feature hooks.
        return {key: inner(entry, key) for key, entry in value.items() if not isinstance(key, torch.device)}
    if isinstance(value, tuple | list):
        return [inner(entry, index) for index, entry in enumerate(value)]
    if isinstance(value, set | frozenset):
        return _Said(sorted(map(repr, value)))
    if isinstance(value, type | Enum | torch.dtype | types.BuiltinFunctionType | torch.Size | torch.memory_format):
        return value
    if isinstance(value, np.ndarray):
        return type(value), value.tolist()
    if dataclasses.is_dataclass(value) or (
        hasattr(value, "__dict__") and not type(value).__module__.startswith("torch")
    ):
        return type(value), {key: inner(entry, key) for key, entry in vars(value).items()}
    return type(value)


def _saved_names(module: nn.Module) -> set[str]:
    return {*module._parameters, *(module._buffers.keys() - module._non_persistent_buffers_set)}


def _same(model: nn.Module) -> Iterable[list[str]]:
    """Names of one and the same tensor, grouped."""
    groups: dict[int, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and name in _saved_names(module):
                groups.setdefault(id(tensor), []).append(f"{prefix}.{name}".strip("."))
    return groups.values()


def _equal(one: Any, other: Any) -> bool:
    """As by ==, but 1 is not True, nor 1.0, and not-a-number is itself; lists and tuples of one content are equal."""
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other or (one != one and other != other))


def _unlike_tensors(has: Mapping[str, Tensor], built: Mapping[str, Tensor], are_buffers: bool) -> list[Difference]:
    found = []
    for name in {**has, **built}:
        tensor, fresh = has.get(name), built.get(name)
        if tensor is None or fresh is None or not _same_numbers(tensor, fresh):
            found.append(Difference("", name, _shape(tensor), _shape(fresh), buffer=tensor if are_buffers else None))
    return found


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    alike = (one.dtype, one.shape, other.is_meta) == (other.dtype, other.shape, False)
    return alike and torch.equal(one.detach().cpu(), other.detach().cpu())


def _is_below(module: str, others: set[str]) -> bool:
    parts = module.split(".")
    above = {"", *(".".join(parts[:end]) for end in range(1, len(parts)))} - {module}
    return not above.isdisjoint(others)


def _shape(tensor: Tensor | None) -> _Said:
    if tensor is None:
        return _NOTHING
    kind = str(tensor.dtype).removeprefix("torch.")
    return _Said(f"a {kind} tensor of shape {tuple(tensor.shape)} of its own, in no state dict")


def _kind(facts: ModuleFacts | None) -> Any:
    return facts.kind if facts else _NOTHING


def _show(value: Any) -> str:
    if isinstance(value, type):
        return f"a {value.__name__}"
    if isinstance(value, _Said):
        return str(value)
    if is_plain(value):
        text = " ".join(repr(value).split())
        return text if len(text) <= 80 else f"{text[:77]}..."
    if isinstance(value, tuple) and isinstance(value[0], type):
        return f"a {value[0].__name__} of its own"
    if isinstance(value, tuple) and len(value) == 4 and isinstance(value[1], types.CodeType):
        return f"the function {value[0]}"
    return "a function or collection of its own"
