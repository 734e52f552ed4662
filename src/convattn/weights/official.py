"""The authors' names in checkpoints: what of a state dict fits our models, and our models back under those names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Size, Tensor, nn

from convattn.ops.linear import Linear2d, is_of_linear
from convattn.weights.cotnet import COTNET_NAMES
from convattn.weights.groupmixformer import GROUPMIXFORMER_NAMES
from convattn.weights.nextvit import nextvit_names
from convattn.weights.read import CheckpointError
from convattn.weights.rename import NameMap
from convattn.weights.smt import SMT_NAMES

__all__ = [
    "NAME_MAPS",
    "Conversion",
    "convert_official",
    "name_map",
    "shapes_by_name",
    "stand_twice",
    "to_official",
    "to_our_names",
    "unwrap_model",
]

# By a model's `family`: its map, or what makes the map for a model where it depends on the variant.
NAME_MAPS: Mapping[str, NameMap | Callable[[nn.Module], NameMap]] = {
    "cotnet": COTNET_NAMES,
    "groupmixformer": GROUPMIXFORMER_NAMES,
    "nextvit": nextvit_names,
    "smt": SMT_NAMES,
}

_OWN_NAMES = NameMap({})  # of a family whose authors released no files
_COUNTER = ".num_batches_tracked"  # missing in old and in converted files, and read by nothing


@dataclass
class Conversion:
    """A state dict sorted by what fits the model and what does not, under our names."""

    fits: dict[str, Tensor] = field(default_factory=dict)
    mismatched: dict[str, Tensor] = field(default_factory=dict)  # as in the file; the model's is of another kind
    unexpected: dict[str, Tensor] = field(default_factory=dict)  # not in the model; the authors' name if unknown
    missing: dict[str, Tensor] = field(default_factory=dict)  # as in the model; not in the file
    unused: dict[str, Tensor] = field(default_factory=dict)  # in the file, but the authors' own code never reads it

    def problems(self, model: nn.Module) -> list[str]:
        """One phrase with name and shape for everything that did not fit."""
        target = model.state_dict() if self.mismatched else {}
        return [
            *(
                f"{k} is {_kind(t, target[k])} in the file, {_kind(target[k], t)} here"
                for k, t in self.mismatched.items()
            ),
            *(f"{k} {tuple(t.shape)} is missing in the file" for k, t in self.missing.items()),
            *(f"{k} {tuple(t.shape)} is in the file, not here" for k, t in self.unexpected.items()),
        ]


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The weights of `model` under the authors' names, for their code to load.

    Raises:
        CheckpointError: if a weight has no counterpart there (an option of ours, an inserted block), or the authors
            released no files.
    """
    model = unwrap_model(model)
    names = name_map(model)
    if names is _OWN_NAMES:
        raise CheckpointError(f"{type(model).__name__} has no official checkpoint; families: {', '.join(NAME_MAPS)}")
    state = dict(names.unused)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear2d)}
    for name, tensor in model.state_dict().items():
        official = names.to_theirs(name)
        if official is None:
            raise CheckpointError(f"{name} of {describe(model)} has no counterpart in the authors' model")
        state[official] = tensor.flatten(1) if name in linear else tensor
    second = {names.second_of(name): tensor for name, tensor in state.items()}
    return state | {name: tensor for name, tensor in second.items() if name is not None}


def to_our_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict under our names, whatever fits; names without counterpart, or for what is there twice, are kept."""
    names = name_map(model)
    if names.older and names.older.wrote(state):
        state = names.older.renew(state)
    ours = model.state_dict().keys()
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        own = name if name in ours or names.first_of(name) in state else names.to_ours(name) or name
        found[name if own in found or own in state else own] = tensor
    return found


def stand_twice(state: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """The entries of a state dict under our names that are copies: what the authors' files hold in two places."""
    names = name_map(model)
    seconds = {name: state.get(names.to_ours(name) or "") for name in state if names.first_of(name) is not None}
    return [
        name
        for name, first in seconds.items()
        if first is not None and first.shape == state[name].shape and not first.is_meta
        if torch.equal(first, state[name])
    ]


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> Conversion:
    """Sort a state dict into what fits `model` and what does not. Nothing is loaded."""
    target = model.state_dict()
    names = name_map(model)
    conversion = Conversion()
    for name, tensor in to_our_names(state, model).items():
        if name in target and is_of_linear(tensor.shape, target[name].shape) and tensor.layout == torch.strided:
            tensor = tensor[:, :, None, None]
        if name in names.unused or name.startswith(names.no_weights):
            conversion.unused[name] = tensor
        elif name not in target:
            conversion.unexpected[name] = tensor
        elif _fits(tensor, target[name]):
            conversion.fits[name] = tensor
        else:
            conversion.mismatched[name] = tensor
    met = conversion.fits.keys() | conversion.mismatched.keys()
    conversion.missing = {
        name: tensor for name, tensor in target.items() if name not in met and not name.endswith(_COUNTER)
    }
    return conversion


def shapes_by_name(model: nn.Module) -> dict[str, Size]:
    """The shapes of the entries of `model`, under each of the names that a file may have for them, of any form."""
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shapes = dict(own)
    for names in forms_of(model).values() or [name_map(model)]:
        for name, shape in own.items():
            theirs = names.to_theirs(name)
            if theirs is not None:
                spellings = [theirs, *(theirs.replace(ours, alias) for alias, ours in names.aliases.items())]
                for spelling in (*spellings, names.second_of(theirs) or theirs):
                    shapes.setdefault(spelling, shape)
    return shapes


def forms_of(model: nn.Module) -> Mapping[str, NameMap]:
    """Of a model whose authors' names differ by form: the option that builds each -> its names, its own first."""
    forms: Mapping[str, NameMap] | None = getattr(model, "official_forms", None)
    return forms or {}


def name_map(model: nn.Module) -> NameMap:
    """The names of the authors' files for a model: of its family, or what its `official_names` says.

    A network that is made of parts, such as a segmenter, says it so: see `convattn.weights.rename.joined_names`.
    """
    stated: Any = getattr(model, "official_names", None)
    if isinstance(stated, NameMap):
        return stated
    names = NAME_MAPS.get(getattr(model, "family", None) or "", _OWN_NAMES)
    return names if isinstance(names, NameMap) else names(model)


def is_behind(name: str, model: nn.Module) -> bool:
    """Whether an entry that `model` lacks may be of what was taken off its end: a later level, or what follows all.

    What is inside a level that is there, or one more than the model ever had, is of another, deeper model.
    """
    names = name_map(model)
    if names.parts:
        return any(_is_behind_part(name, part.ours, model) for part in names.parts)
    if names is not _OWN_NAMES and names.to_theirs(name) is None:
        return False
    info = getattr(model, "feature_info", None) or ()
    levels = info.module_name() if hasattr(info, "module_name") else [level["module"] for level in info]
    there = {place for place, module in model.named_modules() if next(module.parameters(), None) is not None}
    places = accumulate(name.split(".")[:-1], "{}.{}".format)
    around, _, number = next((place for place in places if place not in there), "a.module").rpartition(".")
    beside = [level.removeprefix(f"{around}.") for level in levels if level.startswith(f"{around}.")]
    last = max((int(level) for level in beside if level.isdecimal()), default=-1)
    return not around or (number.isdecimal() and int(number) <= last)


def _is_behind_part(name: str, part: str, model: nn.Module) -> bool:
    """The same of a part of a network that gives levels: a backbone."""
    inner = model.get_submodule(part)
    return name.startswith(f"{part}.") and hasattr(inner, "feature_info") and is_behind(name[len(part) + 1 :], inner)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model in a compiled, parallel or averaged one, or in timm's wrapper of its levels."""
    while True:
        children = dict(model.named_children())
        inner = next((children[name] for name in ("_orig_mod", "module", "model") if [*children] == [name]), None)
        if inner is None or next(model.parameters(recurse=False), None) is not None:
            return model
        model = inner


def describe(model: nn.Module) -> str:
    """The name of a model's architecture, and how many classes it has."""
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)
    return f"{architecture} ({getattr(model, 'num_classes', 0)} classes)"


def _fits(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor of a file can be copied into the model's without becoming something else."""
    if tensor.shape != target.shape or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        return False
    if tensor.is_meta and not target.is_meta:
        return False
    return tensor.is_floating_point() or not target.is_floating_point()


def _kind(tensor: Tensor, other: Tensor) -> Any:
    """What is another about a tensor than about `other`, in a word: its shape, or else its type."""
    if tensor.shape != other.shape:
        return tuple(tensor.shape)
    if tensor.is_meta and not other.is_meta:
        return "without numbers"
    kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)
    return kind.removeprefix("torch.")
