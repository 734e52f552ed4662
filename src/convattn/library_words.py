"""Words that only a library knows, such as timm's names of optimisers: it is asked, which means importing it."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["are_trusted", "trusted"]

_trusted = False


@contextmanager
def trusted() -> Iterator[None]:
    """Within this context no library is asked: for our own recipes, which are tried by the tests and listed often."""
    global _trusted
    before, _trusted = _trusted, True
    try:
        yield
    finally:
        _trusted = before


def are_trusted() -> bool:
    """Whether words may be taken as they are."""
    return _trusted
