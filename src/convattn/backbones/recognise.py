"""Finding out which model an authors' checkpoint is of, from the names and shapes in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convattn.backbones.registry import create_model, list_families
from convattn.weights.official import NAME_MAPS, convert_official, to_our_names
from convattn.weights.read import CheckpointError

__all__ = ["Recognised", "recognise"]


@dataclass(frozen=True)
class Recognised:
    """The model that a state dict fits without remainder."""

    name: str
    options: Mapping[str, Any]  # where it differs from what `create_model(name)` builds

    def build(self) -> nn.Module:
        """The model, with fresh weights."""
        return create_model(self.name, **self.options)


def recognise(state: Mapping[str, Tensor], source: str = "checkpoint") -> Recognised:
    """Which model, with which options, takes every entry of an official state dict and misses none.

    Where several do, because options can turn one variant of a family into another, the one that needs the fewest.

    Args:
        state: names (the authors' or ours) -> weights.
        source: what to call it in an error.

    Raises:
        CheckpointError: if no model fits; names the closest one and what stands in the way.
    """
    attempts = []
    fits: list[Recognised] = []
    for name in _candidates(state):
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
    count, name, problems = min(attempts, default=(len(state), "", []))
    if count >= len(state):
        raise CheckpointError(
            f"{source}: not a checkpoint of any family here; its entries are {', '.join([*state][:3])}, …"
        )
    raise CheckpointError(
        f"{source}: fits no model; the closest is {name}, but {'; '.join(problems[:3])} ({count} in all)"
    )


def _candidates(state: Mapping[str, Tensor]) -> list[str]:
    """Models of the families that know a good part of the names; one model a family tells, as building takes time."""
    candidates = []
    for family, names in list_families().items():
        if family in NAME_MAPS:
            model = _on_meta(names[-1], {})
            own = model.state_dict().keys()
            known = sum(name in own for name in to_our_names(state, model))
            if known > 0.2 * min(len(own), len(state)):
                candidates += names
    return candidates


def _options(ours: Mapping[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """What the shapes of a state dict say about the options of `model`, where they differ from its own."""
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    classifier, kernel = ours.get(f"{cfg['classifier']}.weight"), ours.get(f"{cfg['first_conv']}.weight")
    found = {"num_classes": 0 if classifier is None else len(classifier)}
    if kernel is not None:
        found["in_chans"] = kernel.shape[1]
    own = {"num_classes": model.num_classes, "in_chans": model.get_parameter(f"{cfg['first_conv']}.weight").shape[1]}
    different = {key: value for key, value in found.items() if value != own[key]}
    infer = getattr(model, "infer_options", None)
    return different | (infer(ours) if infer else {})


def _on_meta(name: str, options: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)
