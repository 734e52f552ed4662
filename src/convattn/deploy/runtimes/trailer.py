"""A text behind the end of a binary file whose reader knows its own length and does not look there."""

import hashlib
from pathlib import Path

__all__ = ["digest", "read_metadata", "without_trailer", "write_metadata"]

_MARK = b"convattn"  # the last bytes; before them the text's length in eight bytes, before that the text in UTF-8


def write_metadata(path: Path, text: str) -> None:
    """Put `text` behind the file's own content, in the place of what was there."""
    encoded = text.encode()
    path.write_bytes(without_trailer(path.read_bytes()) + encoded + len(encoded).to_bytes(8, "little") + _MARK)


def read_metadata(path: Path) -> str | None:
    """The text behind the file's own content, as far as it is one; None if there is none."""
    data = path.read_bytes()
    end = len(without_trailer(data))
    return None if end == len(data) else data[end : -8 - len(_MARK)].decode(errors="replace")


def digest(path: Path) -> str:
    """SHA-256 of the file's own content."""
    return hashlib.sha256(without_trailer(path.read_bytes())).hexdigest()


def without_trailer(data: bytes) -> bytes:
    """The file's own content."""
    if not data.endswith(_MARK):
        return data
    length = int.from_bytes(data[-8 - len(_MARK) : -len(_MARK)], "little")
    return data[: -8 - len(_MARK) - length]
