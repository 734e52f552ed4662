"""From a recipe to a model, and from a model to the recipe that builds it: compared, so that nothing is forgotten.

A recipe is the part of a file's description that builds: `task` where a task has its own builder, `name`, `options`,
`surgery`.
"""

import functools
import json
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from convattn.backbones.registry import create_model
from convattn.json_text import with_tuples
from convattn.model_files.facts import Difference, ModelFacts, differences, facts_of, may_replace, saved_tensors
from convattn.rooms import room
from convattn.surgery import replay

__all__ = ["Misfit", "build", "find_recipe", "network", "with_weights"]

_LARGEST_TABLES = 2**30  # bytes of buffers that no file holds
_BY_HAND = ("set", "tie", "buffers")  # kinds of rows that are not of `convattn.surgery`


class Misfit(ValueError):
    """The weights are not those of the model that a recipe builds."""


def find_recipe(model: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[Difference]]:
    """What builds `model` again, and in what the result is unlike it all the same: nothing, for one that can be saved.

    Head, pooling and image size are taken as they are now, since they may have been changed after building. Numbers and
    texts that were set by hand, and tensors that were tied, become a part of the recipe; buffers that no state dict
    holds and that have other values, such as tables of positions for another size, belong to the weights.

    Args:
        model: with `built_as`, as `create_model` leaves it.

    Returns:
        The recipe, the buffers to keep beside the weights, the differences.

    Raises:
        Exception: whatever `create_model` raises, if it cannot build the model.
    """
    has = facts_of(model)
    dtype = _common_dtype(saved_tensors(model).values())
    best: tuple[dict[str, Any], list[Difference], ModelFacts] | None = None
    for options in _candidates(model):
        recipe = {**model.built_as, "options": options, "surgery": getattr(model, "surgery", [])}
        try:
            built = _facts_of_built(json.dumps(recipe), bool(has.buffers or has.hidden), dtype)
        except Exception:
            if best is None:
                raise
            continue  # the model takes no such option
        found = differences(has, built)
        if best is None or _weight(found) < _weight(best[1]):
            best = recipe, found, built
        if not found:
            break
    assert best is not None
    recipe, found, built = best
    by_hand = [dict(kind="set", place=each.module, name=each.name, value=each.has) for each in found if each.is_plain]
    ties = sorted(sorted(group) for group in has.ties if not any(group <= known for known in built.ties))
    by_hand += [dict(kind="tie", names=names) for names in ties]
    buffers = {each.where: each.buffer for each in found if each.buffer is not None}
    by_hand += [dict(kind="buffers", names=list(buffers))] if buffers else []
    return {**recipe, "surgery": [*recipe["surgery"], *by_hand]}, buffers, [each for each in found if not each.is_kept]


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """The model of a recipe as JSON gives it back, with fresh weights.

    Raises:
        ValueError: if a row of the surgery does not fit the model; and whatever `create_model` raises.
    """
    model = network(recipe)
    rows = recipe.get("surgery", ())
    inserted = [_with_tuples(row) for row in rows if not isinstance(row, dict) or row.get("kind") not in _BY_HAND]
    model = replay(model, inserted)
    for row in rows:
        if row["kind"] == "set":
            _set(model, row["place"], row["name"], row["value"])
        elif row["kind"] == "tie":
            _tie(model, [row["names"]])
    return model


def network(built_as: Mapping[str, Any]) -> nn.Module:
    """The network of a model's `built_as` as JSON gives it back, with fresh weights; of its task's own builder."""
    create = room(built_as["task"]).create if built_as.get("task") else create_model
    return create(built_as["name"], **{key: with_tuples(value) for key, value in built_as["options"].items()})


def with_weights(recipe: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model of a recipe with these weights, of their types, on the CPU.

    Nothing is allocated that the weights do not fill: the model is built without memory first.

    Raises:
        Misfit: naming the first that does not fit. Otherwise as `build`.
    """
    rows = [row for row in recipe.get("surgery", ()) if isinstance(row, dict) and row.get("kind") == "buffers"]
    beside = {name: tensors[name] for row in rows for name in row["names"]}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in beside}
    return _with_buffers(_with_weights(recipe, tensors), beside)


def _with_weights(recipe: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    with _no_more_than(len(tensors)):
        try:
            with torch.device("meta"):
                model = build(recipe)
        except Exception:  # some networks read their own numbers while they are built
            with torch.device("cpu"):
                return _filled(build(recipe), tensors)
    facts = facts_of(model)
    fresh = {name: torch.empty_like(tensor, requires_grad=False) for name, tensor in model.state_dict().items()}
    _load(model, tensors, assign=True)
    beside = [*facts.buffers.values(), *facts.hidden.values()]
    if beside:  # such as tables of positions: they want real numbers
        size = sum(tensor.numel() * tensor.element_size() for tensor in beside)
        if size > _LARGEST_TABLES:  # the weights give no reason for them
            raise ValueError(f"it wants {size / 2**30:,.1f} GiB of tables beside its weights")
        with torch.device("cpu"):
            return _filled(build(recipe), tensors)
    for name, tensor in _named_tensors(model):
        if name in fresh:  # in the layout in which it was built, and in memory of its own
            tensor.data = torch.empty_like(fresh[name], dtype=tensor.dtype, device="cpu").copy_(tensor)
    _tie(model, map(sorted, facts.ties))
    return model


def _with_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> nn.Module:
    """`model` with other values in buffers that no state dict holds."""
    for name, buffer in buffers.items():
        place, _, key = name.rpartition(".")
        module = model.get_submodule(place)
        if key not in module._non_persistent_buffers_set:
            raise ValueError(f"{name} is no buffer that a state dict leaves out")
        module._buffers[key] = buffer.clone()
    return model


@functools.lru_cache(maxsize=8)
def _facts_of_built(recipe: str, with_numbers: bool, dtype: torch.dtype | None) -> ModelFacts:
    """The facts of what a recipe builds; kept, since a run saves the same model every epoch."""
    # Its warnings were given when the model itself was built.
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        try:
            with torch.device("cpu" if with_numbers else "meta"):
                model = build(json.loads(recipe))
        except Exception:  # some networks read their own numbers while they are built
            with torch.device("cpu"):
                model = build(json.loads(recipe))
    return facts_of(model if dtype is None else model.to(dtype))


def _candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Options that may build `model`: as it was built, then with its head and its image size as they are now."""
    options = model.built_as["options"]
    yield options
    if not hasattr(model, "reset_classifier"):
        return
    now = {**options, "num_classes": model.num_classes}
    yield now
    sizes: list[dict[str, Any]] = [{}]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if size is not None:
        sizes.append({"img_size": size})
        yield now | sizes[1]
    pools = {
        pool: None
        for module in model.modules()
        for key in ("pool_type", "global_pool")
        if isinstance(pool := vars(module).get(key), str)
    }
    for pool in pools:
        for size in sizes:
            yield {**now, "global_pool": pool, **size}


def _weight(found: list[Difference]) -> tuple[int, int]:
    """How far a candidate is from the model: what no file can hold counts first."""
    return sum(not each.is_kept for each in found), len(found)


def _set(model: nn.Module, place: str, name: str, value: Any) -> None:
    """Set an attribute that holds a number or text, or none yet: never what is called, nor what torch keeps."""
    module = model.get_submodule(place)
    before = vars(module).get(name)
    known = name in vars(module) or not hasattr(module, name)
    if not known or not may_replace(value, before) or name in vars(nn.Module()):
        where, kind = f"{place}.{name}".strip("."), type(module).__name__
        raise ValueError(f"{where} is no number or text of a {kind} that this value could be set for")
    setattr(module, name, value if isinstance(before, list) else with_tuples(value))


def _tie(model: nn.Module, groups: Iterable[Iterable[str]]) -> None:
    """Let one tensor stand under all the names of each group: the first one's."""
    tensors = dict(_named_tensors(model))
    for group in groups:
        first, *others = group
        for name in (first, *others):
            if name not in tensors or tensors[name].shape != tensors[first].shape:
                raise ValueError(f"{name} cannot be tied to {first}: no weights of one shape")
            path, _, key = name.rpartition(".")
            module = model.get_submodule(path)
            (module._parameters if key in module._parameters else module._buffers)[key] = tensors[first]


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """`model` with these weights, of their types; what no file holds takes the type that they have in common."""
    dtype = _common_dtype(tensors.values())
    if dtype is not None:
        model.to(dtype)
    for name, tensor in _named_tensors(model):
        if name in tensors:
            tensor.data = tensor.data.to(tensors[name].dtype)
    _load(model, tensors, assign=False)
    return model


def _load(model: nn.Module, tensors: Mapping[str, Tensor], assign: bool) -> None:
    try:
        model.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        raise Misfit(" ".join([line.strip() for line in str(error).splitlines()][1:2])) from None


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _common_dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The type of all tensors of real numbers; None where they have several."""
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


@contextmanager
def _no_more_than(tensors: int) -> Iterator[None]:
    """Stop the building of a model that has far more layers than a file has tensors, before the memory is full."""
    thread, left = threading.get_ident(), [4 * tensors + 1_000, 32 * tensors + 10_000]

    def count(which: int) -> None:
        if threading.get_ident() == thread:
            left[which] -= 1
            if left[which] < 0:
                raise ValueError(f"it describes a far larger network than the {tensors} tensors of the file fill")

    hooks = [
        register_module_parameter_registration_hook(lambda module, name, parameter: count(0)),
        register_module_module_registration_hook(lambda module, name, child: count(1)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_tuples(entry: Any) -> Any:
    """An entry of the surgery's table, its options as they were given."""
    if not isinstance(entry, dict) or not isinstance(entry.get("options"), dict):
        raise ValueError(f"entry {entry} of the surgery is damaged")
    return {**entry, "options": with_tuples(entry["options"])}
