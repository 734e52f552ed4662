"""Finding out which model an authors' checkpoint is of, from the names and shapes in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convattn.backbones.registry import create_model, inferred_options, list_families
from convattn.weights.find import find_weights
from convattn.weights.official import NAME_MAPS, convert_official, shapes_by_name, to_our_names
from convattn.weights.read import CheckpointError, unwrap_state_dict

__all__ = ["Recognised", "recognise"]


@dataclass(frozen=True)
class Recognised:
    """The model that a state dict fits without remainder."""

    name: str
    options: Mapping[str, Any]  # where it differs from what `create_model(name)` builds

    def build(self) -> nn.Module:
        """The model, with fresh weights."""
        return create_model(self.name, **self.options)


def recognise(content: Any, source: str = "checkpoint") -> Recognised:
    """Which model, with which options, takes every entry of a checkpoint and misses none.

    Where several do, because options can turn one variant of a family into another, the one that needs the fewest.

    Args:
        content: what was read: weights by name (the authors' or ours), with whatever stands around them.
        source: what to call it in an error.

    Raises:
        CheckpointError: if no model fits; names the closest one and what stands in the way.
    """
    attempts = []
    fits: list[Recognised] = []
    for name, state in _candidates(content, source):
        model = _on_meta(name, {})
        options = _options(to_our_names(state, model), model)
        if options:
            try:
                model = _on_meta(name, options)
            except ValueError as error:  # what the file's shapes say is no model of this family
                attempts.append((len(state), name, [str(error)]))
                continue
        problems = convert_official(state, model).problems(model)
        if not problems:
            fits.append(Recognised(name, options))
            if not options:
                break
        attempts.append((len(problems), name, problems))
    if fits:
        return min(fits, key=lambda found: len(found.options))
    if not attempts:
        first = ", ".join([*unwrap_state_dict(content, name=source)][:3])
        raise CheckpointError(f"{source}: not a checkpoint of any family here; its entries are {first}, …")
    count, name, problems = min(attempts)
    raise CheckpointError(
        f"{source}: fits no model; the closest is {name}, but {'; '.join(problems[:3])} ({count} in all)"
    )


def _candidates(content: Any, source: str) -> list[tuple[str, dict[str, Tensor]]]:
    """Models of the families that know a good part of the names, with the part of the checkpoint that is theirs.

    One model a family tells, as building takes time.
    """
    candidates = []
    for family, names in list_families().items():
        # those without files of the authors gate networks of more than one kind
        for name in (names[-1],) if family in NAME_MAPS else (names[-1], names[0]):
            model = _on_meta(name, {})
            own = model.state_dict().keys()
            state = find_weights(content, shapes_by_name(model), source).state
            known = sum(name in own for name in to_our_names(state, model))
            if known > 0.2 * min(len(own), len(state)):
                candidates += [(name, state) for name in names]
                break
    return candidates


def _options(ours: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """What the shapes of a state dict say about the options of `model`, where they differ from its own."""
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    classifier, kernel = ours.get(f"{cfg['classifier']}.weight"), ours.get(f"{cfg['first_conv']}.weight")
    found = {"num_classes": len(classifier) if classifier is not None and classifier.ndim else 0}
    if kernel is not None and kernel.ndim > 1:
        found["in_chans"] = kernel.shape[1]
    own = {"num_classes": model.num_classes, "in_chans": model.get_parameter(f"{cfg['first_conv']}.weight").shape[1]}
    different = {key: value for key, value in found.items() if value != own[key]}
    return different | inferred_options(ours, model)


def _on_meta(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A model without numbers; it is only looked at."""
    if not options:
        return _variant(name)
    with torch.device("meta"), _Uninitialised():
        return create_model(name, **options)


@cache
def _variant(name: str) -> nn.Module:
    with torch.device("meta"), _Uninitialised():
        return create_model(name)


class _Uninitialised(TorchFunctionMode):
    """Nothing is written in place: tensors without numbers have nothing to draw, which takes most of the time."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        writes = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if writes and isinstance(args[0] if args else None, Tensor) and args[0].is_meta:
            return args[0]
        return function(*args, **(kwargs or {}))
