"""The names that come nearest to a word that is none of them."""

import difflib
from collections.abc import Iterable

from convattn.shown import brief

__all__ = ["UnknownName", "nearest"]


class UnknownName(ValueError):
    """A word that names nothing here; a command that was given it was called wrongly."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """ "nearest: a, b" for an error message, or what there is where nothing is near."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"known: {brief(choices, 12) or 'none'}"
