"""Translating the names in a state dict by a table, in both directions."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

__all__ = ["SAME_NAMES", "NameMap", "Older", "Part", "joined_names"]

_SLOT = re.compile(r"\{(\w+)(\+1)?\}")


class Older(NamedTuple):
    """What files of an older version of the authors' code hold otherwise."""

    name: str  # of the version
    differs: str  # how, in a few words
    wrote: Callable[[Mapping[str, Any]], bool]  # a state dict
    renew: Callable[[Mapping[str, Any]], dict[str, Any]]  # into one of the present version


@dataclass(frozen=True)
class NameMap:
    """The names of a family's modules here and in the authors' files.

    A row pairs two module names. `{i}` stands for a number that both share, and `{i+1}` on the right for the same
    number counted from one: `"stages.{i}.norm": "norm{i+1}"`. What follows the module name (`.weight`, …) is kept; a
    row may also name a parameter itself.

    Args:
        modules: our module name -> the authors', the first row that fits is taken.
        aliases: other spellings found in the authors' files -> the spelling used in `modules`, as plain substrings.
        unused: entries of the authors' files that their code never reads -> what stands there in a file written by us.
        no_weights: how entries begin that are no weights and in some files only; none is written by us.
        copies: how entries begin that stand in the authors' files a second time -> how they begin the first time.
        older: a version whose files differ by more than names.
        parts: of a network that is made of such: each with names of its own, looked at before `modules`.
    """

    modules: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, Any] = field(default_factory=dict)
    no_weights: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    older: Older | None = None
    parts: tuple["Part", ...] = ()

    def to_ours(self, name: str) -> str | None:
        """Our name for one of the authors', or None if no row knows it."""
        name = self.first_of(name) or name
        for alias, spelling in self.aliases.items():
            name = name.replace(alias, spelling)
        for part in self.parts:
            inside = part.names.to_ours(name.removeprefix(part.front)) if name.startswith(part.front) else None
            if inside is not None:
                return f"{part.ours}.{inside}"
        return _translate(name, ((theirs, ours) for ours, theirs in self.modules.items()))

    def to_theirs(self, name: str) -> str | None:
        """The authors' name for one of ours, or None if no row knows it."""
        for part in self.parts:
            ours = f"{part.ours}."
            inside = part.names.to_theirs(name.removeprefix(ours)) if name.startswith(ours) else None
            if inside is not None:
                return part.front + inside
        return _translate(name, self.modules.items())

    def first_of(self, name: str) -> str | None:
        """Where an entry of the authors' stands the first time if this is its second, or None."""
        return _begun_otherwise(name, self.copies.items())

    def second_of(self, name: str) -> str | None:
        """Where an entry of the authors' stands a second time, or None."""
        return _begun_otherwise(name, ((first, second) for second, first in self.copies.items()))


class _SameNames(NameMap):
    """Of modules that are called the same on both sides."""

    def to_ours(self, name: str) -> str:
        return name

    def to_theirs(self, name: str) -> str:
        return name


SAME_NAMES = _SameNames({})


class Part(NamedTuple):
    """A part of a network that has names of its own behind a prefix."""

    ours: str  # dotted name of the part here
    theirs: str  # and in the authors' files; empty if nothing stands in front there
    names: NameMap  # of what is in it

    @property
    def front(self) -> str:
        """What stands in front of the authors' names."""
        return f"{self.theirs}." if self.theirs else ""


def joined_names(
    parts: Iterable[Part],
    aliases: Mapping[str, str] | None = None,
    no_weights: tuple[str, ...] = (),
    older: Older | None = None,
) -> NameMap:
    """The names of a network that is made of parts: a backbone with its own map behind `backbone.`, heads, a neck.

    Args:
        parts: prefixes and maps.
        aliases, no_weights, older: as in `NameMap`, of whole names; the aliases of the parts count too.
    """
    parts = tuple(parts)
    spellings = {alias: spelling for part in parts for alias, spelling in part.names.aliases.items()}
    unused = {part.front + name: value for part in parts for name, value in part.names.unused.items()}
    copies = {part.front + second: part.front + first for part in parts for second, first in part.names.copies.items()}
    return NameMap({}, {**(aliases or {}), **spellings}, unused, no_weights, copies, older, parts)


def _begun_otherwise(name: str, beginnings: Iterable[tuple[str, str]]) -> str | None:
    """A name with another beginning, from the first pair whose own it has."""
    return next((new + name.removeprefix(old) for old, new in beginnings if name.startswith(old)), None)


def _translate(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    for source, target in rows:
        match = _pattern(source).fullmatch(name)
        if match:
            offset = {slot: bool(plus) for slot, plus in _SLOT.findall(source)}
            for slot, plus in _SLOT.findall(target):
                number = int(match[slot]) - offset[slot] + bool(plus)
                target = target.replace(f"{{{slot}{plus}}}", str(number))
            return target + (match["leaf"] or "")
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """Matches the names a row stands for, numbers in groups of their slot's name and the rest in `leaf`."""
    parts = _SLOT.split(template)  # text, slot, plus, text, slot, plus, ..., text
    texts, slots = parts[::3], parts[1::3]
    pattern = re.escape(texts[0])
    for slot, text in zip(slots, texts[1:], strict=True):
        pattern += rf"(?P<{slot}>\d+)" + re.escape(text)
    return re.compile(pattern + r"(?P<leaf>\.\w+)?")
