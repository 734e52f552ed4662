"""Image files within tar archives: indexed once, then read by their place, never unpacked."""

import posixpath
import re
import tarfile
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from convattn.data.dataset import DataError
from convattn.data.file_names import is_service_path, is_shard_name, is_unread_name
from convattn.data.files import LabelledFiles, label_by_name
from convattn.data.flat import open_by_synset
from convattn.data.images import MAX_BYTES, ImageError
from convattn.data.member import Member
from convattn.data.names import Names
from convattn.data.progress import late_progress
from convattn.data.split_words import SPLITS
from convattn.data.tar_cache import load_index, save_index

__all__ = ["TarFiles", "members_of", "open_class_tars", "problem_with", "scan_tars"]

_LONG = 5.0  # seconds of indexing, from which on the index is kept


class TarFiles:
    """Members of archives. Each read opens its archive anew, so worker processes share nothing that could get mixed up.

    Args:
        tars: the archives.
        members: which of their files.
    """

    def __init__(self, tars: Sequence[Path], members: Iterable[Member]):
        members = list(members)
        self._tars = [str(tar) for tar in tars]
        self._tar = array("i", (member.tar for member in members))
        self._offset = array("q", (member.offset for member in members))
        self._size = array("q", (member.size for member in members))
        self._problems = {index: member.problem for index, member in enumerate(members) if member.problem}
        self.paths: Sequence[str] = Names(f"{self._tars[member.tar]}/{member.name}" for member in members)

    def read_bytes(self, index: int) -> bytes:
        """The content of a file; raises ImageError if it cannot be read or is not to be trusted."""
        if index in self._problems:
            raise ImageError(f"{self.paths[index]}: {self._problems[index]}")
        try:
            with open(self._tars[self._tar[index]], "rb", buffering=0) as file:
                file.seek(self._offset[index])
                content = file.read(self._size[index])
        except OSError as error:
            raise ImageError(f"{self.paths[index]}: could not be read ({error.strerror or error})") from None
        if len(content) < self._size[index]:
            raise ImageError(f"{self.paths[index]}: the archive has become shorter since training began")
        return content


def scan_tars(tars: Sequence[Path]) -> list[Member]:
    """The images of some archives and what states their labels, those in archives within them too.

    Images of formats that are not read here are among them; `is_unread_name` tells them.

    Raises:
        DataError: if an archive cannot be opened, is compressed or damaged, naming it.
    """
    known = load_index(tars)
    if known is not None:
        return known
    found: list[Member] = []
    start, before = time.monotonic(), 0
    with late_progress("indexing archives", sum(tar.stat().st_size for tar in tars)) as done:
        for number, tar in enumerate(tars):
            for member in _scan(tar, number):
                found.append(member)
                if len(found) % 1000 == 0:
                    done(before + member.offset)
            before += tar.stat().st_size
    if found and time.monotonic() - start > _LONG:
        save_index(tars, found)
    return found


def open_class_tars(
    tars: Sequence[Path], members: Sequence[Member], where: object, classes: Sequence[str] | None = None
) -> LabelledFiles:
    """Archives whose images lie in a folder per class, or that are a class each.

    A class is the first folder of a file within its archive, below folders that all files share; where there is none,
    the archive's own name, as with ImageNet's archive of 1,000 archives. Order is that of the same files in folders.
    Of a single archive without folders, the names have to begin with a synset (`open_by_synset`).

    Args:
        tars: the archives.
        members: their images.
        where: what errors call them all.
        classes: the classes and their order; sorted by default.

    Raises:
        DataError: if there is no image, or a class is not among `classes`.
    """
    parents = [_parent(member, tars) for member in members]
    trusted = {parent for parent, member in zip(parents, members, strict=True) if not member.problem}
    if members and not trusted:
        raise DataError(f"{where}: none of its {len(members)} images is to be read: {members[0].problem}")
    class_of = _classes_of(trusted)
    if class_of is None:
        ordered = sorted(members, key=lambda member: member.name)
        return open_by_synset(TarFiles(tars, ordered), where, classes)
    fallback = min(class_of.values(), default="")  # the label of what is named and never read
    labels = [class_of.get(parent, fallback) for parent in parents]
    called = {label.lower() for label in labels}
    if len(called) > 1 and called <= {word for words in SPLITS.values() for word in words}:
        raise DataError(
            f"{where}: its folders {' and '.join(sorted(called))} are splits, not classes; make an archive of each"
        )
    order = sorted(range(len(members)), key=lambda at: (labels[at], parents[at], members[at].name))
    return label_by_name(TarFiles(tars, (members[at] for at in order)), [labels[at] for at in order], where, classes)


def members_of(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive one by one, none of them kept.

    Raises:
        DataError: if the archive is damaged.
    """
    end = -1
    try:
        while (info := file.next()) is not None:
            file.members.clear()  # type: ignore[attr-defined]
            if file.offset <= end:  # a negative size, that leads back
                raise DataError(_damaged(file, "a size below zero"))
            end = file.offset
            yield info
    except DataError:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(_damaged(file, str(error) or type(error).__name__)) from None


def problem_with(info: tarfile.TarInfo) -> str:
    """Why a member of an archive from elsewhere is not to be read; empty if it is."""
    parts = PurePosixPath(info.name).parts
    if info.name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:[\\/]", info.name):
        return "its name leads out of the archive"
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}, not a file"
    if not info.isreg() or info.issparse():
        return "not a plain file"
    if not 0 <= info.size <= MAX_BYTES:
        return f"{info.size:,} bytes, more than the limit of {MAX_BYTES:,} for an image"
    return ""


def _scan(tar: Path, number: int) -> Iterator[Member]:
    try:
        with open(tar, "rb") as file:
            yield from _scan_open(file, str(tar), number)
    except OSError as error:
        raise DataError(f"{tar}: {error.strerror or error}") from None


def _scan_open(file: BinaryIO, path: str, number: int) -> Iterator[Member]:
    archive = _open(file, path)
    for info in members_of(archive):
        if info.name.endswith(".tar") and info.isreg() and not is_service_path(info.name):
            end = info.offset_data + info.size
            file.seek(info.offset_data)
            for inner in members_of(_open(file, f"{path}/{info.name}")):
                if inner.offset >= end:
                    break
                if _counts(inner):
                    problem = problem_with(inner) or ("cut short" if inner.offset_data + inner.size > end else "")
                    yield Member(number, f"{info.name}/{inner.name}", inner.offset_data, inner.size, problem)
        elif _counts(info):
            yield Member(number, info.name, info.offset_data, info.size, problem_with(info))
    file.seek(archive.offset)
    if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes half a header for the end
        raise DataError(_damaged(archive, "no header"))


def _counts(info: tarfile.TarInfo) -> bool:
    name = info.name
    return (is_shard_name(name) or (is_unread_name(name) and not is_service_path(name))) and not info.isdir()


def _damaged(file: tarfile.TarFile, reason: str) -> str:
    return f"{file.name!s}: damaged or cut short at byte {file.offset:,} ({reason}); make the archive anew"


def _open(file: BinaryIO, path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:", name=path)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: not a plain tar archive ({error}); unpack a compressed one first") from None


def _parent(member: Member, tars: Sequence[Path]) -> str:
    """The folder of a file within its archive; where there is none, the name of the archive among others."""
    folder = posixpath.dirname(member.name).removeprefix("./").removesuffix(".tar")
    if folder in ("", "."):
        return tars[member.tar].stem if len(tars) > 1 else ""
    return folder


def _classes_of(folders: Collection[str]) -> dict[str, str] | None:
    """The class of each folder: its first part below those that all have; None if some have no more."""
    parts = {folder: folder.split("/") for folder in folders}
    shared = 0
    while parts and all(len(each) > shared + 1 for each in parts.values()):
        if len({each[shared] for each in parts.values()}) > 1:
            break
        shared += 1
    classes = {folder: each[shared] for folder, each in parts.items()}
    return classes if all(classes.values()) else None
