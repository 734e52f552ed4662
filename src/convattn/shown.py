"""Names as a person sees them: as they are where they can be, escaped where they would do something else.

And what messages say of several names, and of other people's errors.
"""

import re
from collections.abc import Iterable

__all__ = ["brief", "is_utf8", "reason", "shown"]

# What moves the cursor, ends a line, turns the direction of writing, or is no character: half of a pair, or a byte of
# a file name that is not UTF-8, which Python holds as U+DC80 to U+DCFF.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def shown(text: object) -> str:
    r"""Text that takes one line and forges none, for consoles, errors, logs and pages.

    Letters of every script stay. Line ends, control characters, escape sequences, marks that turn the direction of
    writing, and bytes that are no UTF-8 are written as Python writes them: `\n`, `\x1b`, `\u202e`, `\xe9`.
    """
    return _UNSEEN.sub(_escaped, str(text))


def is_utf8(name: object) -> bool:
    """Whether a name is text for programs that are not written in Python, such as safetensors and TensorBoard."""
    return not any("\ud800" <= letter <= "\udfff" for letter in str(name))


def brief(names: Iterable[object], most: int = 5, between: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    named = list(map(str, names))
    more = f"{between.rstrip(', ')} and {len(named) - most:,} more" if len(named) > most else ""
    return between.join(named[:most]) + more


def reason(error: BaseException, most: int | None = None) -> str:
    """What an error of somebody's says, on one line of at most so many characters; its kind if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # as `os.fsdecode` keeps a byte
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()
