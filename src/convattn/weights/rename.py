"""Translating the names in a state dict by a table, in both directions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["NameMap"]

_SLOT = re.compile(r"\{(\w+)(\+1)?\}")


@dataclass(frozen=True)
class NameMap:
    """The names of a family's modules here and in the authors' files.

    A row pairs two module names. `{i}` stands for a number that both share, and `{i+1}` on the right for the same number
    counted from one: `"stages.{i}.norm": "norm{i+1}"`. What follows the module name (`.weight`, …) is kept; a row may also
    name a parameter itself.

    Args:
        modules: our module name -> the authors', the first row that fits is taken.
        aliases: other spellings found in the authors' files -> the spelling used in `modules`, as plain substrings.
    """

    modules: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def to_ours(self, name: str) -> str | None:
        """Our name for one of the authors', or None if no row knows it."""
        for alias, spelling in self.aliases.items():
            name = name.replace(alias, spelling)
        return _translate(name, ((theirs, ours) for ours, theirs in self.modules.items()))

    def to_theirs(self, name: str) -> str | None:
        """The authors' name for one of ours, or None if no row knows it."""
        return _translate(name, self.modules.items())


def _translate(name: str, rows) -> str | None:
    for source, target in rows:
        offsets = {slot: len(plus) > 0 for slot, plus in _SLOT.findall(source)}
        match = re.fullmatch(_pattern(source) + r"(?P<leaf>\.\w+)?", name)
        if match is None:
            continue
        numbers = {slot: int(match[slot]) - offset for slot, offset in offsets.items()}
        return _SLOT.sub(lambda m: str(numbers[m[1]] + bool(m[2])), target) + (match["leaf"] or "")
    return None


def _pattern(template: str) -> str:
    parts = _SLOT.split(template)  # text, slot, plus, text, slot, plus, ..., text
    texts, slots = parts[::3], parts[1::3]
    pattern = re.escape(texts[0])
    for slot, text in zip(slots, texts[1:], strict=True):
        pattern += rf"(?P<{slot}>\d+)" + re.escape(text)
    return pattern
