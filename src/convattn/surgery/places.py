"""Where a block can be put: behind stages, blocks, projections to q, k and v, or modules that the caller names."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from convattn.backbones.levels import described_levels
from convattn.mixers.registry import is_gate_module
from convattn.nearest import nearest
from convattn.sizes import Size
from convattn.surgery.attentions import plain_class, projected_maps
from convattn.surgery.trace import Call, greedy_containers, trace
from convattn.walk import names_of

__all__ = ["Place", "Where", "find_places", "is_part_of_surgery", "weighted_layers"]

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Place:
    """A module whose output is a map; a projection may give several, side by side."""

    name: str  # dotted
    channels: int  # of one map
    layout: str  # "NCHW", "NHWC" or "tokens"


def find_places(model: nn.Module, where: Where, input_size: Size | None = None) -> list[Place]:
    """The modules that `where` means, each running once and giving a map.

    Args:
        model: any model of images; it is left as it is.
        where: "stages", "blocks", "qkv", names of modules, or a choice `(name, module) -> bool`. Where a stage would
            run a block put in it as one of its own, as a DenseNet's do, the module behind it is meant.
        input_size: what to trace with, as in `trace`.

    Raises:
        ValueError: if there is no such place, or its output is no map.
    """
    calls = {name: call for name, call in trace(model, input_size).items() if name}
    own = {name: call for name, call in calls.items() if not is_part_of_surgery(model, name)}
    if isinstance(where, str):
        names = _by_word(model, where, own)
        greedy = greedy_containers(model, names, input_size)
        names = [*dict.fromkeys(_next(name, own) if name in greedy else name for name in names)]
    elif callable(where):
        named = names_of(model).items()
        names = [known[0] for module, known in named if known[0] in own and any(where(name, module) for name in known)]
        if not names:
            raise ValueError(f"the function given as where chose none of the {len(own)} modules that run")
    else:
        names = list(where) if isinstance(where, Iterable) else [where]
        if not names:
            raise ValueError("where is an empty list; name at least one module")
        if other := next((type(name).__name__ for name in names if not isinstance(name, str)), None):
            raise ValueError(f"where holds a {other}; give stages, blocks, qkv, names of modules or a function")
        first = {name: names[0] for names in names_of(model).values() for name in names}
        names = [first.get(name, name) for name in names]
    names = [_last_inside(model, name, own) for name in names]
    places = [_check(model, name, own) for name in names]
    for name in greedy_containers(model, names, input_size):
        raise ValueError(
            f"{name} runs whatever is registered in it, so no block can be; name modules behind it in where=[…]"
        )
    return places


def _next(name: str, calls: dict[str, Call]) -> str:
    """The module that runs behind `name` beside it and gives a map, as a DenseNet's transition; else `name` itself."""
    parent, order = name.rpartition(".")[0], list(calls)
    behind = order[order.index(name) + 1 :] if name in calls else []
    siblings = (other for other in behind if other.rpartition(".")[0] == parent)
    follower = next(siblings, name)
    return follower if calls.get(follower) and calls[follower].is_map else name


def _by_word(model: nn.Module, where: str, calls: dict[str, Call]) -> list[str]:
    inside = projected_maps(model)
    outside = {name: call for name, call in calls.items() if name not in inside}
    if where == "qkv":
        names = [name for name in inside if name in calls]
        hint = "known are the attentions of timm's PVTv2 and Swin"
    elif where in ("stages", "blocks"):
        names = _stages(model, outside) if where == "stages" else _blocks(model, outside)
        hint = "name the modules in where=[…]"
    else:
        raise ValueError(f"where {where!r} is unknown; choose stages, blocks, qkv, a list of names or a function")
    if not names:
        raise ValueError(f"{type(model).__name__} has no {where} that can be found; {hint}")
    return names


def is_part_of_surgery(model: nn.Module, name: str) -> bool:
    """Whether `name` lies in what an earlier operation put in."""
    module: Any = model
    for part in name.split("."):
        module = getattr(module, part, None)
        if getattr(module, "is_inserted", False):
            return True
    return False


def weighted_layers(module: nn.Module) -> int:
    """How many layers with a weight matrix or kernel it holds."""
    return sum(parameter.ndim >= 2 for parameter in module.parameters())


def _check(model: nn.Module, name: str, calls: dict[str, Call]) -> Place:
    modules = {known for known, _ in model.named_modules() if known}
    if name not in modules:
        raise ValueError(f"{type(model).__name__} has no module {name!r}; {nearest(name, modules)}")
    call = calls.get(name)
    if call is None:
        raise ValueError(f"{name} does not run by itself in a forward pass; {nearest(name, calls)}")
    if call.times != 1:
        raise ValueError(f"{name} runs {call.times} times in a forward pass; choose a module that runs once")
    if (maps := projected_maps(model).get(name)) is not None:
        return Place(name, call.shape[-1] // maps, "NHWC")
    if not call.is_map:
        raise ValueError(
            f"the output of {name} has shape {call.shape}, not that of a map (B, C, H, W); choose another module"
        )
    return Place(name, call.channels, call.layout)


def _last_inside(model: nn.Module, name: str, calls: dict[str, Call]) -> str:
    """The last block of a sequence: it gives the same map, and runs too where blocks are called one by one.

    (timm does so under gradient checkpointing, and anyone may who walks a sequence.)
    """
    modules, names = dict(model.named_modules()), names_of(model)
    while name in modules and type(modules[name]).forward is nn.Sequential.forward and len(modules[name]._modules):
        last = list(modules[name]._modules)[-1]
        inside = modules[name]._modules[last]
        assert inside is not None  # it would not run
        first = names[inside][0]
        if first in calls and calls[first].times > 1:
            break  # it stands elsewhere too
        if type(inside).__module__.startswith("torch.nn.") and not isinstance(inside, nn.Sequential):
            break  # a bare layer: symbolic tracing would pass over what hangs on it
        name = first
    return name


# Stages: the model's own description, else groups of a sequence, else groups between changes of size


def _stages(model: nn.Module, calls: dict[str, Call]) -> list[str]:
    names = [row["module"] for row in described_levels(model) if row["module"] in calls]
    names = names or [n for n in ("layer1", "layer2", "layer3", "layer4") if n in calls]
    if not names and isinstance(getattr(model, "features", None), nn.Sequential):
        names = _groups_by_width(model, calls)
    return _without_stem(model, names or _groups_by_size(model, calls))


def _groups_by_width(model: nn.Module, calls: dict[str, Call]) -> list[str]:
    """The last of each run of equally wide parts of `features`; single layers at both ends are stem and head."""
    groups: list[tuple[int, list[str]]] = []
    for part in model.features._modules:  # type: ignore[union-attr]
        call = calls.get(f"features.{part}")
        if call is None or not call.is_map:
            continue
        if not groups or groups[-1][0] != call.channels:
            groups.append((call.channels, []))
        groups[-1][1].append(call.name)
    return [names[-1] for _, names in groups if max(weighted_layers(model.get_submodule(name)) for name in names) > 1]


def _without_stem(model: nn.Module, names: list[str]) -> list[str]:
    """Without the single layers in front of the first part that has more than one."""
    is_single = [weighted_layers(model.get_submodule(name)) <= 1 for name in names]
    return names if all(is_single) else names[is_single.index(False) :]


def _groups_by_size(model: nn.Module, calls: dict[str, Call]) -> list[str]:
    """The last part that runs before each change of size, as long as sizes shrink."""
    last_of_size: dict[tuple[int, int], str] = {}
    smallest: tuple[int, int] | None = None
    for name in _parts(model, "", calls):
        call = calls[name]
        if not call.is_map:
            continue
        if smallest is not None and call.size > smallest:
            break  # pooled to a fixed grid, or on the way up again
        smallest = call.size
        learns = any(True for _ in model.get_submodule(name).parameters())
        if call.times == 1 and (learns or call.size in last_of_size):  # a pool alone is no stage
            last_of_size[call.size] = name
    return list(last_of_size.values())


def _parts(model: nn.Module, prefix: str, calls: dict[str, Call]) -> list[str]:
    """The units that run one after another: the children, those opened that span several sizes."""
    depth = prefix.count(".") + 1 if prefix else 0
    inside = [name for name in calls if not prefix or name.startswith(f"{prefix}.")]
    outermost: list[str] = []
    for name in inside:
        parts = name.split(".")
        ancestors = (".".join(parts[:end]) for end in range(depth + 1, len(parts)))
        if not any(ancestor in calls for ancestor in ancestors):
            outermost.append(name)
    found = []
    for name in outermost:
        sizes = {call.size for n, call in calls.items() if n.startswith(f"{name}.") and call.is_map}
        is_sequence = type(model.get_submodule(name)).forward is nn.Sequential.forward
        found += _parts(model, name, calls) if len(sizes) > (1 if is_sequence else 2) else [name]
    return found


# Blocks: the outermost repeated units of more than one layer


def _blocks(model: nn.Module, calls: dict[str, Call]) -> list[str]:
    units = {
        name: plain_class(module)
        for name, module in model.named_modules()
        if name in calls
        and len(calls[name].shape) >= 3
        and type(module).forward is not nn.Sequential.forward
        and weighted_layers(module) > 1
        and not is_gate_module(module)  # of a network that has gates behind its blocks already
    }
    # What holds several units of one kind is a stage, and so is every module of its class.
    stages = {kind for name, kind in units.items() if _holds_several(name, units, calls)}
    outermost: list[str] = []
    for name, kind in units.items():  # parents before children
        if kind not in stages and not any(name.startswith(f"{other}.") for other in outermost):
            outermost.append(name)
    # Blocks stand in a row; a stem or a downsampling layer stands alone in its parent.
    siblings = Counter((name.rpartition(".")[0], units[name]) for name in outermost)
    rows = {(type(model.get_submodule(parent)), kind) for (parent, kind), count in siblings.items() if count > 1}
    containers = (nn.Sequential, nn.ModuleList)

    def in_a_row(name: str) -> bool:
        parent = model.get_submodule(name.rpartition(".")[0])
        return isinstance(parent, containers) or (type(parent), units[name]) in rows

    return [name for name in outermost if in_a_row(name)]


def _holds_several(name: str, units: dict[str, type], calls: dict[str, Call]) -> bool:
    """Whether it holds several units of one kind that give maps like its own, or maps of three sizes or more."""
    inside = [other for other in units if other.startswith(f"{name}.")]
    alike = Counter(units[other] for other in inside if _width_and_size(calls[other]) == _width_and_size(calls[name]))
    sizes = {calls[other].size for other in inside if calls[other].is_map}
    return max(alike.values(), default=0) > 1 or len(sizes) > 2


def _width_and_size(call: Call) -> tuple[int, ...]:
    return (call.channels, *call.size) if call.is_map else call.shape
