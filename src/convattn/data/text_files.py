"""Text files from elsewhere, line by line: UTF-8 or UTF-16, with or without a mark at their beginning."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convattn.data.dataset import DataError

__all__ = ["check_regular", "read_lines", "text_lines"]

_LONGEST = 2**20  # characters of a line
_MARKS = ((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # of all others UTF-8 is expected


@contextmanager
def text_lines(file: Path) -> Iterator[Iterator[str]]:
    """The lines of a file with their ends as they are, as the module `csv` wants them.

    DataError if it cannot be read, is no text, or has a line without end, naming the file.
    """
    check_regular(file)
    try:
        with open(file, "rb") as raw:
            beginning = raw.read(64)
        encoding = next((name for mark, name in _MARKS if beginning.startswith(mark)), "utf-8-sig")
        if b"\0\0" in beginning or (encoding != "utf-16" and b"\0" in beginning):
            raise DataError(f"{file}: could not be read as text (it holds zero bytes); save it as UTF-8")
        with open(file, newline="", encoding=encoding) as stream:
            yield _bounded(file, stream)
    except (OSError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        hint = "; save it as UTF-8" if isinstance(error, UnicodeError) else ""
        raise DataError(f"{file}: could not be read as a list of labels ({reason}){hint}") from None


def check_regular(file: Path) -> None:
    """Raise DataError for a pipe or a device, which could be waited for or read for ever."""
    if file.exists() and not file.is_file():
        raise DataError(f"{file}: {'a folder' if file.is_dir() else 'a pipe or a device'}, not a list of labels")


def read_lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, each with its number from 1."""
    with text_lines(file) as lines:
        return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _bounded(file: Path, stream) -> Iterator[str]:  # type: ignore[no-untyped-def]
    number = 0
    while line := stream.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise DataError(f"{file}, line {number}: longer than {_LONGEST:,} characters; this is no list")
        yield line
