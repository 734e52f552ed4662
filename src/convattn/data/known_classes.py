"""What a label means among classes that are known: their name, or a number where that can mean one thing only."""

import re
from collections.abc import Collection, Sequence

from convattn.data.spelling import spelled

__all__ = ["KnownClasses", "LabelError", "impossible", "is_code", "number_in", "number_or_none"]

_GREATEST = 99_999_999  # no classes are numbered higher: it is a slip, or the name of something else
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_CODE = re.compile(r"\d{8,18}", re.ASCII)


class LabelError(ValueError):
    """A label that cannot be understood."""


class KnownClasses:
    """Classes by their names and numbers.

    Where all names are numbers themselves, such as those of folders `1`, `2`, `10`, a number is a name, whatever its
    zeros. Otherwise it is a place in the order of the classes, from 0, unless a class is called like that too.

    Args:
        names: in the order of the classes; compared in one normal form of Unicode.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names
        self._position: dict[str, int] = {}
        self._double: dict[str, int] = {}  # the second of two that are called alike
        for index, name in enumerate(map(spelled, names)):
            if self._position.setdefault(name, index) != index:
                self._double.setdefault(name, index)
        values = [number_or_none(name) for name in names]
        by_value = {value: index for index, value in enumerate(values) if value is not None}
        self._by_value = by_value if len(by_value) == len(names) else None

    def named(self, text: str) -> int | None:
        """The number of the class that has this name, None if none has; LabelError if two have it."""
        text = spelled(text)
        if text in self._double:
            raise LabelError(f"{text!r} is the name of two classes, {self._position[text]} and {self._double[text]}")
        return self._position.get(text)

    def of(self, text: str) -> int:
        """The number of the class that a label means; LabelError if it means none, or could mean two."""
        named = self.named(text)
        number = number_in(text) if named is None else number_or_none(text)
        if number is None:
            if named is None:
                raise LabelError(f"its label {text!r} is none of the {len(self.names)} classes")
            return named
        if self._by_value is not None:
            place = self._by_value.get(number) if named is None else named
            if place is None:
                raise LabelError(f"label {text} is none of the {len(self.names)} classes, which are called by numbers")
            return place
        if number >= len(self.names):
            if named is None:
                raise LabelError(
                    f"label {number} must be between 0 and {len(self.names) - 1}, for {len(self.names)} classes"
                )
            return named
        if named not in (None, number):
            raise LabelError(
                f"label {text} could be the class {text!r} or the one with that number, {self.names[number]!r}; write "
                "the names of the classes"
            )
        return number


def number_in(text: str) -> int | None:
    """The class's number that a text states, 2.0 being 2; None if it is a word. LabelError if no class can have it."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    if value > _GREATEST:
        shown = text if len(text) < 30 else f"{text[:20]}… of {len(text):,} digits"
        raise LabelError(
            f"label {shown} is above {_GREATEST:,}, where no class is numbered; correct it, or write names of classes"
        )
    if not value.is_integer():
        return None
    if value < 0:
        raise LabelError(
            f"label {text} is below 0; classes are numbered from 0: leave out what has no label, or write names"
        )
    return int(value)


def number_or_none(text: str) -> int | None:
    """`number_in`, None where no class can have that number."""
    try:
        return number_in(text)
    except LabelError:
        return None


def is_code(text: str) -> bool:
    """Whether a text is a number of 8 to 18 digits, as articles and records have them (EAN, GTIN)."""
    return _CODE.fullmatch(text) is not None


def impossible(texts: Collection[str], names: Collection[str] = ()) -> dict[str, LabelError]:
    """The labels among `texts`, each once, that no class can have, and why: numbers below 0 or too high.

    A code that is too high for a number is a name: among words, and where all are codes. Among other numbers it is a
    slip. What a class is called is its name, whatever it looks like.
    """
    wrong: dict[str, LabelError] = {}
    for text in texts:
        try:
            number_in(text)
        except LabelError as error:
            wrong[text] = error
    if wrong:
        called = set(map(spelled, names))
        wrong = {text: error for text, error in wrong.items() if text not in called}
        if any(text not in wrong and number_or_none(text) is None for text in texts) or all(map(is_code, texts)):
            wrong = {text: error for text, error in wrong.items() if not is_code(text)}
    return wrong
