"""One file within an archive."""

from dataclasses import dataclass

__all__ = ["Member"]


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file lies within one of several archives."""

    tar: int  # number of the archive
    name: str  # within it; of an archive in the archive, behind that one's name
    offset: int  # of its content, bytes from the beginning of the outermost archive
    size: int  # bytes
    problem: str = ""  # why it is not to be read
