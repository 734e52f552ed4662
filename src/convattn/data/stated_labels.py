"""From labels as a list, a label file or shards state them to numbers of classes: one rule for all of these.

A label is the name of a class. Where all labels are numbers, their meaning depends on what is known of the classes:
with names by number (`class` of a list, `classes.txt` of shards) they are places in these; with classes, `KnownClasses`
decides; otherwise the numbers that occur are the classes, and keep their names. Among words a number is a name.
"""

import re
from array import array
from collections.abc import Callable, Mapping, Sequence

from convattn.data.dataset import DataError, tell
from convattn.data.known_classes import KnownClasses, LabelError, impossible, is_code, number_or_none
from convattn.data.names import NumberedClasses
from convattn.data.spelling import spelled
from convattn.shown import brief

__all__ = ["StatedLabels", "places_of", "told_apart"]

_NOTHING = {"nan", "none", "null", "n/a", "na", "-", "?"}  # what programs write for an empty cell


class StatedLabels:
    """The label that a file states for each of its images: every text once, and which of them each image has.

    Args:
        where: what states them, for errors.
        place: of an image by its number: where its label stands, such as `line 3`.
    """

    def __init__(self, where: object, place: Callable[[int], str]):
        self.where, self._place = where, place
        self.texts: list[str] = []
        self.codes = array("i")
        self._first: list[int] = []
        self._code: dict[str, int] = {}

    def add(self, text: str) -> None:
        """The label of the next image."""
        code = self._code.get(text)
        if code is None:
            text = spelled(text)
            code = self._code.setdefault(text, len(self.texts))
            if code == len(self.texts):
                self.texts.append(text)
                self._first.append(len(self.codes))
        self.codes.append(code)

    def understood(
        self, classes: Sequence[str] | None = None, names: Mapping[int, str] | None = None
    ) -> tuple[Sequence[int], Sequence[str]]:
        """The number of each image's class, and the classes.

        Args:
            classes: those that are known and their order. By default `names`, or what occurs, sorted.
            names: what numbers mean, where that is stated beside them.

        Raises:
            DataError: if a label is none of the classes, or could be meant in two ways, naming its place.
        """
        numbers = self._numbers(classes)
        if names and numbers is not None:
            self._check_named(numbers, names)
        listed = [names[number] for number in sorted(names)] if names else None
        if listed is not None:
            listed = told_apart(listed, sorted(names or ()), self.where)
        if classes is None and listed is None:
            given, classes = self._distinct(numbers) if numbers is not None else self._words()
            return array("i", map(given.__getitem__, self.codes)), classes
        meant = self.texts
        if listed is not None and numbers is not None:
            place = {number: at for at, number in enumerate(sorted(names or ()))}
            meant = [listed[place[number]] for number in numbers]
        among = "the training classes" if classes is not None else "the listed classes"
        known = classes if classes is not None else listed or ()
        given = self._among(meant, known, among)
        return array("i", map(given.__getitem__, self.codes)), known

    def _at(self, code: int) -> str:
        return self._place(self._first[code])

    def _numbers(self, classes: Sequence[str] | None) -> list[int] | None:
        """The texts as numbers; None if some are names."""
        for text, error in impossible(self.texts, classes or ()).items():
            raise DataError(f"{self.where}: {error} ({self._at(self.texts.index(text))})")
        values = [number_or_none(text) for text in self.texts]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(values):
            return numbers
        if classes is None and all(map(is_code, self.texts)):
            return list(map(int, self.texts))
        for code, text in enumerate(self.texts if any(map(_is_number, self.texts)) else ()):
            if text.lower() in _NOTHING:
                raise DataError(
                    f"{self.where}: {text!r} stands among numbers ({self._at(code)}); leave out images without a label"
                )
        return None

    def _check_named(self, numbers: Sequence[int], names: Mapping[int, str]) -> None:
        for code, number in enumerate(numbers):
            if number not in names:
                raise DataError(
                    f"{self.where}: label {number} must be between 0 and {max(names)}, for {len(names)} classes "
                    f"({self._at(code)})"
                )

    def _among(self, meant: Sequence[str], known: Sequence[str], among: str) -> list[int]:
        """The numbers of these texts among known classes."""
        classes, given, unknown = KnownClasses(known), list[int](), list[int]()
        mixed = len({number_or_none(text) is None for text in meant}) > 1  # then no number is a place
        for code, text in enumerate(meant):
            try:
                number = number_or_none(text) is not None
                found = classes.of(text) if number and not mixed else classes.named(text)
            except LabelError as error:
                raise DataError(f"{self.where}: {error} ({self._at(code)})") from None
            if found is not None:
                given.append(found)
                continue
            unknown.append(code)
            word = next((other for other in meant if number_or_none(other) is None), "")
            if number and classes.named(word) is not None:
                raise DataError(
                    f"{self.where}: labels are numbers ({text}) and names ({word!r}); write all in one way "
                    f"({self._at(code)})"
                )
        if unknown:
            named = [meant[code] for code in unknown]
            raise DataError(f"{_unknown(self.where, named, among)} ({self._at(unknown[0])})")
        if given and not mixed and min(given) > 0 and any(classes.named(text) is None for text in meant):
            tell(
                f"{self.where}: no label is 0, and numbers are places in the order of the classes, counted from 0: "
                f"{meant[0]} is {known[given[0]]!r}; subtract 1 if these count from 1"
            )
        return given

    def _words(self) -> tuple[list[int], Sequence[str]]:
        self._check_single()
        empty = next((code for code, text in enumerate(self.texts) if text.lower() in _NOTHING), None)
        if empty is not None:
            tell(f"{self.where}: {self.texts[empty]!r} is taken for a class ({self._at(empty)})")
        ordered = sorted(self.texts)
        position = {name: at for at, name in enumerate(ordered)}
        return [position[text] for text in self.texts], ordered

    def _distinct(self, numbers: Sequence[int]) -> tuple[list[int], Sequence[str]]:
        """The numbers that occur, in their order; each is called as it was written."""
        called: dict[int, str] = {}
        for code, (text, number) in enumerate(zip(self.texts, numbers, strict=True)):
            name = text if text.isdecimal() else str(number)
            if called.setdefault(number, name) != name:
                raise DataError(
                    f"{self.where}: label {text!r} could be the class {called[number]!r} or one of its own; write each "
                    f"number in one way ({self._at(code)})"
                )
        ordered = sorted(called)
        place = {number: at for at, number in enumerate(ordered)}
        names = [called[number] for number in ordered]
        if names != [str(number) for number in range(len(names))]:
            shown = ", ".join(names[:5]) + (f", …, {names[-1]}" if len(names) > 5 else "")
            tell(
                f"{self.where}: labels are the numbers {shown}, not 0 to {len(names) - 1}: {len(names)} classes, one "
                "for each number that occurs, called by it"
            )
        return [place[number] for number in numbers], NumberedClasses(names)

    def _check_single(self) -> None:
        """Refuse cells that hold several labels; tell of one that may."""
        alone, told = set(self.texts), False
        numbers = any(map(_is_number, self.texts))
        for code, text in enumerate(self.texts):
            inner = re.sub(r"^[\[({](.*)[\])}]$", r"\1", text)
            parts = [part.strip(" '\"") for part in re.split(r"[|;,]", inner)]
            words = inner.replace("|", " ").replace(";", " ").replace(",", " ").split()
            several = len(words) > 1 and numbers and all(map(_is_number, words))
            quoted = inner != text and inner[:1] + inner[-1:] in ("''", '""')
            if several or quoted or (len(parts) > 1 and (inner != text or alone.issuperset(parts))):
                raise DataError(
                    f"{self.where}: {text!r} names several classes; labels are single, one an image ({self._at(code)})"
                )
            other = next((part for part in (*parts, *words) if part in alone and part != text), None)
            if other is not None and not told:
                told = True
                tell(
                    f"{self.where}: {text!r} is taken for one class, though {other!r} is another; labels are single, "
                    f"one an image ({self._at(code)})"
                )


def told_apart(names: Sequence[str], numbers: Sequence[int], where: object) -> list[str]:
    """Names of classes by which they can be told apart: of two that are called alike, each gets its number too."""
    count: dict[str, int] = {}
    for name in map(spelled, names):
        count[name] = count.get(name, 0) + 1
    alike = [name for name, times in count.items() if times > 1]
    if not alike:
        return list(names)
    called = brief(map(repr, alike))
    tell(f"{where}: more than one class is called {called}; their numbers are added: '{alike[0]} (NUMBER)'")
    return [
        f"{name} ({number})" if count[spelled(name)] > 1 else name for name, number in zip(names, numbers, strict=True)
    ]


def places_of(found: Sequence[str], known: Sequence[str], where: object) -> list[int]:
    """The number of each class that was found by its name, such as that of a folder.

    DataError if one is not known, or two are one name in two normal forms of Unicode.
    """
    classes, places, unknown = KnownClasses(known), list[int](), list[str]()
    for name in found:
        try:
            place = classes.named(name)
        except LabelError as error:
            raise DataError(f"{where}: {error}, maybe in two normal forms of Unicode; join them") from None
        if place is None:
            unknown.append(name)
        else:
            places.append(place)
    if unknown:
        raise DataError(_unknown(where, unknown, "the training classes"))
    if len(set(places)) < len(found):
        twice = next(name for at, name in enumerate(found) if places[at] in places[:at])
        raise DataError(f"{where}: {twice!r} is there twice, in two normal forms of Unicode; join them")
    return places


def _unknown(where: object, unknown: Sequence[str], among: str) -> str:
    return f"{where}: class {brief(map(repr, unknown))} is here but not among {among}; add it there or remove it here"


def _is_number(text: str) -> bool:
    return number_or_none(text) is not None or is_code(text)
