"""Finding a model's weights in a checkpoint, whatever stands around them.

Scripts put weights into dictionaries (`model`, `state_dict_ema`, …) and prefixes in front of their names (`module.`,
`backbone.module.`, …), in any order and number, often beside other things. None of these words is looked for: what is
looked for is the part whose names and shapes are the model's.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Size, Tensor

from convattn.ops.linear import is_of_linear
from convattn.shown import brief
from convattn.weights.read import dictionaries, is_averaged, is_state, unwrap_state_dict

__all__ = ["Part", "find_weights"]

_LEAST = 0.2  # of the names of the model or of the file, for a part to be the model's
_COUNTER = "num_batches_tracked"  # of a batch norm: missing in old and in converted files, and read by nothing


@dataclass(frozen=True)
class Part:
    """The part of a checkpoint that is a model's."""

    state: dict[str, Tensor]  # without the prefix
    place: str = ""  # where it stood: the names of the dictionaries and the prefix, joined by points
    others: list[str] = field(default_factory=list)  # places of further copies of such weights
    beside: dict[str, Tensor] = field(default_factory=dict)  # what else stood in the same dictionary, by its whole name

    @property
    def notes(self) -> list[str]:
        """What was chosen and what was left, in a few words."""
        place, said = _named(self.place), []
        if self.others:
            kind = "averaged weights " if is_averaged(self.place.split(".")) else ""
            said.append(f"{kind}{place} taken, left {', '.join(map(_named, self.others))}")
        if self.beside:
            parts = Counter(name.partition(".")[0] for name in self.beside)
            left = brief((f"{part} ({count})" for part, count in parts.items()), 3)
            said.append(f"{place} taken, left what is beside it: {left}")
        return said


def find_weights(content: Any, shapes: Mapping[str, Size], name: str = "checkpoint") -> Part:
    """The part of a checkpoint whose names and shapes agree most with a model's; averaged weights among equals.

    Where nothing in it is the model's, that is the largest dictionary. `shapes` are those of the model's entries, under
    every name that they may have; CheckpointError, with `name`, if there are no tensors.
    """
    candidates = []
    for place, tensors in dictionaries(content):
        known, fitting = _prefixes(tensors, shapes)
        for prefix, count in known.items():
            words = (*place, *filter(None, prefix.split(".")))
            if is_state(words):
                continue
            candidates.append((fitting[prefix], count, is_averaged(words), -len(prefix), words, tensors, prefix))
    best = max(candidates, key=lambda candidate: candidate[:4], default=None)
    if best is None or best[1] < _LEAST * min(len(shapes), len(best[5])):
        return Part(unwrap_state_dict(content, name=name))
    _, count, _, _, words, tensors, prefix = best
    state = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    alike = [other for other in candidates if other is not best and other[1] >= count / 2]
    taken = (prefix, *(other[6] for other in alike if other[5] is tensors and other[6]))
    beside = {key: tensor for key, tensor in tensors.items() if not key.startswith(taken) and not _is_counter(tensor)}
    return Part(state, ".".join(words), [".".join(other[4]) for other in alike], beside)


def _prefixes(tensors: Mapping[str, Tensor], shapes: Mapping[str, Size]) -> tuple[Counter[str], Counter[str]]:
    """Prefix -> how many names behind it are the model's, and how many of those have its shape."""
    known: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for name, tensor in tensors.items():
        if name.endswith(_COUNTER):
            continue
        start = 0
        while True:
            shape = shapes.get(name[start:])
            if shape is not None:
                known[name[:start]] += 1
                fitting[name[:start]] += shape == tensor.shape or is_of_linear(tensor.shape, shape)
            point = name.find(".", start)
            if point < 0:
                break
            start = point + 1
    return known, fitting


def _named(place: str) -> str:
    return place or "the one without a prefix"


def _is_counter(tensor: Tensor) -> bool:
    return tensor.ndim == 0 and not tensor.is_floating_point()
