"""Images that cannot be read: set aside by name, up to a limit."""

from collections.abc import Callable, Mapping
from pathlib import Path

from convattn.atomic import append_line
from convattn.data.check import UNREADABLE_LIMIT
from convattn.shown import brief, shown

__all__ = ["UnreadableError", "UnreadableImages", "check_unreadable"]

_NAMED = 8  # files in a message


class UnreadableError(ValueError):
    """Too many images of a data set cannot be read."""


def check_unreadable(unreadable: Mapping[str, str], images: int, told: str) -> None:
    """Refuse to measure on less than what was asked for.

    Args:
        unreadable: file -> reason, which begins with the file's name.
        images: size of the data set.
        told: what they are and where, for the message.

    Raises:
        UnreadableError: when more than 1 % are unreadable, naming the first.
    """
    if len(unreadable) > UNREADABLE_LIMIT * images:
        raise UnreadableError(
            f"{len(unreadable)} of {images} {told} cannot be read, more than {UNREADABLE_LIMIT:.0%}; "
            f"repair or remove them: {brief(unreadable.values(), _NAMED, '; ')}"
        )


class UnreadableImages:
    """Keeps `unreadable.txt` of a run folder: one line a file, with the reason.

    Args:
        folder: the run folder.
        images: size of the data set.
    """

    def __init__(self, folder: Path, images: int):
        self._file = folder / "unreadable.txt"
        self._images = images
        self._known = self._read()

    def add(self, unreadable: Mapping[str, str], note: Callable[[str], None]) -> None:
        """Record the files of a batch; those seen before are passed over.

        Args:
            unreadable: file -> reason, which begins with the file's name.
            note: shows one line to the user.

        Raises:
            UnreadableError: when more than 1 % of the data set is unreadable, listing the files.
        """
        if not unreadable:
            return
        self._known |= self._read()  # what other processes of the run have found
        for reason in map(shown, unreadable.values()):
            if reason in self._known:
                continue
            self._known[reason] = None
            append_line(self._file, reason)
            note(f"set aside: {reason}")
        if len(self._known) > UNREADABLE_LIMIT * self._images:
            raise UnreadableError(
                f"{len(self._known)} of {self._images} training images cannot be read, more than "
                f"{UNREADABLE_LIMIT:.0%}; repair them, delete {self._file} and resume, or remove them and start anew: "
                f"{'; '.join(self._known)}"
            )

    def _read(self) -> dict[str, None]:
        return (
            dict.fromkeys(self._file.read_text("utf-8", errors="replace").splitlines()) if self._file.is_file() else {}
        )
