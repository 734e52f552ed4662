"""Images that cannot be read: set aside by name, up to a limit."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from convattn.atomic import append_line
from convattn.data.check import UNREADABLE_LIMIT
from convattn.shown import brief, shown

__all__ = ["UnreadableError", "UnreadableImages", "check_unreadable"]

_NAMED = 8  # files in a message


class UnreadableError(ValueError):
    """Too many images of a data set cannot be read."""


def check_unreadable(reasons: Collection[str], images: int, told: str, remedy: str = "repair or remove them") -> None:
    """Refuse to learn from, or to measure on, less than what was asked for.

    Args:
        reasons: of the images that cannot be read; each begins with the file's name.
        images: size of the data set.
        told: what they are and where, for the message.
        remedy: what to do.

    Raises:
        UnreadableError: when more than 1 % are unreadable, naming the first.
    """
    if len(reasons) > UNREADABLE_LIMIT * images:
        raise UnreadableError(
            f"{len(reasons)} of {images} {told} cannot be read, more than {UNREADABLE_LIMIT:.0%}; "
            f"{remedy}: {brief(reasons, _NAMED, '; ')}"
        )


class UnreadableImages:
    """Keeps `unreadable.txt` of a run folder: one line a file, with the reason. `images`: size of the data set."""

    def __init__(self, folder: Path, images: int):
        self._file = folder / "unreadable.txt"
        self._images = images
        self._known = self._read()  # as keys, in order

    def add(self, unreadable: Mapping[str, str], note: Callable[[str], None]) -> None:
        """Record the files of a batch and their reasons, each once; UnreadableError as soon as they are too many."""
        if not unreadable:
            return
        self._known |= self._read()  # what other processes of the run have found
        for reason in map(shown, unreadable.values()):
            if reason in self._known:
                continue
            self._known[reason] = None
            append_line(self._file, reason)
            note(f"set aside: {reason}")
        remedy = f"repair them, delete {self._file} and resume, or remove them and start anew"
        check_unreadable(self._known, self._images, "training images", remedy)

    def _read(self) -> dict[str, None]:
        text = self._file.read_text("utf-8", errors="replace") if self._file.is_file() else ""
        return dict.fromkeys(text.splitlines())
