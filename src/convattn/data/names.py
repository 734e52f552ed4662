"""Millions of names in little memory, which worker processes share without copying it."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

__all__ = ["Names", "NumberedClasses"]

_ENCODING = "utf-8"


class Names(Sequence[str]):
    """An unchangeable list of strings, kept end to end in one buffer.

    A list of 14 million paths takes 1.6 GB, and each process that looks at it writes to the counters in its objects and
    so gets a copy of its own. Here it is the bytes of the names and eight more for each.

    Args:
        names: file names or other strings; those that are no Unicode are kept as the system gave them.
        prefix: stands before each of them, such as the folder with a slash.
    """

    def __init__(self, names: Iterable[str], prefix: str = ""):
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode(_ENCODING, "surrogateescape")
            ends.append(len(text))
        self._prefix, self._text, self._ends = prefix, bytes(text), ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        if index < 0:
            index = range(len(self))[index]
        ends = self._ends  # beyond whose end is an IndexError
        return self._prefix + self._text[ends[index] : ends[index + 1]].decode(_ENCODING, "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} names{f', the first {self[0]!r}' if len(self) else ''}>"


class NumberedClasses(list[str]):
    """Classes whose names are not known: the numbers by which their labels call them, in order."""

    @property
    def are_places(self) -> bool:
        """Whether they are 0, 1, 2, … without a gap, and so may be places in an order of classes."""
        return self == [str(number) for number in range(len(self))]
