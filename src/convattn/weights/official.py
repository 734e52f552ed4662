"""The authors' checkpoints: into our models, and our models back under the authors' names."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from timm.models import adapt_input_conv
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from convattn.weights.cotnet import COTNET_NAMES
from convattn.weights.groupmixformer import GROUPMIXFORMER_NAMES
from convattn.weights.head_rows import imagenet_22k_rows
from convattn.weights.nextvit import nextvit_names
from convattn.weights.read import CheckpointError, read_state_dict, unwrap_state_dict
from convattn.weights.rename import NameMap
from convattn.weights.smt import SMT_NAMES

__all__ = ["Conversion", "convert_official", "load_adapted", "load_official", "to_official"]

# By a model's `family`: its map, or what makes the map for a model where it depends on the variant.
NAME_MAPS: Mapping[str, NameMap | Callable[[nn.Module], NameMap]] = {
    "cotnet": COTNET_NAMES,
    "groupmixformer": GROUPMIXFORMER_NAMES,
    "nextvit": nextvit_names,
    "smt": SMT_NAMES,
}


@dataclass
class Conversion:
    """An official state dict sorted by what fits the model and what does not, under our names."""

    fits: dict[str, Tensor] = field(default_factory=dict)
    mismatched: dict[str, Tensor] = field(default_factory=dict)  # as in the file; the model's has another shape
    unexpected: dict[str, Tensor] = field(default_factory=dict)  # not in the model; the authors' name if unknown
    missing: dict[str, Tensor] = field(default_factory=dict)  # as in the model; not in the file
    unused: dict[str, Tensor] = field(default_factory=dict)  # in the file, but the authors' own code never reads it
    mapped_22k: list[str] = field(default_factory=list)  # of 21,841 classes, of which the 1,000 were taken

    def problems(self, model: nn.Module, besides: str | tuple[str, ...] = ()) -> list[str]:
        """One phrase with name and shape for everything that did not fit, but for names that start with `besides`."""
        model_shape = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {
            **{k: f"{k} is {tuple(t.shape)} in the file, {model_shape[k]} here" for k, t in self.mismatched.items()},
            **{k: f"{k} {tuple(t.shape)} is missing in the file" for k, t in self.missing.items()},
            **{k: f"{k} {tuple(t.shape)} is in the file, not here" for k, t in self.unexpected.items()},
        }
        return [phrase for name, phrase in found.items() if not (besides and name.startswith(besides))]


def load_official(model: nn.Module, path_or_state_dict: str | Path | Mapping, *, strict: bool = True) -> nn.Module:
    """Load a checkpoint in the authors' names into `model`, in place, and return it.

    A 21,841-class ImageNet-22k head is mapped onto a 1,000-class model by the rows of the 1k classes. A file already in
    our names is taken too.

    Args:
        model: a model of a family with an official checkpoint, or its `features_only` form.
        path_or_state_dict: the authors' file, or what was read from it.
        strict: raise unless every entry of the file and of the model met its counterpart. With False everything that
            fits is loaded, and one warning lists by name and shape what did not.

    Raises:
        CheckpointError: if the file cannot be read safely, or (strict) something does not fit; the model is unchanged.
    """
    if isinstance(model, FeatureGetterNet):
        model = model.model
    if isinstance(path_or_state_dict, Mapping):
        state, source = unwrap_state_dict(path_or_state_dict), "state dict"
    else:
        state, source = read_state_dict(path_or_state_dict), str(path_or_state_dict)
    conversion = _convert_or_raise(state, model, source)
    problems = conversion.problems(model)
    if problems and strict:
        raise CheckpointError(_misfit(source, model, problems) + "; load what fits with strict=False")
    if problems:
        warnings.warn(f"{source}: left out of {_describe(model)}: {'; '.join(problems)}", stacklevel=2)
    if conversion.unused:
        names = ", ".join(conversion.unused)
        warnings.warn(f"{source}: left out, because the authors' code never reads it: {names}", stacklevel=2)
    model.load_state_dict(conversion.fits, strict=False)
    return model


def load_adapted(
    model: nn.Module, state: Mapping[str, Tensor], source: str, *, first_conv: str, classifier: str
) -> None:
    """Load an official state dict as `pretrained=True` means it: the first kernel and the classifier may differ.

    A kernel for another number of image channels is summed or repeated by timm's rule; a classifier for another number
    of classes stays as it was initialised (an ImageNet-22k head is mapped onto 1,000 classes). `source` is what to call
    the state dict in an error.

    Raises:
        CheckpointError: if anything else in it or in the model lacks a counterpart.
    """
    conversion = _convert_or_raise(state, model, source)
    kernel = f"{first_conv}.weight"
    problems = conversion.problems(model, besides=(kernel, f"{classifier}."))
    if problems:
        raise CheckpointError(_misfit(source, model, problems))
    fits = dict(conversion.fits)
    if kernel in conversion.mismatched:
        fits[kernel] = adapt_input_conv(model.get_parameter(kernel).shape[1], conversion.mismatched[kernel])
    model.load_state_dict(fits, strict=False)


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The weights of `model` under the authors' names, for their code to load.

    Raises:
        CheckpointError: if a weight has no counterpart there (an option of ours, an inserted block).
    """
    names = _name_map(model)
    state = dict(names.unused)
    for name, tensor in model.state_dict().items():
        official = names.to_theirs(name)
        if official is None:
            raise CheckpointError(f"{name} of {_describe(model)} has no counterpart in the authors' model")
        state[official] = tensor
    return state


def to_our_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """An official state dict under our names, whatever fits; names without counterpart are kept."""
    names = _name_map(model)
    ours = model.state_dict().keys()
    return {(name if name in ours else names.to_ours(name) or name): tensor for name, tensor in state.items()}


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> Conversion:
    """Sort an official state dict into what fits `model` and what does not. Nothing is loaded."""
    target = model.state_dict()
    unused = _name_map(model).unused
    conversion = Conversion()
    for name, tensor in to_our_names(state, model).items():
        if name in unused:
            conversion.unused[name] = tensor
        elif name not in target:
            conversion.unexpected[name] = tensor
        elif target[name].shape == tensor.shape:
            conversion.fits[name] = tensor
        elif tensor.shape[:1] == (21841,) and target[name].shape == (1000, *tensor.shape[1:]):
            conversion.fits[name] = tensor[imagenet_22k_rows()]
            conversion.mapped_22k.append(name)
        else:
            conversion.mismatched[name] = tensor
    met = conversion.fits.keys() | conversion.mismatched.keys()
    conversion.missing = {name: tensor for name, tensor in target.items() if name not in met}
    return conversion


def _convert_or_raise(state: Mapping[str, Tensor], model: nn.Module, source: str) -> Conversion:
    conversion = convert_official(state, model)
    if not conversion.fits:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(f"{source}: not a checkpoint of {_describe(model)}: its entries are {first}, …")
    return conversion


def _name_map(model: nn.Module) -> NameMap:
    family = getattr(model, "family", None) or "none"
    if family not in NAME_MAPS:
        raise CheckpointError(f"{type(model).__name__} has no official checkpoint; families: {', '.join(NAME_MAPS)}")
    names = NAME_MAPS[family]
    return names if isinstance(names, NameMap) else names(model)


def _describe(model: nn.Module) -> str:
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", type(model).__name__)
    return f"{architecture} ({getattr(model, 'num_classes', 0)} classes)"


def _misfit(source: str, model: nn.Module, problems: list[str], most: int = 12) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return f"{source}: does not fit {_describe(model)}: {'; '.join(problems[:most])}{more}"
