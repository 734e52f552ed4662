"""Which image a path means that a label file states."""

from collections.abc import Sequence
from functools import cached_property

from convattn.data.dataset import DataError
from convattn.data.spelling import spelled

__all__ = ["ImagePaths"]


class ImagePaths:
    """Images by their paths within a folder or archive.

    A stated path means the image that lies there, seen from the images' folder or that of the label file; its suffix
    may be missing. Otherwise folders are left out or added in front, as long as one image fits best.

    Args:
        inside: one path an image, within the folder or archive.
        prefixes: what else a stated path may begin with: the images' folder as seen from the label file, or from the
            root.
    """

    def __init__(self, inside: Sequence[str], prefixes: Sequence[str] = ()):
        self._prefixes = ("", *prefixes)
        self._inside = [_plain(path) for path in inside]
        self._exact = {path: at for at, path in enumerate(self._inside)}

    def find(self, stated: str) -> tuple[int, bool] | None:
        """Which image a path means, and whether it lies just there; None for none, DataError if it could be several."""
        path = stated if stated in self._exact else _plain(stated.replace("\\", "/"))
        seen = [path.removeprefix(prefix) for prefix in self._prefixes if path.startswith(prefix)]
        there = {self._exact[name] for name in seen if name in self._exact}
        there = there or {at for name in seen for at in self._without_suffix.get(name, ())}
        if there:
            return self._one(stated, sorted(there)), True
        fitting = self._base.get(path.rpartition("/")[2], [])
        if len(fitting) > 1:
            common = [_common(path, self._inside[at]) for at in fitting]
            fitting = [at for at, length in zip(fitting, common, strict=True) if length == max(common)]
        return (self._one(stated, fitting), False) if fitting else None

    @cached_property
    def _without_suffix(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for at, path in enumerate(self._inside):
            places.setdefault(_without_suffix(path), []).append(at)
        return places

    @cached_property
    def _base(self) -> dict[str, list[int]]:
        """The images of a name, with its suffix or without."""
        places: dict[str, list[int]] = {}
        for at, path in enumerate(self._inside):
            base = path.rpartition("/")[2]
            for key in {base, _without_suffix(base)}:
                places.setdefault(key, []).append(at)
        return places

    def _one(self, stated: str, fitting: Sequence[int]) -> int:
        if len(fitting) > 1:
            both = " or ".join(self._inside[at] for at in fitting[:2])
            raise DataError(f"{stated!r} could be {both}; write the path within the images' folder, with its suffix")
        return fitting[0]


def _plain(path: str) -> str:
    path = spelled(path)
    if "./" not in path and "//" not in path:
        return path
    parts = path.split("/")
    return "/".join(part for at, part in enumerate(parts) if part != "." and (part or not at))


def _without_suffix(path: str) -> str:
    folder, slash, base = path.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def _common(one: str, other: str) -> int:
    """How many folders in front of two equal names are equal, from behind."""
    pairs = zip(reversed(one.split("/")[:-1]), reversed(other.split("/")[:-1]), strict=False)
    length = 0
    for first, second in pairs:
        if first != second:
            break
        length += 1
    return length
