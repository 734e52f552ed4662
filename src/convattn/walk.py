"""Walks over the modules of a network: one understanding of ties, of copies and of what others have hung on a module.

A module may stand under several names, or twice in a container, and two modules may share a parameter: what is put in
its place is made once and stands wherever it stood. People hang things on modules (hooks, computed weights, a method of
one object alone) that another module in its place would not have: such a module stays, and so does a block around it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

__all__ = [
    "copied",
    "copying",
    "exchange",
    "foreign_hooks",
    "hung_inside",
    "hung_on",
    "is_of_class",
    "names_of",
    "probe",
    "put",
    "without_listeners",
]


# Copies


def copied(model: nn.Module) -> nn.Module:
    """A copy with tensors of its own; ties stay ties, also of a model that has run with gradients."""
    with copying():
        return deepcopy(model)


@contextmanager
def copying() -> Iterator[None]:
    """`deepcopy` takes tensors that were computed with gradients too, without their history.

    Some modules keep such a tensor: attentions their bias, weight norms the weight.
    """
    with _WithoutHistory():
        yield


class _WithoutHistory(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = copy = tensor.detach().clone()
            return copy
        return func(*args, **(kwargs or {}))


def probe(model: nn.Module) -> nn.Module:
    """A copy that works on shapes alone: evaluated, on the meta device, without other people's hooks.

    Those would be shown tensors without values, and may keep or read them. What stays are the hooks of attached blocks
    and those of torch that compute a weight. Parameters that were one are one.

    What a network does may follow from its numbers, as a detector looks closer where something may be. Such a one
    offers `products(images)`: all that its layers compute for a batch, by shapes alone. The copy does that when called.
    """
    tensors = [*model.parameters(), *model.buffers()]
    shapes: list[Tensor] = [tensor.detach().to("meta") for tensor in tensors]
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
        for tensor, shape in zip(tensors, shapes, strict=True)
    }
    with copying():
        copy = without_listeners(deepcopy(model, memo).eval())
    products = getattr(copy, "products", None)
    if callable(products):
        vars(copy)["forward"] = products
    return copy


def without_listeners(model: nn.Module) -> nn.Module:
    """`model` without other people's forward hooks; those of attached blocks and of torch's computed weights stay."""
    for module in model.modules():
        for hooks, key in foreign_hooks(module):
            if not type(hooks[key]).__module__.startswith("torch.nn.utils."):  # norms of weights, pruning
                del hooks[key]
    return model


# Names


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module -> all dotted names that it has in `model`, in order."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """`new` in the place of `old`, wherever it stands in `model`."""
    for parent in [*model.modules()]:
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def exchange(model: nn.Module, offer: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Put what `offer` gives in the places of modules, in place.

    A module that has several names is asked for once, by its first, and one with something hung on it or in it never.

    Args:
        offer: name, module -> what takes its place and is not looked into; None or the module itself: it stays, and
            its children are asked for.

    Returns:
        What takes the place of `model` itself, mostly `model`.
    """
    places: dict[nn.Module, nn.Module] = {}
    busy = _busy(model)

    def place(name: str, module: nn.Module) -> nn.Module:
        if module not in places:
            new = (None if module in busy else offer(name, module)) or module
            places[module] = places[new] = new
            if new is module:
                for key, child in module._modules.items():
                    if child is not None:
                        module._modules[key] = place(f"{name}.{key}".removeprefix("."), child)
        return places[module]

    return place("", model)


# What others have hung on modules


def hung_on(module: nn.Module) -> str | None:
    """What others have hung on a module and another in its place would not have, for people; None if nothing."""
    if getattr(module, "is_inserted", False):
        return "was put in by attach or replace"
    if any(_is_attached(module, key) for key in module._forward_hooks):
        return "has a block attached"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has a forward hook"
    if module._backward_hooks or module._backward_pre_hooks:
        return "has a backward hook"
    if is_parametrized(module):
        return "has a parametrised weight"
    # An instance that has in its own dictionary what its class has as a method.
    methods = (name for name in vars(module) if isinstance(getattr(type(module), name, None), FunctionType))
    own = next((name for name in methods if not is_of_class(module, name)), None)
    return None if own is None else f"has a {own} of its own"


def is_of_class(module: nn.Module, name: str) -> bool:
    """Whether a method that lies in a module's own dictionary is that of its class, put back after a change, say."""
    method = vars(module)[name]
    of_class = getattr(type(module), name, None)
    return getattr(method, "__self__", None) is module and getattr(method, "__func__", None) is of_class


def hung_inside(module: nn.Module) -> str | None:
    """The same of a module or the first of all that it holds, with the name inside it."""
    found = ((name, hung_on(part)) for name, part in module.named_modules())
    return next((f"{name or 'it'} {what}" for name, what in found if what), None)


def foreign_hooks(module: nn.Module) -> list[tuple[Any, Any]]:
    """Forward hooks and pre-hooks of a module as (dictionary that holds it, key), but for that of a block attached."""
    own = [(module._forward_hooks, key) for key in module._forward_hooks if not _is_attached(module, key)]
    return own + [(module._forward_pre_hooks, key) for key in module._forward_pre_hooks]


def _is_attached(module: nn.Module, key: object) -> bool:
    """Whether a hook of this key runs the child of the same name, as `attach` does."""
    return isinstance(key, str) and getattr(module._modules.get(key), "is_inserted", False)


def _busy(model: nn.Module) -> set[nn.Module]:
    """The modules with something hung on them or in them."""
    busy: set[nn.Module] = set()
    seen: set[nn.Module] = set()

    def look(module: nn.Module) -> bool:
        if module not in seen:
            seen.add(module)
            inside = [look(child) for child in module._modules.values() if child is not None]
            if any(inside) or hung_on(module):
                busy.add(module)
        return module in busy

    look(model)
    return busy
