"""Large numbers as people write them: 15M, 1.5G, 800K."""

import re

__all__ = ["quantity"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_WITH_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?|\.[0-9]{1,15})\s?([KMG]?)", re.IGNORECASE)
_IN_THREES = re.compile(r"[0-9]{1,3}(?:,[0-9]{3}){1,4}")  # as tables show them; 1,5M is refused: it may mean 1.5M


def quantity(text: str) -> int:
    """The number above 0 that a text means: "15M", "1.5g", "800 K", "15000000", "15,000,000"; ValueError if none."""
    number = 0
    if found := _WITH_UNIT.fullmatch(text.strip()):
        number = round(float(found[1]) * _UNITS[found[2].upper()])
    elif _IN_THREES.fullmatch(text.strip()):
        number = int(text.replace(",", ""))
    if number < 1:
        raise ValueError(f"{text!r} must be a number above 0, such as 800K, 15M or 1.5G")
    return number
