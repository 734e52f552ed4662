"""Image files within tar archives: indexed once, then read by their place, never unpacked."""

import itertools
import posixpath
import re
import tarfile
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from convattn.data.dataset import DataError, tell
from convattn.data.file_names import is_service_path, is_shard_name, is_unread_name
from convattn.data.files import LabelledFiles, label_by_name, tell_loose
from convattn.data.flat import open_by_synset
from convattn.data.images import MAX_BYTES, ImageError
from convattn.data.names import Names
from convattn.data.progress import late_progress
from convattn.data.split_words import SPLIT_WORDS
from convattn.data.tar_cache import Member, load_index, save_index

__all__ = ["TarFiles", "last_of_each", "members_of", "open_class_tars", "problem_with", "scan_tars"]

_LONG = 5.0  # seconds of indexing, from which on the index is kept
_LOOSE = ""  # the class of what lies in no class folder


class TarFiles:
    """Members of archives, opened anew for each read, so worker processes share nothing that could get mixed up."""

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

    Images of formats that are not read here are among them; `is_unread_name` tells them. DataError names an archive
    that cannot be opened, is compressed or damaged.
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


def last_of_each(members: Sequence[Member], where: object) -> Sequence[Member]:
    """Of files that stand in an archive under one name the last, as when it is unpacked; which is told."""
    hashes = np.fromiter((hash(_key(member)) for member in members), np.int64, len(members))
    if len(np.unique(hashes)) == len(hashes):  # a dictionary of millions only where it is needed
        return members
    last = {_key(member): at for at, member in enumerate(members)}
    if len(last) < len(members):
        again = next(member for at, member in enumerate(members) if last[_key(member)] != at)
        tell(
            f"{where}: {len(members) - len(last):,} files are followed by others of the same name, which count instead "
            f"as when the archive is unpacked, such as {again.name}"
        )
    return [members[at] for at in sorted(last.values())]


def open_class_tars(
    tars: Sequence[Path], members: Sequence[Member], where: object, classes: Sequence[str] | None = None
) -> LabelledFiles:
    """Archives whose images lie in a folder per class, or that are a class each.

    A class is the first folder of a file within its archive, below folders that all files share; where archives without
    folders are among several, the name of the archive, as with ImageNet's archive of 1,000 archives. Order is that of
    the same files in folders, and as there, images beside the class folders are passed over and told. Of a single
    archive without folders, the names have to begin with a synset (`open_by_synset`). DataError if there is no image,
    or a class is not among `classes`.
    """
    parents = _parents(members, tars)
    trusted = {parent for parent, member in zip(parents, members, strict=True) if not member.problem}
    if members and not trusted:
        raise DataError(f"{where}: none of its {len(members)} images is to be read: {members[0].problem}")
    class_of = _classes_of(trusted, classes)
    if trusted == {""}:
        ordered = sorted(members, key=lambda member: member.name)
        return open_by_synset(TarFiles(tars, ordered), where, classes)
    fallback = min(filter(None, class_of.values()), default="")  # the label of what is named and never read
    labels = [class_of.get(parent, fallback) for parent in parents]
    tell_loose(where, [member.name for label, member in zip(labels, members, strict=True) if label == _LOOSE])
    kept = [at for at, label in enumerate(labels) if label != _LOOSE]
    called = {labels[at].lower() for at in kept}
    if len(called) > 1 and called <= SPLIT_WORDS:
        raise DataError(
            f"{where}: its folders {' and '.join(sorted(called))} are splits, not classes; make an archive of each"
        )
    order = sorted(kept, key=lambda at: (labels[at], parents[at], members[at].name))
    return label_by_name(TarFiles(tars, (members[at] for at in order)), [labels[at] for at in order], where, classes)


def members_of(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive one by one, none of them kept; DataError if the archive is damaged."""
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
    if info.islnk() and info.linkname == name:  # how GNU tar writes a file that was named to it twice
        return False
    return (is_shard_name(name) or (is_unread_name(name) and not is_service_path(name))) and not info.isdir()


def _damaged(file: tarfile.TarFile, reason: str) -> str:
    return f"{file.name!s}: damaged or cut short at byte {file.offset:,} ({reason}); make the archive anew"


def _open(file: BinaryIO, path: str) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:", name=path)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: not a plain tar archive ({error}); unpack a compressed one first") from None


def _key(member: Member) -> tuple[int, str]:
    return member.tar, member.name.removeprefix("./")


def _parents(members: Sequence[Member], tars: Sequence[Path]) -> list[str]:
    """The folder of each file within its archive; where archives are a class each, their name."""
    parents = [_parent(member) for member in members]
    if len(tars) == 1:
        return parents
    seen = {(member.tar, not parent) for parent, member in zip(parents, members, strict=True) if not member.problem}
    open_ones = {tar for tar, is_outside in seen if is_outside}  # with images outside folders
    if all((tar, False) in seen for tar in open_ones):  # none is without folders
        return parents
    return [
        tars[member.tar].stem if member.tar in open_ones or not parent else parent
        for parent, member in zip(parents, members, strict=True)
    ]


def _parent(member: Member) -> str:
    folder = posixpath.dirname(member.name).removeprefix("./").removesuffix(".tar")
    return "" if folder == "." else folder


def _classes_of(folders: Collection[str], known: Sequence[str] | None) -> dict[str, str]:
    """The class of each folder: its first part below those that all have; `_LOOSE` of one beside the classes."""
    parts = {folder: tuple(filter(None, folder.split("/"))) for folder in folders}
    ends = min(parts.values(), default=()), max(parts.values(), default=())
    shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))]
    classes = {folder: each[len(shared)] if len(each) > len(shared) else _LOOSE for folder, each in parts.items()}
    beside = {name for name in classes.values() if name != _LOOSE}
    if not shared or _LOOSE not in classes.values():
        return classes
    # Images in the folder that all share, and in others below it: which of both are the classes?
    if len(beside) < 2 if known is None else shared[-1] in known or beside.isdisjoint(known):
        return dict.fromkeys(folders, shared[-1])
    return classes
