"""Files on disk from paths as other systems write them: with backslashes, or in another normal form of Unicode."""

import os
import unicodedata
from pathlib import Path, PureWindowsPath

from convattn.data.dataset import DataError, tell
from convattn.data.spelling import spelled

__all__ = ["OnDisk"]

_PROBES = 16  # paths with backslashes that are looked for, until it is sure what they mean


class OnDisk:
    """Where the paths of a list lead.

    Args:
        file: the list; paths are relative to its folder, or absolute. Where the first image is not there, but in the
            folder called like the list (`train/` of `train.csv`), they are relative to that.
    """

    def __init__(self, file: Path):
        self._file, self._folder = file, str(file.parent)
        self._prefix = "" if self._folder == "." else f"{self._folder.rstrip('/')}/"
        self._turned = 0
        self._is_first = True
        self._listed: dict[str, dict[str, str]] = {}

    def path(self, stated: str, place: str) -> str:
        """The file that a stated path means; DataError if it can be no path here, or could mean two files.

        Files are not looked for, except where a path has a backslash or letters that Unicode writes in two ways.
        """
        if "\0" in stated:
            raise DataError(f"{place}: a zero byte in a path; save the list as UTF-8 text")
        if "\\" in stated:
            stated = self._without_backslashes(stated, place)
        if "./" in stated or "//" in stated:
            stated = str(Path(stated))
        if self._is_first:
            self._choose_folder(stated)
        path = stated if stated[:1] == "/" else self._prefix + stated
        return path if stated.isascii() else self._spelled(path)

    def _choose_folder(self, stated: str) -> None:
        self._is_first = False
        within = f"{self._prefix}{self._file.stem}/"
        if os.path.lexists(self._spelled(within + stated)) and not os.path.lexists(
            self._spelled(self._prefix + stated)
        ):
            self._prefix = within
            tell(f"{self._file}: its paths are those within {within}")

    def _without_backslashes(self, stated: str, place: str) -> str:
        turned = stated.replace("\\", "/")
        if PureWindowsPath(stated).drive or stated.startswith("\\"):
            raise DataError(f"{place}: {stated!r} is a path of Windows; write it relative to the list, with /")
        if self._turned < _PROBES:
            as_it_is, otherwise = (os.path.lexists(os.path.join(self._folder, path)) for path in (stated, turned))
            if as_it_is and otherwise:
                raise DataError(
                    f"{place}: {stated!r} and {turned!r} are both there; write the path with / or rename one"
                )
            if as_it_is:
                return stated
            if not self._turned:
                tell(f"{self._file}: backslashes in paths are read as /, as in {turned!r}")
            self._turned += 1
        return turned

    def _spelled(self, path: str) -> str:
        """The path as the files are called, where only the normal form of Unicode differs; otherwise as it is."""
        if (unicodedata.is_normalized("NFC", path) and unicodedata.is_normalized("NFD", path)) or os.path.lexists(path):
            return path
        found, *parts = path.split("/")
        for part in parts:
            beside = f"{found}/{part}"
            if not part.isascii() and not os.path.lexists(beside):
                beside = f"{found}/{self._names_in(found or '/').get(spelled(part), part)}"
            found = beside
        return found if path.startswith("/") or "/" in path else self._names_in(".").get(spelled(path), path)

    def _names_in(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = {spelled(name): name for name in os.listdir(folder) if not name.isascii()}
            except OSError:
                self._listed[folder] = {}
        return self._listed[folder]
