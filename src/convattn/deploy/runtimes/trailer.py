"""A text behind the end of a binary file whose reader knows its own length and does not look there."""

import hashlib
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO

from convattn.deploy.runtimes.runtime import UnreadableFile

__all__ = ["digest", "read_metadata", "without_trailer", "write_metadata"]

_LONGEST = 2**24  # bytes of a description
_MARK = b"convattn"  # the last bytes; before them the text's length in eight bytes, before that the text in UTF-8


def write_metadata(path: Path, text: str) -> None:
    """Put `text` behind the file's own content, in the place of what was there."""
    encoded = text.encode()
    path.write_bytes(without_trailer(path.read_bytes()) + encoded + len(encoded).to_bytes(8, "little") + _MARK)


def read_metadata(path: Path) -> str | None:
    """The text behind the file's own content, as far as it is one; None if there is none.

    Raises:
        UnreadableFile: if it is longer than any description.
    """
    with open(path, "rb") as file:
        own, size = _own_length(file)
        if own == size:
            return None
        if size - own > _LONGEST:
            raise UnreadableFile(f"{path}: its description is damaged: it has more than {_LONGEST} bytes")
        file.seek(own)
        return file.read()[: -len(_MARK) - 8].decode(errors="replace")


def digest(path: Path) -> str:
    """SHA-256 of the file's own content."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        left, _ = _own_length(file)
        file.seek(0)
        while part := file.read(min(left, 1 << 24)):
            total.update(part)
            left -= len(part)
    return total.hexdigest()


def _own_length(file: BinaryIO) -> tuple[int, int]:
    """How many bytes are the file's own, and how many it has. It may be too large to be read whole."""
    size, end = file.seek(0, SEEK_END), 8 + len(_MARK)
    if size < end:
        return size, size
    file.seek(size - end)
    length, mark = int.from_bytes(file.read(8), "little"), file.read()
    return (max(size - end - length, 0), size) if mark == _MARK else (size, size)


def without_trailer(data: bytes) -> bytes:
    """The file's own content."""
    if not data.endswith(_MARK):
        return data
    length = int.from_bytes(data[-8 - len(_MARK) : -len(_MARK)], "little")
    return data[: -8 - len(_MARK) - length]
